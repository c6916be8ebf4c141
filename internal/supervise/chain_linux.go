package supervise

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/client"
)

// chainBox holds an agent's grants as its parent pushes them.
type chainBox struct {
	mu      sync.Mutex
	chain   client.Chain  // guarded by mu
	changed chan struct{} // guarded by mu; closed at each change
}

func newChainBox(c client.Chain) *chainBox {
	return &chainBox{chain: c, changed: make(chan struct{})}
}

func (b *chainBox) get() (client.Chain, <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.chain, b.changed
}

func (b *chainBox) set(c client.Chain) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.chain = c
	close(b.changed)
	b.changed = make(chan struct{})
}

// checkChain refuses grants that are not for this agent, before it relies on them.
func checkChain(c client.Chain, id actor.AgentID) error {
	d, err := client.DescribeChain(c)
	if err != nil {
		return err
	}
	if d.ID != id {
		return fmt.Errorf("the grants are for %s, not for %s", d.ID, id)
	}
	return nil
}

// delegation is a live child's part: what it was allowed, and until when at most.
type delegation struct {
	child actor.AgentID
	what  client.Delegation
	until time.Time // zero: no end of its own
}

// sign makes the child's chain from the agent's own, now.
func (s *Supervisor) sign(d delegation) (client.Chain, time.Time, error) {
	chain, _ := s.chain.get()
	now := time.Now()
	what := d.what
	if !d.until.IsZero() {
		if what.TTL = d.until.Sub(now); what.TTL < time.Second {
			return client.Chain{}, time.Time{}, errors.New("the time that the delegation was given is over")
		}
	}
	return client.Narrow(s.id, chain, d.child, what, now)
}

// feed signs the child's grants again at half-life, and whenever the agent's own grants or SVID
// change, and hands them to push, until ctx is done or push fails.
func (s *Supervisor) feed(ctx context.Context, d delegation, expires time.Time, push func(client.Chain) error) error {
	retry := time.Second
	for {
		_, chainChanged := s.chain.get()
		timer := time.NewTimer(max(time.Until(expires)/2, retry))
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-chainChanged:
		case <-s.id.Changed():
		case <-timer.C:
		}
		timer.Stop()
		chain, end, err := s.sign(d)
		if err != nil {
			s.log.WarnContext(ctx, "the grant of a child can't be renewed", "child", d.child.String(), "error", err)
			if !d.until.IsZero() && time.Now().After(d.until) {
				<-ctx.Done() // its time is over: the old grant runs out
				return ctx.Err()
			}
			retry = min(retry*2, 30*time.Second)
			continue
		}
		retry, expires = time.Second, end
		if err := push(chain); err != nil {
			return err
		}
	}
}

// logger is never nil.
func logger(l *slog.Logger) *slog.Logger {
	if l == nil {
		return slog.New(slog.DiscardHandler)
	}
	return l
}
