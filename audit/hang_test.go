package audit_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/deputymesh/deputy/audit"
)

// A disk that hangs without failing: whoever wants something new is refused after a moment, and what is owed is taken without
// a wait, so that nobody who has to end something stands still. When the disk goes on, everything that was taken is there.
func TestAHangingDiskHoldsUpNobodyForLong(t *testing.T) {
	t.Parallel()
	d := newDisk()
	cfg := diskConfig(t, d)
	q := audit.DefaultQuota()
	cfg.Quota = &q
	goOn, hung := make(chan struct{}), make(chan struct{}, 1)
	l, err := audit.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	chain := testChain("txn-1")
	news := func() audit.Record {
		return audit.Record{Chain: chain, Event: &audit.PolicyLoaded{Result: audit.Accepted, Version: 1}}
	}
	mustAppend(t, l, news())
	d.mu.Lock()
	d.failSync = func(int) fault {
		select {
		case hung <- struct{}{}:
			<-goOn
		default:
		}
		return fine
	}
	d.mu.Unlock()
	taken := []*audit.Pending{l.Submit(news())}
	<-hung

	// As many as may wait; the disk takes none of them.
	for len(taken) < 1+4096 {
		taken = append(taken, l.Submit(news()))
	}
	began := time.Now()
	refused := l.Submit(news())
	select {
	case <-refused.Done():
	case <-time.After(30 * time.Second):
		t.Fatal("a new record waits for a disk that hangs")
	}
	if _, err := refused.Receipt(context.Background()); !errors.Is(err, audit.ErrStalled) {
		t.Errorf("got %v after %s, want ErrStalled", err, time.Since(began))
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 100 {
			taken = append(taken, l.Submit(audit.Record{Event: &audit.Revoked{ID: "r", Kind: "user", Value: "alice"}}))
		}
	}()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		close(goOn)
		t.Fatal("a record that is owed waits for a disk that hangs")
	}

	// One waits, and gets in when the disk goes on.
	late := make(chan *audit.Pending, 1)
	go func() { late <- l.Submit(news()) }()
	close(goOn)
	taken = append(taken, <-late)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for i, p := range taken {
		if _, err := p.Receipt(ctx); err != nil {
			t.Fatalf("record %d of %d, which was taken: %v", i, len(taken), err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	mustVerify(t, d.image(), cfg, audit.VerifyOptions{})
}
