package proxy_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/internal/feed"
	"github.com/deputymesh/deputy/proxy"
)

const soon = 10 * time.Second

func support(m *mesh) *flow {
	f := m.flow()
	f.roles = []string{"support"}
	return f
}

func TestAChangingCommandWaitsForItsRecord(t *testing.T) {
	d := newDisk()
	m := serving(t, d.use)
	s := m.open(support(m))
	release := d.hold()
	defer release()
	got := make(chan error, 1)
	var pass *proxy.Pass
	go func() {
		p, err := s.Authorize(context.Background(), m.command("update", "orders"))
		pass = p
		got <- err
	}()
	<-d.waiting
	select {
	case err := <-got:
		t.Fatalf("authorized before the record was durable (%v)", err)
	default:
	}
	release()
	if err := <-got; err != nil {
		t.Fatal(err)
	}
	if err := pass.Use(); err != nil {
		t.Fatal(err)
	}
	if rec := m.recorded(pass.RecordID()); rec.Event.(*audit.Decision).ReadOnly {
		t.Error("recorded as read-only")
	}
}

func TestAReadOnlyCommandRunsButItsAnswerWaits(t *testing.T) {
	d := newDisk()
	m := serving(t, d.use)
	s := m.open(m.flow())
	release := d.hold()
	defer release()
	p, err := s.Authorize(context.Background(), m.command("select", "orders"))
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Use(); err != nil {
		t.Fatal(err)
	}
	<-d.waiting
	short, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	if r := refusal(t, p.Wait(short)); r.Class != proxy.ClassEvidence {
		t.Errorf("class %q", r.Class)
	}
	release()
	if err := p.Wait(context.Background()); err != nil {
		t.Fatal(err)
	}
}

func TestWithoutALogNothingIsAllowed(t *testing.T) {
	d := newDisk()
	m := servingOnBrokenDisk(t, d)
	writer, reader := m.open(support(m)), m.open(m.flow())
	d.fail()
	_, err := writer.Authorize(context.Background(), m.command("update", "orders"))
	r := refusal(t, err)
	if r.Class != proxy.ClassEvidence || r.RecordID != "" || r.RecordID.String() != "none" {
		t.Errorf("got %+v, want a refusal with record none", r)
	}
	if _, err := reader.Authorize(context.Background(), m.command("select", "orders")); refusal(t, err).RecordID != "" {
		t.Errorf("a read-only command on a poisoned log: %v", err)
	}
	if _, err := m.core.Open(context.Background(), m.peer(m.researcher), m.credential(m.flow()), m.target, shop); refusal(t, err).RecordID != "" {
		t.Errorf("a session on a poisoned log: %v", err)
	}
	if err := m.core.Ready(); refusal(t, err).Class != proxy.ClassEvidence {
		t.Errorf("ready: %v", err)
	}
}

func TestTheAnswerOfAReadOnlyCommandIsLostWithItsRecord(t *testing.T) {
	d := newDisk()
	m := servingOnBrokenDisk(t, d)
	s := m.open(m.flow())
	release := d.hold()
	p, err := s.Authorize(context.Background(), m.command("select", "orders"))
	if err != nil {
		t.Fatal(err)
	}
	<-d.waiting
	d.fail()
	release()
	if r := refusal(t, p.Wait(context.Background())); r.Class != proxy.ClassEvidence || r.RecordID != "" {
		t.Errorf("got %+v", r)
	}
}

func TestTheFinalMessageWaitsOnlyWhereSomethingActed(t *testing.T) {
	d := newDisk()
	m := serving(t, d.use)
	s := m.open(m.flow())
	ctx := context.Background()
	plain := must(s.Authorize(ctx, m.command("select", "orders")))
	masked := must(s.Authorize(ctx, m.command("select", "customers")))
	limited := must(s.Authorize(ctx, m.command("select", "orders")))
	for _, p := range []*proxy.Pass{plain, masked, limited} {
		if err := p.Wait(ctx); err != nil {
			t.Fatal(err)
		}
	}
	release := d.hold()
	defer release()
	if err := plain.Completed(ctx, proxy.Outcome{Status: "ok", Rows: 1}); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 2)
	go func() {
		done <- masked.Completed(ctx, proxy.Outcome{Status: "ok", Masked: []audit.MaskedCount{{Rule: "email", Values: 1}}})
	}()
	go func() { done <- limited.Completed(ctx, proxy.Outcome{Status: "ok", Limit: "rows=1000"}) }()
	<-d.waiting
	select {
	case err := <-done:
		t.Fatalf("a masked or limited answer ended before its outcome was durable (%v)", err)
	default:
	}
	release()
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func TestARevocationThatArrivesDuringTheWaitCounts(t *testing.T) {
	d := newDisk()
	m := serving(t, d.use)
	s := m.open(support(m))
	release := d.hold()
	defer release()
	got := make(chan error, 1)
	go func() {
		_, err := s.Authorize(context.Background(), m.command("update", "orders"))
		got <- err
	}()
	<-d.waiting
	if n := m.revoke(must(feed.MatchTask(m.txn))); n != 1 {
		t.Errorf("ended %d sessions, want 1", n)
	}
	release()
	if r := refusal(t, <-got); r.Class != proxy.ClassRevoked || !r.Ended {
		t.Errorf("got %+v, want revoked", r)
	}
}

func TestAChainThatWritesTooMuchIsRefusedNotTheOthers(t *testing.T) {
	for name, tc := range map[string]struct {
		change   func(*audit.QuotaConfig)
		size     int // of a statement
		commands int
		want     string
	}{
		"records": {func(q *audit.QuotaConfig) { q.RecordsPerSecond, q.RecordBurst = 0.001, 40 }, 10, 60, "budget of records; slow down"},
		"bytes":   {func(q *audit.QuotaConfig) { q.BytesPerSecond, q.ByteBurst = 1, 1<<20 }, 16 << 10, 100, "budget of bytes; slow down, or send shorter statements"},
	} {
		t.Run(name, func(t *testing.T) {
			m := serving(t, func(cfg *audit.Config, _ *proxy.Config, _ *proxy.StateConfig) {
				q := audit.DefaultQuota()
				tc.change(&q)
				cfg.Quota = &q
			})
			greedy := m.open(m.flow())
			modest := m.flow()
			modest.txn = "00000000000000000000000000000abc"
			other := m.open(modest)
			command := m.command("select", "orders")
			command.Scrubbed += strings.Repeat(" ", tc.size)
			var err error
			for range tc.commands {
				var p *proxy.Pass
				if p, err = greedy.Authorize(context.Background(), command); err != nil {
					break
				}
				if err = p.Wait(context.Background()); err != nil {
					break
				}
			}
			if r := refusal(t, err); r.Class != proxy.ClassQuota || !strings.Contains(r.Error(), tc.want) {
				t.Errorf("got %+v, want over_quota and %q", r, tc.want)
			}
			p, err := other.Authorize(context.Background(), m.command("select", "orders"))
			if err != nil {
				t.Fatal(err)
			}
			if err := p.Wait(context.Background()); err != nil {
				t.Errorf("another task is refused too: %v", err)
			}
		})
	}
}
