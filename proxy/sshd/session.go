package sshd

import (
	"context"
	"errors"
	"io"
	"sync"

	"golang.org/x/crypto/ssh"

	"github.com/deputymesh/deputy/proxy"
	"github.com/deputymesh/deputy/proxy/internal/recording"
)

const (
	maxVariables  = 32
	maxPTYRequest = 8 << 10
	// exitRefused is the exit status of what wasn't started: a shell's own for a program that may not be run.
	exitRefused = 126
)

// sessionChannel is a channel of the type session: at most one command, shell or subsystem.
type sessionChannel struct {
	c    *connection
	ch   ssh.Channel
	gone chan struct{} // closed when the agent has closed the channel

	// What its requests alone use, until something is started.
	started   bool
	variables []*ssh.Request
	helpers   map[string]bool // kinds of forwarding that were asked for

	mu      sync.Mutex
	pty     *ptyRequest   // guarded by mu
	resized bool          // guarded by mu: pty changed since it was asked for
	running *program      // guarded by mu
	before  []queuedAfter // guarded by mu: what came while it was being started

	voice sync.Mutex // of say: x/crypto/ssh doesn't take a write and the end of writing at once
	quiet bool       // guarded by voice: the output has ended
}

// queuedAfter is a request that waits until the program runs.
type queuedAfter struct {
	kind    string
	payload []byte
}

const maxQueued = 64

type ptyRequest struct {
	Term          string
	Columns, Rows uint32
	Width, Height uint32
	Modes         string
}

type windowChange struct{ Columns, Rows, Width, Height uint32 }

func (c *connection) serveSession(ctx context.Context, n ssh.NewChannel) {
	ch, requests, err := n.Accept()
	if err != nil {
		return
	}
	s := &sessionChannel{c: c, ch: ch, gone: make(chan struct{})}
	var begun sync.WaitGroup
	// The requests are taken at once, whatever is being decided: one that waits would hold up all channels. Nothing here may wait for
	// the agent to read or for the target either: the end of the connection itself comes behind the requests, and frees nobody who waits before it.
	for r := range requests {
		if slow := s.request(r); slow != nil {
			begun.Go(func() { slow(ctx) })
		}
	}
	close(s.gone)
	begun.Wait()
}

// request handles one request, and returns what of it takes time: at most one start, and one refusal of each kind of helper.
func (s *sessionChannel) request(r *ssh.Request) (slow func(context.Context)) {
	switch r.Type {
	case "exec", "shell", "subsystem":
		if s.started {
			_ = r.Reply(false, nil)
			return nil
		}
		s.started = true
		return func(ctx context.Context) { s.start(ctx, r) }
	case "pty-req":
		_ = r.Reply(s.askPTY(r.Payload), nil)
	case "env":
		_ = r.Reply(s.askVariable(r), nil)
	case "window-change":
		var w windowChange
		if ssh.Unmarshal(r.Payload, &w) != nil {
			_ = r.Reply(false, nil)
			return nil
		}
		s.resize(w, r.Payload)
		_ = r.Reply(true, nil)
	case "signal", "break":
		_ = r.Reply(len(r.Payload) <= 256 && s.pass(r.Type, r.Payload), nil)
	case "auth-agent-req@openssh.com":
		return s.refuseHelper(r, "agent-forward", "forwarding of the SSH agent isn't done here")
	case "x11-req":
		return s.refuseHelper(r, "x11-forward", "forwarding of X11 isn't done here")
	default:
		_ = r.Reply(false, nil)
	}
	return nil
}

// refuseHelper refuses a forwarding that a channel asks for beside its command, which goes on. Clients ask without wanting an answer. Who
// asks again was told already.
func (s *sessionChannel) refuseHelper(r *ssh.Request, kind, reason string) (slow func(context.Context)) {
	_ = r.Reply(false, nil)
	if s.helpers[kind] {
		return nil
	}
	if s.helpers == nil {
		s.helpers = map[string]bool{}
	}
	s.helpers[kind] = true
	return func(ctx context.Context) {
		cmd := proxy.Command{Kind: kind, Scrubbed: r.Type, Account: s.c.account.Name}
		s.say(s.c.core.Refuse(ctx, cmd, proxy.Objection{Class: classForwarding, Reason: reason}).Error())
	}
}

// say writes a line to the agent beside the program's output, while there may be some.
func (s *sessionChannel) say(text string) {
	s.voice.Lock()
	defer s.voice.Unlock()
	if s.quiet {
		return
	}
	_, _ = io.WriteString(s.ch.Stderr(), "deputy: "+printable(text)+"\r\n")
}

// endOutput tells the agent that no more output comes. While something is still being said to an agent that doesn't read, the end of the channel,
// which follows, has to say it.
func (s *sessionChannel) endOutput() {
	if s.voice.TryLock() {
		defer s.voice.Unlock()
		s.quiet = true
		_ = s.ch.CloseWrite()
	}
}

func (s *sessionChannel) askPTY(payload []byte) bool {
	var p ptyRequest
	if s.started || len(payload) > maxPTYRequest || ssh.Unmarshal(payload, &p) != nil || !isTerminal(p.Term) {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pty != nil {
		return false
	}
	s.pty = &p
	return true
}

// terminal is the request for the terminal that the agent asked for, in its present size; nil if it asked for none.
func (s *sessionChannel) terminal() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pty == nil {
		return nil
	}
	return ssh.Marshal(s.pty)
}

// isTerminal says whether a terminal's name is one: it becomes the variable TERM.
func isTerminal(name string) bool {
	if len(name) > 64 {
		return false
	}
	for i := range len(name) {
		if c := name[i]; (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' && c != '.' && c != '+' {
			return false
		}
	}
	return true
}

func (s *sessionChannel) askVariable(r *ssh.Request) bool {
	var v struct{ Name, Value string }
	if s.started || len(s.variables) >= maxVariables || ssh.Unmarshal(r.Payload, &v) != nil || !s.c.e.allows(v.Name, v.Value) {
		return false
	}
	s.variables = append(s.variables, r)
	return true
}

// resize tells the program's terminal, or the one that is yet to be.
func (s *sessionChannel) resize(w windowChange, payload []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running != nil {
		if s.running.rec != nil {
			s.running.rec.Resize(w.Columns, w.Rows)
		}
		s.running.tell(queuedAfter{"window-change", payload})
	} else if s.pty != nil {
		s.pty.Columns, s.pty.Rows, s.pty.Width, s.pty.Height = w.Columns, w.Rows, w.Width, w.Height
		s.resized = true
	}
}

// pass hands a request on to the running program, or keeps it until there is one. Where the target takes none, some are dropped.
func (s *sessionChannel) pass(kind string, payload []byte) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running != nil {
		return s.running.tell(queuedAfter{kind, payload})
	}
	if !s.started || len(s.before) >= maxQueued {
		return false
	}
	s.before = append(s.before, queuedAfter{kind, payload})
	return true
}

// start decides and starts what the channel is for, and relays it to its end.
func (s *sessionChannel) start(ctx context.Context, r *ssh.Request) {
	what, objection := s.c.parseStart(r)
	if objection == nil {
		objection = s.c.still()
	}
	if objection == nil && s.terminal() != nil {
		objection = s.noTerminal(what)
	}
	if objection != nil {
		s.refuse(r, s.c.core.Refuse(ctx, what.cmd, *objection).Error())
		return
	}
	pass, err := s.c.core.Authorize(ctx, what.cmd)
	if err != nil {
		s.refuse(r, forAgent(err, "this couldn't be decided").Error())
		return
	}
	if err := pass.Use(); err != nil {
		_ = pass.Completed(ctx, proxy.Outcome{Status: "not_sent"})
		s.refuse(r, forAgent(err, "the session is over").Error())
		return
	}
	p, err := s.launch(what, pass, s.recorder(ctx, what, pass))
	if err != nil {
		s.c.log.InfoContext(ctx, "the target didn't start a command", "kind", what.kind, "error", err)
		o := proxy.Outcome{Status: s.c.status("error"), Code: classTarget}
		if errors.Is(err, errOver) {
			o = proxy.Outcome{Status: "not_sent"}
		}
		_ = pass.Completed(ctx, o)
		s.refuse(r, "the target didn't start it (record: "+pass.RecordID().String()+")")
	} else {
		_ = r.Reply(true, nil)
		if what.sftp {
			p.files = &files{s: s}
		}
		p.relay(ctx, s)
		p.c.forget(p)
	}
	if p != nil {
		// Until the target has closed its side, too, its channel takes memory here, and so the agent's place.
		<-p.closed
	}
}

// noTerminal says why something may not run on a terminal, or nil. OpenSSH's client shows no reason where the terminal itself is refused.
func (s *sessionChannel) noTerminal(what start) *proxy.Objection {
	switch {
	case s.c.e.cfg.Restricted:
		return &proxy.Objection{Class: classRestricted, Reason: "this target gives no terminal; ask for none"}
	case what.sftp:
		// A terminal rewrites what passes it, so that the target would read other packets than were decided.
		return &proxy.Objection{Class: classUnsupported, Reason: "the subsystem sftp doesn't run on a terminal; ask for none"}
	}
	return nil
}

// refuse says on the agent's stderr why nothing was started. The request itself succeeds: OpenSSH's client ends at once where it fails, and
// throws away what was said.
func (s *sessionChannel) refuse(r *ssh.Request, text string) {
	_ = r.Reply(true, nil)
	s.say(text)
	// In sshd's order: OpenSSH's client, as the master of a shared connection, forgets a status that comes behind the end of the output.
	_, _ = s.ch.SendRequest("exit-status", false, ssh.Marshal(struct{ Status uint32 }{exitRefused}))
	s.endOutput()
	_ = s.ch.Close()
}

// launch opens a channel at the target and asks for what was decided, byte for byte. Where that fails it returns the program, too, if there is a
// channel to be closed.
func (s *sessionChannel) launch(what start, pass Pass, rec *recording.Recorder) (*program, error) {
	ch, requests, err := s.c.up.conn.OpenChannel("session", nil)
	if err != nil {
		return nil, err
	}
	p := &program{
		c: s.c, agent: s, ch: ch, requests: requests, pass: pass, rec: rec, ended: make(chan struct{}), closed: make(chan struct{}), told: make(chan queuedAfter, maxQueued+1),
	}
	fail := func(err error) (*program, error) {
		_ = ch.Close()
		s.c.tasks.Go(func() {
			ssh.DiscardRequests(requests)
			close(p.closed)
		})
		return p, err
	}
	for _, v := range s.variables {
		if _, err := ch.SendRequest("env", false, v.Payload); err != nil {
			return fail(err)
		}
	}
	if pty := s.terminal(); pty != nil {
		if ok, err := ch.SendRequest("pty-req", true, pty); err != nil || !ok {
			return fail(refusedBy("a terminal", err))
		}
	}
	if !s.c.keep(p) {
		return fail(errOver)
	}
	pass.Forwarded(int64(len(what.payload)))
	if ok, err := ch.SendRequest(what.kind, true, what.payload); err != nil || !ok {
		s.c.forget(p)
		return fail(refusedBy("a "+what.kind, err))
	}
	s.c.tasks.Go(p.tellTarget)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running = p
	for _, b := range s.before {
		p.tell(b)
	}
	s.before = nil
	if s.resized {
		if rec != nil {
			rec.Resize(s.pty.Columns, s.pty.Rows)
		}
		p.tell(queuedAfter{"window-change", ssh.Marshal(windowChange{s.pty.Columns, s.pty.Rows, s.pty.Width, s.pty.Height})})
	}
	return p, nil
}
