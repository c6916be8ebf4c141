package audit

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/deputymesh/deputy/internal/strictjson"
)

// Limits of what a caller may put into one record.
const (
	maxText     = 64 << 10 // bytes of scrubbed text that are kept
	maxEvidence = 512 << 10
	maxClasses  = 256
)

// Log is an open write-ahead log. Its methods may be called from any goroutine.
type Log struct {
	cfg    Config
	known  note.Verifiers
	quota  *quota
	hashes sync.Pool // of HMACs under the hash key
	unlock io.Closer

	queue    *queue
	done     chan struct{} // closed when the writer has ended
	closeErr error         // set before done is closed
	state    atomic.Pointer[published]

	countMu sync.Mutex
	counts  map[countKey]*Refused

	keptMu sync.Mutex
	kept   map[Digest]bool
	newer  []Digest // in the order they were kept, to forget the oldest
}

// published is what the writer shows to others.
type published struct {
	checkpoint []byte
	err        error // why nothing can be appended any more
}

// item is one record on its way to the writer.
type item struct {
	Pending
	tail     []byte
	typ      Type
	haste    haste
	decision RecordID // that this record belongs to
	opens    *openDecision
	chain    *Chain   // must stand in the segment before it
	seq      int64    // once it is in a frame
	kept     Digest   // evidence that becomes known when this record is durable
	counted  *Refused // what goes back to the counters if this record is refused
}

// Open opens or makes the log in cfg.Dir, recovers it if it wasn't closed, and starts its writer. The caller
// must Close it.
func Open(cfg Config) (*Log, error) {
	if err := cfg.complete(); err != nil {
		return nil, fmt.Errorf("opening the audit log in %s: %w", cfg.Dir, err)
	}
	l := &Log{
		cfg:    cfg,
		quota:  newQuota(*cfg.Quota, cfg.Now),
		queue:  newQueue(cfg.MaxFrameDelay),
		done:   make(chan struct{}),
		counts: make(map[countKey]*Refused),
		kept:   make(map[Digest]bool),
	}
	verifiers := []note.Verifier{cfg.Key.verifier}
	for _, k := range cfg.OldKeys {
		v, err := note.NewVerifier(k)
		if err != nil {
			return nil, fmt.Errorf("opening the audit log in %s: an old key: %w", cfg.Dir, err)
		}
		verifiers = append(verifiers, v)
	}
	l.known = note.VerifierList(verifiers...)
	w, err := recoverLog(l)
	if err != nil {
		return nil, fmt.Errorf("opening the audit log in %s: %w", cfg.Dir, err)
	}
	go w.run()
	return l, nil
}

func (c *Config) complete() error {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.FS == nil {
		c.FS = osFS{}
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.SegmentSize == 0 {
		c.SegmentSize = 16 << 20
	}
	if c.MaxFrameDelay <= 0 || c.MaxFrameDelay > 20*time.Millisecond {
		c.MaxFrameDelay = 20 * time.Millisecond
	}
	if c.Heartbeat <= 0 {
		c.Heartbeat = 30 * time.Second
	}
	if c.Quota == nil {
		q := DefaultQuota()
		c.Quota = &q
	}
	switch {
	case c.Dir == "":
		return errors.New("no folder is given")
	case c.Key == nil:
		return errors.New("no key to sign checkpoints is given")
	case len(c.Key.Origin()) > 256:
		return errors.New("the key's name is longer than 256 bytes")
	case !strings.HasPrefix(c.Source, "spiffe://"):
		return fmt.Errorf("source %q isn't a SPIFFE ID", c.Source)
	case c.SegmentSize < minSegmentSize || c.SegmentSize > maxSegmentSize || c.SegmentSize%blockSize != 0:
		return fmt.Errorf("segment size %d: want a multiple of %d between %d and %d", c.SegmentSize, blockSize, minSegmentSize, int64(maxSegmentSize))
	case len(c.HashKey) > 0 && len(c.HashKey) < 16:
		return errors.New("the hash key is shorter than 16 bytes")
	case c.Quota.RecordsPerSecond <= 0 || c.Quota.RecordBurst < 1 || c.Quota.BytesPerSecond <= 0 || c.Quota.ByteBurst < maxRecord || c.Quota.MaxTrees < 1:
		return fmt.Errorf("quota: every limit must be positive, and the byte burst at least %d", maxRecord)
	}
	return nil
}

// Append submits r and waits until it is durable. After an error the record may not be relied on: refuse the
// command with `record: none`.
func (l *Log) Append(ctx context.Context, r Record) (Receipt, error) { return l.Submit(r).Receipt(ctx) }

// Submit hands r to the writer and returns at once; the record's id is known from then on. Outcomes
// ([Forwarded], [Masked], [Completed] …) need not be waited for: they become durable within MaxFrameDelay. Where
// the disk hangs and thousands of records wait, what isn't owed fails with [ErrStalled] after half a second.
func (l *Log) Submit(r Record) *Pending { return l.submit(r, "") }

func (l *Log) submit(r Record, kept Digest) *Pending {
	it, err := l.prepare(&r)
	if err != nil {
		return failed(r.ID, err)
	}
	it.kept = kept
	if err := l.quota.take(r.Txn, userOf(r.Chain), len(it.tail), r.Type.owed()); err != nil {
		l.count(countKey{"over_quota", r.Txn}, r.Chain)
		return failed(r.ID, err)
	}
	if err := l.queue.put(it); err != nil {
		return failed(r.ID, err)
	}
	return &it.Pending
}

// userOf is who pays for a record with that chain.
func userOf(c *Chain) owner {
	if c == nil {
		return owner{}
	}
	return owner{c.User.Issuer, c.User.Subject}
}

// prepare fills the envelope and encodes the record, in the caller's goroutine.
func (l *Log) prepare(r *Record) (*item, error) {
	if r.Event == nil {
		return nil, errors.New("audit record without an event")
	}
	r.Version, r.Source, r.Dev, r.Type = SchemaVersion, l.cfg.Source, l.cfg.Dev, r.Event.EventType()
	if r.ID == "" {
		id, err := NewRecordID()
		if err != nil {
			return nil, err
		}
		r.ID = id
	}
	if r.Time.IsZero() {
		r.Time = l.cfg.Now()
	}
	r.Time = r.Time.UTC().Round(0)
	if r.Txn == "" && r.Chain != nil {
		r.Txn = r.Chain.Txn
	}
	tail, err := r.encode()
	if err != nil {
		return nil, err
	}
	if len(tail)+32 > l.recordLimit() {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ErrTooLarge, len(tail), l.recordLimit())
	}
	it := &item{Pending: Pending{id: r.ID, queue: l.queue}, tail: tail, typ: r.Type, haste: urgent, decision: r.Decision, chain: r.Chain}
	if r.Type.lazy() {
		it.haste = lazy
	}
	if d, ok := r.Event.(*Decision); ok && d.Effect == Allow {
		if d.ReadOnly {
			it.haste = soon
		}
		it.opens = &openDecision{id: r.ID, txn: r.Txn, session: r.Session, connection: r.Connection, chain: r.Chain}
		// Its outcome has the same chain, and may come alone in a frame.
		it.opens.owes = int64(padded(frameHeader + len(tail) + it.chain.room() + maxCheckpoint))
	}
	return it, nil
}

// recordLimit keeps several records in reach of even the smallest segment.
func (l *Log) recordLimit() int { return int(min(maxRecord, l.cfg.SegmentSize/4)) }

// PutEvidence keeps data under its digest and returns when it is durable. The same bytes are kept once.
func (l *Log) PutEvidence(ctx context.Context, kind string, data []byte) (Digest, error) {
	d, p := l.submitEvidence(kind, "", data)
	if p == nil {
		return d, l.Err()
	}
	if _, err := p.Receipt(ctx); err != nil {
		return "", fmt.Errorf("keeping evidence %s: %w", kind, err)
	}
	return d, nil
}

// submitEvidence returns the digest of data, and what to wait for unless it is durable already.
func (l *Log) submitEvidence(kind, txn string, data []byte) (Digest, *Pending) {
	d := DigestOf(data)
	if len(data) > maxEvidence {
		return d, failed("", fmt.Errorf("%w: evidence of %d bytes, at most %d", ErrTooLarge, len(data), maxEvidence))
	}
	l.keptMu.Lock()
	have := l.kept[d]
	l.keptMu.Unlock()
	if have {
		return d, nil
	}
	return d, l.submit(Record{Txn: txn, Event: &Evidence{Kind: kind, Digest: d, Data: data}}, d)
}

// keep remembers that the evidence d is durable; the oldest are forgotten, and then kept once more.
func (l *Log) keep(d Digest) {
	l.keptMu.Lock()
	defer l.keptMu.Unlock()
	if l.kept[d] {
		return
	}
	l.kept[d] = true
	l.newer = append(l.newer, d)
	if len(l.newer) > 1<<16 {
		delete(l.kept, l.newer[0])
		l.newer = l.newer[1:]
	}
}

// Text describes a command's text: scrubbed is kept (cut at 64 KiB), of exact only its length and keyed hash.
func (l *Log) Text(exact, scrubbed string) *Text {
	t := &Text{Scrubbed: scrubbed, Bytes: len(exact)}
	if len(scrubbed) > maxText {
		t.Scrubbed, t.Truncated = strings.ToValidUTF8(scrubbed[:maxText], ""), true
	}
	if len(l.cfg.HashKey) > 0 {
		m, ok := l.hashes.Get().(hash.Hash)
		if !ok {
			m = hmac.New(sha256.New, l.cfg.HashKey)
		}
		_, _ = io.WriteString(m, exact) // a hash takes everything
		t.Hash = strictjson.EncodeBase64URL(m.Sum(nil))
		m.Reset()
		l.hashes.Put(m)
	}
	return t
}

// Err returns ErrPoisoned or ErrClosed (with the cause) when nothing can be appended any more, else nil.
func (l *Log) Err() error { return l.state.Load().err }

// Checkpoint returns the newest signed checkpoint.
func (l *Log) Checkpoint() []byte { return l.state.Load().checkpoint }

// Dir returns the log's folder.
func (l *Log) Dir() string { return l.cfg.Dir }

// Origin returns the log's name, that of its key.
func (l *Log) Origin() string { return l.cfg.Key.Origin() }

// Close writes what was submitted, ends the log with a `log_closed` record and releases it. It
// returns why the log could not be ended so.
func (l *Log) Close() error {
	l.queue.close()
	<-l.done
	return l.closeErr
}

// Pending is a record on its way to the disk.
type Pending struct {
	id    RecordID
	queue *queue
	batch *batch // that it goes with
	rcpt  Receipt
	err   error
}

// ID returns the record's id.
func (p *Pending) ID() RecordID { return p.id }

// Done is closed when the record is durable or has failed.
func (p *Pending) Done() <-chan struct{} { return p.batch.done }

// Receipt waits until the record is durable; a record that nobody waited for so far is written at once. When ctx ends first the record may become durable all the same.
func (p *Pending) Receipt(ctx context.Context) (Receipt, error) {
	select {
	case <-p.batch.done:
		return p.rcpt, p.err
	default:
	}
	p.queue.hurry()
	select {
	case <-p.batch.done:
		return p.rcpt, p.err
	case <-ctx.Done():
		return Receipt{}, fmt.Errorf("waiting for audit record %s: %w", p.id, ctx.Err())
	}
}

// failed is a record that never got to the writer.
func failed(id RecordID, err error) *Pending {
	b := newBatch()
	close(b.done)
	return &Pending{id: id, batch: b, err: err}
}
