package proxy

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/deputymesh/deputy/actor"
)

// Renew puts a fresh credential in force. It must continue the session: the same agent at the end of the
// connection that presents it, the same user, task, sign-in, agents and target, and nothing wider. One of the same chain that was
// issued before the one in force changes nothing, however wide it is. The error is a [*Refusal], recorded; the session goes on with the credential it had.
func (s *Session) Renew(ctx context.Context, peer Peer, credential string) error {
	old := s.state()
	at := s.where(old)
	at.peer, at.client = peerID(peer), peer.Address
	if s.ctx.Err() != nil {
		return s.core.refuse(ctx, at, s.over())
	}
	v, r := s.core.verify(ctx, s.target, peer, credential)
	if r != nil {
		return s.core.refuse(ctx, at, r)
	}
	for {
		err := s.replace(old, v)
		if err == nil {
			return nil
		}
		if !errors.Is(err, errOvertaken) {
			return s.core.refuse(ctx, at, credentialRefusal(err))
		}
		old = s.state() // each turn is another renewal that has come into force
	}
}

var errOvertaken = errors.New("another renewal was faster")

// replace puts fresh in force in place of old, unless it is of before old; errOvertaken says that old isn't in force any more. What is compared may
// be large, so no lock is held meanwhile.
func (s *Session) replace(old, fresh *verified) error {
	why := belongs(old.chain, fresh.chain)
	if why == "" && fresh.chain.Token.IssuedAt.Before(old.chain.Token.IssuedAt) {
		return nil // requests overtake each other: what is in force already is fresher, and maybe narrower
	}
	if why == "" {
		why = widens(old.chain, fresh.chain)
	}
	if why != "" {
		return &Refusal{Class: ClassRenewal, Reason: "the fresh credential doesn't continue the session: " + why}
	}
	keys := fresh.chain.RevocationKeys()
	return s.core.cfg.State.admit(keys, func() error {
		s.mu.Lock()
		defer s.mu.Unlock()
		switch {
		case s.closed || s.ctx.Err() != nil:
			return s.over()
		case s.current != old:
			return errOvertaken
		}
		if err := s.core.sessions.put(s, keys); err != nil {
			return err
		}
		s.current = fresh
		return nil
	})
}

// belongs says why fresh isn't of the same chain as old; "" if it is.
func belongs(old, fresh *actor.Chain) string {
	switch {
	case fresh.Leaf().ID != old.Leaf().ID:
		return "it is another agent's"
	case fresh.User != old.User:
		return "it is another user's"
	case fresh.Txn != old.Txn:
		return "it belongs to another task"
	case fresh.SID != old.SID:
		return "it belongs to another sign-in"
	case fresh.Mesh != old.Mesh || fresh.Target != old.Target:
		return "it is for another target"
	case !slices.Equal(fresh.Actors(), old.Actors()):
		return "it names other agents"
	case old.RootEvidence == actor.RootVerified && fresh.RootEvidence != actor.RootVerified:
		return "its sign-in isn't verified"
	}
	return ""
}

// widens says in what fresh goes beyond old; "" if in nothing.
func widens(old, fresh *actor.Chain) string {
	for _, role := range fresh.Roles {
		if !slices.Contains(old.Roles, role) {
			return fmt.Sprintf("it adds the role %q", role)
		}
	}
	if err := fresh.Details.Within(old.Details); err != nil {
		return "it is wider: " + err.Error()
	}
	return ""
}
