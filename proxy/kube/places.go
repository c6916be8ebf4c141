package kube

import (
	"sync"

	"github.com/deputymesh/deputy/actor"
)

// places bound what is held at once, so that agents of one user, who may stay in theirs, leave some to others.
type places struct {
	mu  sync.Mutex // guards what follows
	all int
	by  map[actor.SubjectID]int
}

func (p *places) take(user actor.SubjectID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.all >= maxLarge || p.by[user] >= maxLargeEach {
		return false
	}
	p.all++
	p.by[user]++
	return true
}

func (p *places) leave(user actor.SubjectID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.all--
	if p.by[user]--; p.by[user] == 0 {
		delete(p.by, user)
	}
}
