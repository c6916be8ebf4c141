package mcpstdio

import (
	"context"
	"fmt"
	"sync"
)

// places bound how many processes there are at once. A place is taken until its process has ended, however long that takes: else who begins and leaves
// again and again would have as many processes as it likes. Who finds no place waits for one that a process is leaving, each for another, which takes no
// longer than the end of a process.
type places struct {
	most int
	left chan struct{} // places that go to who waits

	mu      sync.Mutex
	taken   int // guarded by mu, as is what follows
	ending  int
	waiting int // of those whose place hasn't been left yet; at most ending
}

func newPlaces(most int) *places {
	return &places{most: most, left: make(chan struct{}, most)}
}

// take takes a place.
func (p *places) take(ctx context.Context) error {
	p.mu.Lock()
	if p.taken < p.most {
		p.taken++
		p.mu.Unlock()
		return nil
	}
	if p.waiting >= p.ending {
		p.mu.Unlock()
		return fmt.Errorf("%d processes of the server run, one for each session and each request without one, and more aren't begun at once: end a session, wait for an answer, or ask the operator for a higher --max-sessions", p.most)
	}
	p.waiting++
	p.mu.Unlock()
	select {
	case <-p.left:
		return nil
	case <-ctx.Done():
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.waiting > 0 {
		p.waiting-- // whichever place is left next goes to the others
	} else {
		<-p.left // one was left for each who waits
		p.taken--
	}
	return ctx.Err()
}

// ends says that a process has been told to end, hasEnded that it has. What takes a place does both.
func (p *places) ends() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ending++
}

func (p *places) hasEnded() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ending--
	if p.waiting > 0 {
		p.waiting--
		p.left <- struct{}{}
	} else {
		p.taken--
	}
}

// giveBack leaves a place that no process was begun on.
func (p *places) giveBack() {
	p.ends()
	p.hasEnded()
}
