package sshd

import (
	"errors"
	"sync"

	"github.com/deputymesh/deputy/actor"
)

// seats counts the open channels of an engine, so that neither one user's agents nor all together take more memory than there is.
type seats struct {
	mu    sync.Mutex
	taken int                     // guarded by mu
	of    map[actor.SubjectID]int // guarded by mu
}

func (s *seats) take(user actor.SubjectID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.taken >= maxChannels || s.of[user] >= maxChannelsOfUser {
		return errors.New("too many channels are open to this target; close some and try again")
	}
	if s.of == nil {
		s.of = map[actor.SubjectID]int{}
	}
	s.taken++
	s.of[user]++
	return nil
}

func (s *seats) giveBack(user actor.SubjectID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.taken--
	if s.of[user]--; s.of[user] <= 0 {
		delete(s.of, user)
	}
}
