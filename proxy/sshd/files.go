package sshd

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"

	"golang.org/x/crypto/ssh"

	"github.com/deputymesh/deputy/policy"
	"github.com/deputymesh/deputy/proxy"
	"github.com/deputymesh/deputy/proxy/sshd/sftp"
)

// maxSaid bounds the refusals of one SFTP session that are said beside the answers, too. OpenSSH's client shows no answer's text, but
// libraries show nothing else, and may never read what is said.
const maxSaid = 64

// files decides the requests of one SFTP session, as [sftp.Decider].
type files struct {
	s *sessionChannel
	// spoilt says that the agent was told already why its session has ended.
	spoilt atomic.Bool

	// writing is held while something is written to the agent: the channel's end may not come meanwhile.
	writing sync.Mutex
	shut    bool // guarded by writing, as is said
	said    int
}

// Write writes to the agent, until that is over.
func (f *files) Write(b []byte) (int, error) {
	f.writing.Lock()
	defer f.writing.Unlock()
	if f.shut {
		return 0, io.ErrClosedPipe
	}
	return f.s.ch.Write(b)
}

// shutWriting returns when nothing more is written to the agent.
func (f *files) shutWriting() {
	f.writing.Lock()
	defer f.writing.Unlock()
	f.shut = true
}

// fileChannel is the channel to the target's SFTP server. It tells when nothing more comes from it: the agent's side may still wait then for
// what the agent sends next.
type fileChannel struct {
	ssh.Channel
	ended func()
}

func (c fileChannel) Close() error {
	c.ended()
	return c.Channel.Close()
}

// serveFiles relays the subsystem sftp, request by request. It closes ended when nothing more comes from the target.
func (p *program) serveFiles(ctx context.Context, ended chan struct{}) {
	// Requests end with the session, not only with its connections.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(p.c.core.Context(), cancel)()
	agent := struct {
		io.Reader
		io.Writer
	}{p.agent.ch, counted{p.files, &p.bytes}}
	err := sftp.Serve(ctx, agent, fileChannel{p.ch, sync.OnceFunc(func() { close(ended) })}, p.files)
	var r *proxy.Refusal
	if err != nil && !errors.As(err, &r) && ctx.Err() == nil {
		p.c.log.InfoContext(ctx, "an SFTP session ended", "error", err)
		p.say("the SFTP session has ended: " + err.Error())
	}
}

func (f *files) Decide(ctx context.Context, r sftp.Request) (sftp.Grant, error) {
	c, cmd := f.s.c, f.command(r)
	if o := c.still(); o != nil {
		return nil, f.say(c.core.Refuse(ctx, cmd, *o))
	}
	pass, err := c.core.Authorize(ctx, cmd)
	if err != nil {
		return nil, f.say(forAgent(err, "this couldn't be decided"))
	}
	return fileGrant{pass}, nil
}

func (f *files) Refuse(ctx context.Context, r sftp.Request, reason string) error {
	if r.Kind == sftp.Session {
		f.spoilt.Store(true)
	}
	return f.say(f.s.c.core.Refuse(ctx, f.command(r), proxy.Objection{Class: classMalformed, Reason: reason}))
}

// say tells the agent of a refusal where a person sees it.
func (f *files) say(refusal error) error {
	f.writing.Lock()
	defer f.writing.Unlock()
	if f.said++; f.said <= maxSaid && !f.shut {
		f.s.say(refusal.Error())
	}
	return refusal
}

func (f *files) command(r sftp.Request) proxy.Command {
	c := f.s.c
	cmd := proxy.Command{Kind: r.Kind, Text: r.Text, Scrubbed: r.Text, Account: c.account.Name, ReadOnly: r.ReadOnly, Check: onlyRecording}
	for _, a := range r.Access {
		write := a.Verb != sftp.Read && a.Verb != sftp.List && a.Verb != sftp.Stat
		cmd.Ops = append(cmd.Ops, c.e.op(a.Verb, policy.Path(c.e.name, c.account.Name, a.Path), write))
	}
	return cmd
}

// fileGrant is a pass, as [sftp.Grant].
type fileGrant struct{ pass Pass }

func (g fileGrant) RecordID() string { return g.pass.RecordID().String() }

func (g fileGrant) Use() error {
	if err := g.pass.Use(); err != nil {
		return forAgent(err, "the session is over")
	}
	g.pass.Forwarded(0)
	return nil
}

func (g fileGrant) Wait(ctx context.Context) error {
	if err := g.pass.Wait(ctx); err != nil {
		return forAgent(err, "the decision couldn't be recorded")
	}
	return nil
}

func (g fileGrant) Completed(ctx context.Context, o sftp.Outcome) {
	// Nothing waits for an outcome that neither masks nor limits.
	_ = g.pass.Completed(context.WithoutCancel(ctx), proxy.Outcome{Status: o.Status, Code: o.Code, Bytes: o.Read, Sent: o.Written})
}
