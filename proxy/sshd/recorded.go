package sshd

import (
	"context"
	"errors"
	"io"

	"github.com/deputymesh/deputy/policy"
	"github.com/deputymesh/deputy/proxy/internal/recording"
)

// recorder records what is started, where the policy asks for it and a person or an agent types there: in a shell, and in a command that has
// a terminal. It is nil otherwise.
func (s *sessionChannel) recorder(ctx context.Context, what start, pass Pass) *recording.Recorder {
	s.mu.Lock()
	defer s.mu.Unlock()
	if pass.Obligations().Record != policy.RecordFull || what.kind != "shell" && s.pty == nil {
		return nil
	}
	t := recording.Terminal{Title: what.cmd.Account + "@" + s.c.e.name + ": " + clip(what.cmd.Scrubbed, 256)}
	if s.pty != nil {
		t.Width, t.Height, t.Type = s.pty.Columns, s.pty.Rows, s.pty.Term
	}
	return recording.New(t, s.c.e.cfg.Now, func(piece []byte) error { return pass.Keep(ctx, piece) })
}

// toTarget is where what the agent types goes: the target, when it is on record.
func (p *program) toTarget() io.Writer {
	if p.rec == nil {
		return struct{ io.Writer }{p.ch}
	}
	return recorded{p, p.rec.Input, p.ch}
}

// toAgent is where the program's output goes.
func (p *program) toAgent(to io.Writer) io.Writer {
	if p.rec == nil {
		return counted{to, &p.bytes}
	}
	return recorded{p, p.rec.Output, counted{to, &p.bytes}}
}

// recorded lets through what was kept.
type recorded struct {
	p    *program
	keep func([]byte) error
	to   io.Writer
}

func (r recorded) Write(b []byte) (n int, err error) {
	for n < len(b) {
		piece := b[n:min(n+recording.MaxPiece, len(b))]
		if err := r.keep(piece); err != nil {
			r.p.unrecorded(err)
			return n, err
		}
		m, err := r.to.Write(piece)
		if n += m; err != nil {
			return n, err
		}
	}
	return n, nil
}

// unrecorded ends a program whose recording can't go on.
func (p *program) unrecorded(err error) {
	p.lost.Do(func() {
		why := forAgent(err, "what passes here can't be recorded").Error()
		if errors.Is(err, recording.ErrFull) {
			why = "what passed here was recorded and its recording is full; start anew"
		}
		p.cutOff.Store(true)
		p.sayAndSignal(why, "HUP")
		_ = p.ch.Close()
	})
}
