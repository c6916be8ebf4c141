package audit_test

import (
	"bytes"
	"encoding/json"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/deputymesh/deputy/audit"
)

// reflected is the head of a record as encoding/json writes it.
type reflected struct {
	Seq        int64           `json:"seq"`
	Version    int             `json:"v"`
	ID         audit.RecordID  `json:"id"`
	Type       audit.Type      `json:"type"`
	Time       time.Time       `json:"time"`
	Source     string          `json:"source"`
	Dev        bool            `json:"dev,omitempty"`
	Txn        string          `json:"txn,omitempty"`
	Session    string          `json:"session,omitempty"`
	Connection string          `json:"connection,omitempty"`
	Decision   audit.RecordID  `json:"decision,omitempty"`
	Event      json.RawMessage `json:"event"`
}

func plainJSON(t *rapid.T, v any) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		t.Fatal(err)
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}

// What is encoded by hand is what encoding/json would have written.
func TestEncodingByHandIsEncodingJSON(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.OneOf(rapid.Just(""), rapid.String(), rapid.SampledFrom([]string{"a\xffb", "\u2028", "<&>", `"\`, "\x00", "é", "public.t"}))
		must := rapid.Map(text, func(s string) string { return s + "x" })
		number := rapid.OneOf(rapid.Just(int64(0)), rapid.Int64())
		list := rapid.SliceOfN(text, 0, 3)
		var event audit.Event = &audit.Decision{
			Effect: rapid.SampledFrom([]audit.Effect{audit.Allow, audit.Refuse}).Draw(t, "effect"), Target: must.Draw(t, "target"), Action: must.Draw(t, "action"),
			Objects: rapid.SliceOfN(rapid.Custom(func(t *rapid.T) audit.Object {
				return audit.Object{Kind: text.Draw(t, "kind"), Name: text.Draw(t, "name"), Columns: list.Draw(t, "columns"), Write: rapid.Bool().Draw(t, "write")}
			}), 0, 3).Draw(t, "objects"),
			ReadOnly: rapid.Bool().Draw(t, "read only"), Account: text.Draw(t, "account"), Policies: list.Draw(t, "policies"), PolicySet: text.Draw(t, "set"),
			PolicyVersion: number.Draw(t, "version"), PolicyDigest: audit.Digest(text.Draw(t, "digest")),
			Obligations: rapid.SliceOfN(rapid.Custom(func(t *rapid.T) audit.Obligation {
				return audit.Obligation{Name: text.Draw(t, "name"), Value: text.Draw(t, "value")}
			}), 0, 3).Draw(t, "obligations"),
			Class: must.Draw(t, "class"), Reason: text.Draw(t, "reason"), Took: audit.Microseconds(number.Draw(t, "us")),
		}
		if rapid.Bool().Draw(t, "statement") {
			event.(*audit.Decision).Statement = &audit.Text{Scrubbed: text.Draw(t, "text"), Truncated: rapid.Bool().Draw(t, "truncated"),
				Bytes: int(number.Draw(t, "bytes")), Hash: text.Draw(t, "hash")}
		}
		if rapid.Bool().Draw(t, "completed") {
			event = &audit.Completed{
				Status: rapid.SampledFrom([]string{"ok", "error", "cancelled", "cut", "not_sent"}).Draw(t, "status"), Command: text.Draw(t, "command"), Rows: number.Draw(t, "rows"), Affected: number.Draw(t, "affected"),
				BytesIn: number.Draw(t, "in"), BytesOut: number.Draw(t, "out"), Code: text.Draw(t, "code"), Limit: text.Draw(t, "limit"),
				Masked: rapid.SliceOfN(rapid.Custom(func(t *rapid.T) audit.MaskedCount {
					return audit.MaskedCount{Rule: text.Draw(t, "rule"), Column: text.Draw(t, "column"), Values: number.Draw(t, "values")}
				}), 0, 3).Draw(t, "masked"),
				Duration: audit.Microseconds(number.Draw(t, "us")),
			}
		}
		r := &audit.Record{
			Version: 2, ID: audit.RecordID(text.Draw(t, "id")), Type: event.EventType(), Dev: rapid.Bool().Draw(t, "dev"),
			Time:   time.Unix(rapid.Int64Range(0, 1<<34).Draw(t, "s"), rapid.Int64Range(0, 1e9-1).Draw(t, "ns")).UTC(),
			Source: text.Draw(t, "source"), Txn: text.Draw(t, "txn"), Session: text.Draw(t, "session"), Connection: text.Draw(t, "connection"),
			Decision: audit.RecordID(text.Draw(t, "decision")), Event: event,
		}
		got, err := r.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		want := plainJSON(t, reflected{
			Version: r.Version, ID: r.ID, Type: r.Type, Time: r.Time, Source: r.Source, Dev: r.Dev, Txn: r.Txn, Session: r.Session,
			Connection: r.Connection, Decision: r.Decision, Event: plainJSON(t, event),
		})
		if !bytes.Equal(got, want) {
			t.Fatalf("by hand:\n%s\nencoding/json:\n%s", got, want)
		}
	})
}
