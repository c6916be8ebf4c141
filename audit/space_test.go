package audit_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/internal/strictjson"
)

// measured is a disk that says how full it is.
type measured struct {
	*disk
	total int64
	spent atomic.Int64 // by others
}

func (m *measured) Free(string) (free, total int64, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	used := m.spent.Load()
	for _, f := range m.files {
		used += int64(len(f.data))
	}
	return m.total - used, m.total, nil
}

// The log never takes the last of its disk: it refuses while there is still room, for others and for whoever has to clean up,
// takes what is owed, and goes on when there is more.
func TestTheLogLeavesSpaceToOthers(t *testing.T) {
	d := &measured{disk: newDisk(), total: 10 * 64 << 10}
	cfg := diskConfig(t, d.disk)
	cfg.FS, cfg.MinFree = d, 4*64<<10
	l, err := audit.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	chain := testChain("txn")
	var open []audit.Receipt
	for {
		rcpt, err := l.Append(context.Background(), allow(chain))
		if errors.Is(err, audit.ErrFull) {
			if !strings.Contains(err.Error(), "stay free") {
				t.Errorf("the refusal doesn't say why: %v", err)
			}
			break
		}
		if err != nil || len(open) > 1000 {
			t.Fatalf("append %d: %v", len(open), err)
		}
		open = append(open, rcpt)
	}
	if free, _, _ := d.Free(""); free != cfg.MinFree {
		t.Errorf("%d bytes are free, want %d", free, cfg.MinFree)
	}
	for _, o := range open { // each waits for its own frame, which takes more than what was free in the last segment
		mustAppend(t, l, audit.Record{Decision: o.RecordID, Chain: chain, Event: &audit.Completed{Status: "ok"}})
	}
	if _, err := l.Append(context.Background(), allow(chain)); !errors.Is(err, audit.ErrFull) {
		t.Errorf("a new decision took what is kept for outcomes: %v", err)
	}
	d.spent.Store(-20 * 64 << 10) // somebody made room
	for range 100 {
		if _, err = l.Append(context.Background(), allow(chain)); err == nil {
			break
		}
		waitABit()
	}
	if err != nil {
		t.Errorf("there is room again: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	mustVerify(t, d.image(), cfg, audit.VerifyOptions{})

	// A new log isn't begun on such a disk; the one that is there is opened for what it owes.
	d.spent.Store(0)
	if l, err = audit.Open(cfg); err != nil {
		t.Fatalf("a log that is there: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	cfg.Dir = "/another"
	if _, err := audit.Open(cfg); err == nil || !strings.Contains(err.Error(), "stay free") {
		t.Errorf("a new log: %v", err)
	}
}

// What is refused for its rate takes no room, so it takes none of its user's share either: one task that runs wild doesn't end the
// day of her others.
func TestWhatIsRefusedIsNotCharged(t *testing.T) {
	d := &measured{disk: newDisk(), total: 4 << 30}
	cfg := diskConfig(t, d.disk)
	clock := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	cfg.FS, cfg.SegmentSize, cfg.Now = d, 16<<20, func() time.Time { return clock }
	q := audit.DefaultQuota()
	q.RecordsPerSecond, q.RecordBurst = 1, 5
	q.DiskShare = 1.0 / 64 // of some 4 GB
	cfg.Quota = &q
	l, err := audit.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Repeat("x", 64<<10)
	for n := range 1500 { // 94 MB in all
		r := allow(testChain("wild"))
		r.Event.(*audit.Decision).Statement = &audit.Text{Scrubbed: text, Bytes: len(text)}
		_, err := l.Append(context.Background(), r)
		if n < 5 && err != nil || n >= 5 && (!errors.Is(err, audit.ErrOverQuota) || errors.Is(err, audit.ErrOverShare)) {
			t.Fatalf("append %d: %v", n, err)
		}
	}
	mustAppend(t, l, allow(testChain("another of hers")))
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

// However many tasks a user opens, a day of his takes a share of what is left of the disk, and the others find the rest.
func TestOneUserCannotFillTheDisk(t *testing.T) {
	d := &measured{disk: newDisk(), total: 4 << 30}
	cfg := diskConfig(t, d.disk)
	clock := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	cfg.FS, cfg.SegmentSize, cfg.Now = d, 16<<20, func() time.Time { return clock }
	q := audit.DefaultQuota()
	q.DiskShare = 1.0 / 64 // of some 4 GB
	cfg.Quota = &q
	l, err := audit.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Repeat("x", 64<<10)
	// In new tasks all the time, until he is refused.
	fill := func() (bytes int) {
		t.Helper()
		for n := range 4000 {
			r := allow(testChain("task-" + string(rune('a'+n%26))))
			r.Event.(*audit.Decision).Effect, r.Event.(*audit.Decision).Class = audit.Refuse, "policy"
			r.Event.(*audit.Decision).Statement = &audit.Text{Scrubbed: text, Bytes: len(text)}
			if _, err := l.Append(context.Background(), r); errors.Is(err, audit.ErrOverShare) {
				return bytes
			} else if err != nil {
				t.Fatal(err)
			}
			bytes += len(text)
		}
		t.Fatal("nobody stopped him")
		return 0
	}
	if n := fill(); n < 50<<20 || n > 66<<20 {
		t.Errorf("he wrote %d bytes, a 64th is some 64 MB", n)
	}
	// Evidence, too, in a task that is known as his.
	if _, err := l.PutCredential(context.Background(), audit.CredentialInput{
		Txn: "task-a", Credential: strictjson.EncodeBase64URL([]byte(text)), Peer: [][]byte{{1}}, Authorities: [][]byte{{2}}, KeyStatement: "x", VerifiedAt: clock,
	}); !errors.Is(err, audit.ErrOverQuota) {
		t.Errorf("evidence of his task: %v", err)
	}
	other := testChain("task-a2")
	other.User.Subject = "bob"
	mustAppend(t, l, allow(other))
	clock = clock.Add(12 * time.Hour)
	if n := fill(); n < 24<<20 || n > 36<<20 {
		t.Errorf("half a day later he wrote %d bytes, want half of it", n)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}
