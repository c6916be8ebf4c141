package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/deputymesh/deputy/internal/strictjson"
)

// wire is a record as it is read, docs/spec/audit-log.md "Records".
type wire struct {
	Seq        int64           `json:"seq"`
	Version    int             `json:"v"`
	ID         RecordID        `json:"id"`
	Type       Type            `json:"type"`
	Time       time.Time       `json:"time"`
	Source     string          `json:"source"`
	Dev        bool            `json:"dev,omitempty"`
	Txn        string          `json:"txn,omitempty"`
	Session    string          `json:"session,omitempty"`
	Connection string          `json:"connection,omitempty"`
	Decision   RecordID        `json:"decision,omitempty"`
	Chain      Digest          `json:"chain,omitempty"`
	Event      json.RawMessage `json:"event"`
}

// wireHead is what stands before the event; the writer puts "seq" in front of it.
type wireHead struct {
	Version                  int
	ID                       RecordID
	Type                     Type
	Time                     time.Time
	Source                   string
	Dev                      bool
	Txn, Session, Connection string
	Decision                 RecordID
	Chain                    Digest
}

// encode returns the record's JSON without its opening `{"seq":…`, for the writer to complete.
func (r *Record) encode() ([]byte, error) {
	if r.Event == nil {
		return nil, errors.New("record without an event")
	}
	if err := r.Event.check(); err != nil {
		return nil, fmt.Errorf("record of type %s: %w", r.Type, err)
	}
	h := wireHead{
		Version: r.Version, ID: r.ID, Type: r.Type, Time: r.Time, Source: r.Source, Dev: r.Dev,
		Txn: r.Txn, Session: r.Session, Connection: r.Connection, Decision: r.Decision,
	}
	if r.Chain != nil {
		if _, err := r.Chain.encoded(); err != nil {
			return nil, fmt.Errorf("record of type %s: chain: %w", r.Type, err)
		}
		h.Chain = r.Chain.digest
	}
	out := h.appendJSON(make([]byte, 0, 1024))
	out[0] = ',' // for `{`, which complete brings
	out = append(out[:len(out)-1], `,"event":`...)
	switch e := r.Event.(type) {
	case *Decision:
		out = e.appendJSON(out)
	case *Completed:
		out = e.appendJSON(out)
	case *ChainStated:
		raw, err := e.encoded()
		if err != nil {
			return nil, fmt.Errorf("record of type %s: %w", r.Type, err)
		}
		out = append(out, raw...)
	default:
		raw, err := compactJSON(r.Event)
		if err != nil {
			return nil, fmt.Errorf("record of type %s: %w", r.Type, err)
		}
		out = append(out, raw...)
	}
	return append(out, '}'), nil
}

// complete puts the position in front of what encode made.
func complete(dst []byte, seq int64, tail []byte) []byte {
	dst = strconv.AppendInt(append(dst, `{"seq":`...), seq, 10)
	return append(dst, tail...)
}

func compactJSON(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// ParseRecord reads the exact bytes of one record, strictly. Its chain is left out: that stands in an earlier record of
// its segment, and [Reader] puts it back.
func ParseRecord(data []byte) (*Record, error) {
	var w wire
	if err := strictjson.Unmarshal(data, &w); err != nil {
		return nil, fmt.Errorf("audit record: %w", err)
	}
	if w.Version != SchemaVersion {
		return nil, fmt.Errorf("audit record %s: schema version %d; this program reads %d", w.ID, w.Version, SchemaVersion)
	}
	if source, err := spiffeid.FromString(w.Source); err != nil || source.Path() == "" {
		return nil, fmt.Errorf("audit record %s: source %q is no SPIFFE ID of a role", w.ID, clip(w.Source, 80))
	}
	if w.Seq < 0 {
		return nil, errors.New("audit record: a negative seq")
	}
	if _, err := ParseRecordID(string(w.ID)); err != nil {
		return nil, fmt.Errorf("audit record: %w", err)
	}
	if w.Decision != "" {
		if _, err := ParseRecordID(string(w.Decision)); err != nil {
			return nil, fmt.Errorf("audit record %s: decision: %w", w.ID, err)
		}
	}
	r := &Record{
		Seq: w.Seq, Version: w.Version, ID: w.ID, Type: w.Type, Time: w.Time, Source: w.Source, Dev: w.Dev,
		Txn: w.Txn, Session: w.Session, Connection: w.Connection, Decision: w.Decision,
		raw: append([]byte(nil), data...), chain: w.Chain,
	}
	if w.Chain != "" {
		if _, err := ParseDigest(string(w.Chain)); err != nil {
			return nil, fmt.Errorf("audit record %s: chain: %w", w.ID, err)
		}
	}
	if r.Event = newEvent(w.Type); r.Event == nil {
		return nil, fmt.Errorf("audit record %s: unknown type %q", w.ID, clip(string(w.Type), 40))
	}
	body := any(r.Event)
	if stated, ok := r.Event.(*ChainStated); ok {
		stated.Chain, stated.digest = new(Chain), DigestOf(w.Event)
		body = stated.Chain
	}
	if err := strictjson.Unmarshal(w.Event, body); err != nil {
		return nil, fmt.Errorf("audit record %s: event %s: %w", w.ID, w.Type, err)
	}
	if err := r.Event.check(); err != nil {
		return nil, fmt.Errorf("audit record %s: %w", w.ID, err)
	}
	return r, nil
}

// Expanded returns the record with its whole chain in the place of the chain's digest: for people and for other systems. What
// is proved is [Record.MarshalJSON].
func (r *Record) Expanded() ([]byte, error) {
	raw, err := r.MarshalJSON()
	if err != nil || r.Chain == nil {
		return raw, err
	}
	chain, err := r.Chain.encoded()
	if err != nil {
		return nil, err
	}
	member := []byte(`"chain":"` + string(r.Chain.digest) + `"`)
	whole := append([]byte(`"chain_digest":"`+string(r.Chain.digest)+`","chain":`), chain...)
	// The digest stands in front of the event, and nothing before it can hold a quotation mark that isn't escaped.
	return bytes.Replace(raw, member, whole, 1), nil
}

// MarshalJSON returns the record as it stands in the log.
func (r *Record) MarshalJSON() ([]byte, error) {
	if r.raw != nil {
		return r.raw, nil
	}
	tail, err := r.encode()
	if err != nil {
		return nil, err
	}
	return complete(nil, r.Seq, tail), nil
}
