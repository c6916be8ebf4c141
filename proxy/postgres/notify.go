package postgres

import (
	"context"
	"errors"
	"fmt"

	"github.com/deputymesh/deputy/internal/sqlparse"
	"github.com/deputymesh/deputy/policy"
	"github.com/deputymesh/deputy/proxy"
)

// Bounds on what one session is told by NOTIFY.
const (
	maxChannels       = 256
	maxPayload        = 8000 // PostgreSQL's own limit
	notificationRate  = 100  // per second
	notificationBurst = 1000
)

// listen adds the ops of LISTEN, UNLISTEN and NOTIFY.
func (b *opBuilder) listen() error {
	s := b.dec.stmt
	switch s.Tag {
	case "LISTEN":
		b.channel(s.Object)
	case "UNLISTEN":
		b.onDatabase("connect", false, false)
	case "NOTIFY":
		// It does what the function does, so it takes the same right.
		b.function(sqlparse.Name{Schema: "pg_catalog", Name: "pg_notify"}, true)
	default:
		return objection(classUnsupported, tagOf(s)+" isn't known")
	}
	return nil
}

// channel adds the op of hearing what is said on a channel. A trigger may say what a masked column holds, so where there is
// one a policy must name the channel.
func (b *opBuilder) channel(name string) {
	b.add("listen", policy.Channel(b.d.e.name, b.d.database, name), false, len(b.masked()) > 0)
}

// listens notes the channel of a LISTEN that is on its way. It stays noted: the target sends nothing after an UNLISTEN, and
// each notification is decided on its own.
func (s *session) listens(channel string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.channels[channel] = true
}

func (s *session) listensToMany() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.channels) >= maxChannels
}

func (s *session) hears(channel string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.channels[channel]
}

// notification delivers a NotificationResponse if the session listens to its channel and still may, or drops it.
func (s *session) notification(ctx context.Context, body []byte) error {
	p := parts{b: body}
	pid, channel, payload := p.uint32(), p.cstring(), p.cstring()
	if !p.done() {
		return protocolError("the target sent a notification that can't be read")
	}
	if !s.hears(channel) || len(payload) > maxPayload {
		return nil
	}
	now := s.e.cfg.Now()
	if !s.notifications.AllowN(now, 1) {
		if !s.tooMany {
			s.warn("notifications come too fast; some were dropped")
		}
		s.tooMany = true
		return nil
	}
	// It is warned of again when this flood is over, not for each one that gets through it.
	s.tooMany = s.tooMany && s.notifications.TokensAt(now) < notificationBurst/2
	text := "NOTIFICATION " + fmt.Sprintf("%q", channel)
	d := &decision{}
	b := opBuilder{d: &s.decider, dec: d}
	b.channel(channel)
	pass, err := s.core.Authorize(ctx, proxy.Command{
		Kind: "notification", Text: text, Scrubbed: text, Database: s.database, Account: s.account, Ops: b.ops, ReadOnly: true,
	})
	var r *proxy.Refusal
	if errors.As(err, &r) {
		// It is recorded; a LISTEN asks anew.
		s.mu.Lock()
		delete(s.channels, channel)
		s.mu.Unlock()
		if !r.Ended {
			s.warn(fmt.Sprintf("the session hears nothing more on channel %q: %s", clip(channel, 64), r.Error()))
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("deciding about a notification: %w", err)
	}
	if err := errors.Join(pass.Use(), pass.Wait(ctx)); err != nil {
		return passFault(err)
	}
	if pid == s.up.pid {
		pid = s.key.pid // the agent knows itself by this one
	}
	s.out.begin('A')
	s.out.int32(int(int32(pid)))
	s.out.cstring(channel)
	s.out.cstring(payload)
	s.out.end()
	return pass.Completed(context.WithoutCancel(ctx), proxy.Outcome{Status: "ok", Command: "NOTIFICATION", Bytes: int64(len(body)) + 5})
}

// warn tells the agent something beside the answers to what it asked.
func (s *session) warn(text string) {
	f := fault{severity: "WARNING", code: "01000", message: text}
	f.write(s.out)
}
