package sshd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/deputymesh/deputy/proxy"
	"github.com/deputymesh/deputy/proxy/internal/recording"
)

// outputGrace is how long a program's output may still come when its exit is known. A real server tells the exit at once, too, and goes on
// with what a child that was left behind writes.
const outputGrace = 500 * time.Millisecond

const relayBuffer = 32 << 10

var errOver = errors.New("the connection is over")

func refusedBy(what string, err error) error {
	if err != nil {
		return err
	}
	return fmt.Errorf("the target refused %s", what)
}

// program is what runs at the target for one channel.
type program struct {
	c        *connection
	agent    *sessionChannel
	ch       ssh.Channel // at the target
	requests <-chan *ssh.Request
	pass     Pass
	bytes    atomic.Int64  // that went to the agent
	ended    chan struct{} // closed when the program is forgotten
	closed   chan struct{} // closed when the target has closed the channel
	files    *files        // of the subsystem sftp: who decides its requests
	told     chan queuedAfter
	rec      *recording.Recorder
	lost     sync.Once   // the recording
	cutOff   atomic.Bool // by the proxy, which says why itself
}

// tell hands the program something that the agent says beside its input, unless the target is too far behind.
func (p *program) tell(q queuedAfter) bool {
	select {
	case p.told <- q:
		return true
	default:
		return false
	}
}

// tellTarget sends what the program is told, for as long as it runs.
func (p *program) tellTarget() {
	for {
		select {
		case q := <-p.told:
			_, _ = p.ch.SendRequest(q.kind, false, q.payload) // where the target has gone, its end says so
		case <-p.ended:
			return
		}
	}
}

// say tells the agent something beside the program's output.
func (p *program) say(text string) {
	if text != "" {
		p.agent.say(text)
	}
}

// sayAndSignal tells the agent why the program is ended, and sends it the signal. Behind the end of a program nothing can be said, so the signal
// comes after, but it doesn't wait long for an agent that doesn't read. It returns when the signal has left.
func (p *program) sayAndSignal(text, signal string) {
	said := make(chan struct{})
	p.c.tasks.Go(func() {
		defer close(said)
		p.say(text)
	})
	patience := time.NewTimer(sayWithin)
	defer patience.Stop()
	select {
	case <-said:
	case <-patience.C:
	}
	if signal != "" {
		p.signal(signal)
	}
}

// signal sends a signal to the program. Not every server takes it: OpenSSH's doesn't for root, forced commands and subsystems.
func (p *program) signal(name string) {
	_, _ = p.ch.SendRequest("signal", false, ssh.Marshal(struct{ Name string }{name}))
}

// exit is how a program ended, as the target tells it.
type exit struct {
	kind    string // "exit-status" or "exit-signal"
	payload []byte
	outcome proxy.Outcome
}

// spoilt is the end of a session whose agent sent what can't be read.
var spoilt = exit{
	kind: "exit-status", payload: ssh.Marshal(struct{ Status uint32 }{exitRefused}), outcome: proxy.Outcome{Status: "error", Code: classMalformed},
}

// unrecorded is the end of a program whose recording failed: by the signal that it was sent for it.
var unrecorded = exit{
	kind: "exit-signal",
	payload: ssh.Marshal(struct {
		Signal            string
		CoreDumped        bool
		Message, Language string
	}{Signal: "HUP"}),
	outcome: proxy.Outcome{Status: "cut", Code: "unrecorded"},
}

// relay carries everything between agent and target until the program has ended.
func (p *program) relay(ctx context.Context, s *sessionChannel) {
	// 1. What the agent sends, with its end.
	// 2. What the program writes. Both streams are read always: they share one window.
	var output sync.WaitGroup
	if p.files != nil {
		ended := make(chan struct{})
		p.c.tasks.Go(func() { p.serveFiles(ctx, ended) })
		output.Go(func() {
			<-ended
			p.files.shutWriting()
		})
	} else {
		p.c.tasks.Go(func() {
			_, err := io.CopyBuffer(p.toTarget(), struct{ io.Reader }{s.ch}, make([]byte, relayBuffer))
			if err == nil {
				_ = p.ch.CloseWrite()
			}
		})
		output.Go(func() { p.copyOut(s.ch, p.ch) })
	}
	output.Go(func() { p.copyOut(s.ch.Stderr(), p.ch.Stderr()) })
	written := make(chan struct{})
	p.c.tasks.Go(func() {
		output.Wait()
		close(written)
	})
	// 3. How it ended. The channel of requests is closed when the target closes its side.
	exits := make(chan exit, 1)
	p.c.tasks.Go(func() {
		defer close(p.closed)
		p.serveRequests(exits)
	})

	// 4. The outcome, before the agent hears it.
	var ended exit
	left := false
	select {
	case ended = <-exits:
	case <-p.closed:
	case <-s.gone:
		left = true
	}
	if ended.kind == "" { // of several that came at once, how it ended counts
		select {
		case ended = <-exits:
			left = false
		default:
		}
	}
	if left {
		// The agent has closed the channel, or it was closed from here: nobody is left to run it for.
		p.signal("HUP")
		_ = p.ch.Close()
		p.complete(ctx, proxy.Outcome{Status: p.c.status("cancelled")})
		return
	}
	if p.files != nil && p.files.spoilt.Load() {
		ended = spoilt
	}
	if ended.kind != "" {
		grace := time.NewTimer(outputGrace)
		defer grace.Stop()
		select {
		case <-written:
		case <-s.gone:
		case <-grace.C:
		}
		if p.cutOff.Load() { // what it wrote may not have come whole, however it ended
			ended = unrecorded
		}
		p.complete(ctx, ended.outcome)
		_, _ = s.ch.SendRequest(ended.kind, false, ended.payload)
	}
	heard := true
	select {
	case <-written:
	case <-s.gone:
		heard = false // and nobody listens any more
	}
	if ended.kind == "" {
		o := proxy.Outcome{Status: "cut"}
		if p.cutOff.Load() {
			o = unrecorded.outcome
		}
		p.complete(ctx, o)
		if p.c.core.Context().Err() == nil && !p.cutOff.Load() {
			p.say("the target closed the connection, or this part of it, without saying how it ended")
		}
	}
	if heard {
		s.endOutput()
	}
	select {
	case <-p.closed:
	case <-s.gone:
	}
	_ = s.ch.Close()
	_ = p.ch.Close()
}

func (p *program) copyOut(to io.Writer, from io.Reader) {
	_, err := io.CopyBuffer(p.toAgent(to), struct{ io.Reader }{from}, make([]byte, relayBuffer))
	if err != nil {
		// The agent takes nothing any more. The program must not hang for that, nor its other stream.
		_, _ = io.Copy(io.Discard, from)
	}
}

type counted struct {
	w io.Writer
	n *atomic.Int64
}

func (c counted) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.n.Add(int64(n))
	return n, err
}

func (p *program) complete(ctx context.Context, o proxy.Outcome) {
	o.Bytes = p.bytes.Load()
	if err := p.pass.Completed(context.WithoutCancel(ctx), o); err != nil {
		p.c.log.ErrorContext(ctx, "an outcome couldn't be recorded", "error", err)
	}
}

// serveRequests takes what the target says about the program. Only its exit is handed on.
func (p *program) serveRequests(exits chan<- exit) {
	told := false
	for r := range p.requests {
		e, ok := readExit(r)
		_ = r.Reply(ok && !told, nil)
		if ok && !told {
			told = true
			e.outcome.Status = p.c.status(e.outcome.Status) // where signals were sent from here, it is their end
			exits <- e
		}
	}
}

func readExit(r *ssh.Request) (exit, bool) {
	e := exit{kind: r.Type, payload: r.Payload}
	switch r.Type {
	case "exit-status":
		var body struct{ Status uint32 }
		if ssh.Unmarshal(r.Payload, &body) != nil {
			return e, false
		}
		code := "exit " + strconv.FormatUint(uint64(body.Status), 10)
		e.outcome = proxy.Outcome{Status: "ok", Command: code}
		if body.Status != 0 {
			e.outcome.Status, e.outcome.Code = "error", code
		}
		return e, true
	case "exit-signal":
		var body struct {
			Signal     string
			CoreDumped bool
			Message    string
			Language   string
		}
		if len(r.Payload) > 4<<10 || ssh.Unmarshal(r.Payload, &body) != nil {
			return e, false
		}
		e.outcome = proxy.Outcome{Status: "error", Command: "signal " + clip(printable(body.Signal), 32), Code: "SIG" + clip(printable(body.Signal), 8)}
		return e, true
	}
	return e, false
}
