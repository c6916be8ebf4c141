// Package audittest opens audit logs in temporary folders and reads them back, for tests of what writes them.
package audittest

import (
	"context"
	"crypto/rand"
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/deputymesh/deputy/audit"
)

// Source stands on the records of a log that Open made.
const Source = "spiffe://test.invalid/deputy/proxy/test"

// Key makes a fresh log key.
func Key(t testing.TB, origin string) *audit.Key {
	t.Helper()
	k, err := audit.GenerateKey(rand.Reader, origin)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// Config returns what Open opens: a real log in a temporary folder with small segments.
func Config(t testing.TB) audit.Config {
	t.Helper()
	return audit.Config{
		Dir:         t.TempDir(),
		Source:      Source,
		Key:         Key(t, "test.invalid/log"),
		HashKey:     []byte("a hash key for tests only"),
		SegmentSize: 1 << 20,
		Heartbeat:   time.Hour,
		Logger:      slog.New(slog.DiscardHandler),
	}
}

// Open returns a fresh log that is closed with the test. It is as durable as a real one.
func Open(t testing.TB) *audit.Log {
	t.Helper()
	return OpenConfig(t, Config(t))
}

// OpenConfig opens cfg and closes the log with the test.
func OpenConfig(t testing.TB, cfg audit.Config) *audit.Log {
	t.Helper()
	l, err := audit.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("closing the audit log: %v", err)
		}
	})
	return l
}

// Records returns every record of l, those included that were submitted before the call and not waited for.
func Records(t testing.TB, l *audit.Log) []*audit.Record {
	t.Helper()
	if l.Err() == nil {
		// The writer is one queue: what was submitted before the mark is durable when the mark is.
		mark := audit.Record{Event: &audit.Refused{Class: "audittest_mark"}}
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if _, err := l.Append(ctx, mark); err != nil {
			t.Fatalf("audittest: %v", err)
		}
	}
	r := audit.NewReader(os.DirFS(l.Dir()))
	defer r.Close()
	var all []*audit.Record
	for rec, err := range r.All() {
		if err != nil {
			t.Fatalf("audittest: reading the log: %v", err)
		}
		if e, ok := rec.Event.(*audit.Refused); ok && e.Class == "audittest_mark" {
			continue
		}
		all = append(all, rec)
	}
	return all
}

// Of returns the records whose events are of type E, without those that the log writes about itself.
func Of[E audit.Event](records []*audit.Record) []*audit.Record {
	var some []*audit.Record
	for _, r := range records {
		if _, ok := r.Event.(E); ok {
			some = append(some, r)
		}
	}
	return some
}
