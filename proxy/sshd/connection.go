package sshd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/deputymesh/deputy/proxy"
)

// When a session ends that neither side ended, what it runs is asked to end, then ended, then cut off.
const (
	// sayWithin is how long a program's signal waits for the agent to take why.
	sayWithin  = 100 * time.Millisecond
	killAfter  = 200 * time.Millisecond
	closeAfter = 400 * time.Millisecond
	// hearAfter is how long a target may take to hear of the signals.
	hearAfter = 200 * time.Millisecond
	// goodbyeTimeout bounds the last message to an agent.
	goodbyeTimeout = 200 * time.Millisecond
)

// connection is one agent's connection with its own connection to the target.
type connection struct {
	e        *Engine
	core     Session
	client   ssh.Conn
	channels <-chan ssh.NewChannel
	requests <-chan *ssh.Request
	up       *upstream
	raw      net.Conn // below TLS
	account  Account
	log      *slog.Logger

	mu      sync.Mutex
	open    int // guarded by mu: channels
	closed  bool
	cut     bool // by the end of the session, or of the proxy
	noMore  bool // the agent said that it wants no more sessions
	running map[*program]struct{}
	binds   map[string]bind // where the target listens for the agent
	tasks   sync.WaitGroup
}

func newConnection(g *greeting, client ssh.Conn, channels <-chan ssh.NewChannel, requests <-chan *ssh.Request) *connection {
	return &connection{
		e: g.e, core: g.core, client: client, channels: channels, requests: requests, up: g.up, account: g.account, raw: g.conn.NetConn(),
		log:     g.e.cfg.Logger.With("session", g.core.ID(), "target", g.e.name),
		running: map[*program]struct{}{}, binds: map[string]bind{},
	}
}

// run relays until one side ends, then ends the other. It returns why, for the record.
func (c *connection) run(ctx context.Context) (reason, detail string) {
	ctx, cancel := context.WithCancel(ctx)
	defer c.tasks.Wait()
	defer cancel()
	clientGone, upGone := make(chan error, 1), make(chan error, 1)
	c.tasks.Go(func() { c.serveRequests(ctx) })
	c.tasks.Go(func() {
		c.serveChannels(ctx)
		clientGone <- over(c.client)
	})
	// A target has nothing to ask of an agent: it may see whether the proxy lives, and opens channels only for who came to a place where it listens
	// for the agent.
	c.tasks.Go(func() {
		for r := range c.up.requests {
			_ = r.Reply(false, nil)
		}
	})
	c.tasks.Go(func() {
		for n := range c.up.channels {
			c.serveFromTarget(ctx, n)
		}
		upGone <- over(c.up.conn)
	})

	var message string
	signal := ""
	select {
	case err := <-clientGone:
		reason, signal = "client", "HUP"
		if err != nil && !isEnd(err) {
			detail = err.Error()
		}
	case err := <-upGone:
		reason, detail = "upstream", "the target closed the connection" // each program says so
		if err != nil && !isEnd(err) {
			detail = err.Error()
		}
	case <-c.core.Context().Done():
	case <-ctx.Done():
	}
	if cause := context.Cause(c.core.Context()); cause != nil {
		reason, detail = "ended", cause.Error()
		message, signal = "this session has ended: "+cause.Error(), "TERM"
	} else if reason == "" {
		reason, message, signal = "shutdown", "this proxy is shutting down; connect again", "TERM"
	}
	c.end(message, signal)
	return reason, detail
}

// end tells whoever still listens why, signals what still runs, and closes both connections.
func (c *connection) end(message, signal string) {
	c.mu.Lock()
	c.closed, c.cut = true, message != ""
	var running []*program
	for p := range c.running {
		running = append(running, p)
	}
	c.mu.Unlock()
	// Either peer may have stopped reading, so nobody waits long for what is said here; closing the connections frees it.
	for _, p := range running {
		c.tasks.Go(func() { p.sayAndSignal(message, signal) })
	}
	if !allEnded(running, killAfter) && signal == "TERM" {
		for _, p := range running {
			c.tasks.Go(func() { p.signal("KILL") })
		}
		allEnded(running, closeAfter-killAfter)
	}
	// A connection that is closed while the target still sends is reset, and what the target hasn't read by then, such as a signal, is lost. So the
	// target is asked for something, and closed when it answers: it has read all that came before.
	heard := make(chan struct{})
	if signal != "" {
		c.tasks.Go(func() {
			defer close(heard)
			_, _, _ = c.up.conn.SendRequest("keepalive@openssh.com", true, nil)
		})
	} else {
		close(heard)
	}
	patience := time.NewTimer(hearAfter)
	defer patience.Stop()
	// TLS says goodbye first, and would wait for seconds for a peer that doesn't read.
	impatient := time.AfterFunc(goodbyeTimeout, func() { _ = c.raw.Close() })
	_ = c.client.Close()
	impatient.Stop()
	select {
	case <-heard:
	case <-patience.C:
	}
	_ = c.up.conn.Close()
}

// status is what became of something on the connection that ended in some way, unless the connection was ended from here: then that was its end.
func (c *connection) status(own string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cut {
		return "cut"
	}
	return own
}

// allEnded waits, but not for long, until the programs have ended.
func allEnded(list []*program, patience time.Duration) bool {
	over := time.NewTimer(patience)
	defer over.Stop()
	for _, p := range list {
		select {
		case <-p.ended:
		case <-over.C:
			return false
		}
	}
	return true
}

// serveRequests answers what concerns the connection as a whole.
func (c *connection) serveRequests(ctx context.Context) {
	for r := range c.requests {
		switch r.Type {
		case "no-more-sessions@openssh.com":
			c.mu.Lock()
			c.noMore = true
			c.mu.Unlock()
			_ = r.Reply(true, nil)
		case "tcpip-forward", "streamlocal-forward@openssh.com":
			_ = r.Reply(c.serveBind(ctx, r), nil)
		case "cancel-tcpip-forward", "cancel-streamlocal-forward@openssh.com":
			_ = r.Reply(c.cancelBind(r), nil)
		default:
			// keepalive@openssh.com among them: any answer says that this side lives.
			_ = r.Reply(false, nil)
		}
	}
}

var errTooMany = errors.New("too many channels")

// enter counts a channel.
func (c *connection) enter(session bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed || session && c.noMore:
		return errors.New("no more sessions are opened on this connection")
	case c.open >= c.e.cfg.MaxChannels:
		return errTooMany
	}
	if err := c.e.seats.take(c.core.Owner()); err != nil {
		return err
	}
	c.open++
	return nil
}

func (c *connection) leave() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open--
	c.e.seats.giveBack(c.core.Owner())
}

func (c *connection) serveChannels(ctx context.Context) {
	for n := range c.channels {
		kind := n.ChannelType()
		switch kind {
		case "session", "direct-tcpip", "direct-streamlocal@openssh.com":
		default:
			r := c.core.Refuse(ctx, proxy.Command{Kind: "channel", Scrubbed: "channel " + clip(printable(kind), 64), Account: c.account.Name},
				proxy.Objection{Class: classUnsupported, Reason: fmt.Sprintf("channels of the type %q aren't opened here", clip(printable(kind), 64))})
			_ = n.Reject(ssh.UnknownChannelType, "deputy: "+printable(r.Error()))
			continue
		}
		if err := c.enter(kind == "session"); err != nil {
			_ = n.Reject(ssh.ResourceShortage, "deputy: "+err.Error())
			continue
		}
		c.tasks.Go(func() {
			defer c.leave()
			if kind == "session" {
				c.serveSession(ctx, n)
			} else {
				c.serveForward(ctx, n)
			}
		})
	}
}

// still says why the connection may not go on as its account, or nil: a renewed credential may have fewer roles.
func (c *connection) still() *proxy.Objection {
	if c.account.mayBeUsed(c.core.Roles()) {
		return nil
	}
	return &proxy.Objection{Class: proxy.ClassPolicy, Reason: fmt.Sprintf("none of the user's roles may use account %q any more", c.account.Name)}
}

// keep makes the connection answer for a program until it has ended. It fails when the connection is over.
func (c *connection) keep(p *program) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	c.running[p] = struct{}{}
	return true
}

func (c *connection) forget(p *program) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.running, p)
	close(p.ended)
}
