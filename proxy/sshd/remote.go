package sshd

import (
	"context"
	"errors"
	"path"
	"strconv"
	"strings"

	"golang.org/x/crypto/ssh"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/policy"
	"github.com/deputymesh/deputy/proxy"
)

// maxBinds is how many places at the target one connection may listen at.
const maxBinds = 8

// bindTCP is tcpip-forward's payload (RFC 4254 §7.1), bindSocket that of OpenSSH's extension.
type bindTCP struct {
	Host string
	Port uint32
}

type bindSocket struct{ Path string }

// fromTCP and fromSocket are what a target says of a connection to a place where it listens for an agent.
type fromTCP struct {
	Host       string
	Port       uint32
	OriginHost string
	OriginPort uint32
}

type fromSocket struct{ Path, Reserved string }

// bind is a place at the target that an agent asked to be listened at (-R).
type bind struct {
	at      string // in its one canonical form, as it is decided
	kind    string // of the channels that come from it
	asked   string // the agent's own spelling, by which it knows the place
	port    uint32
	request string // what asks the target for it
	payload []byte
}

// parseBind reads where a request wants the target to listen.
func parseBind(kind string, payload []byte) (bind, error) {
	if strings.HasSuffix(kind, "tcpip-forward") {
		var b bindTCP
		if err := ssh.Unmarshal(payload, &b); err != nil {
			return bind{}, errors.New("the request can't be read")
		}
		host, err := hostOf(b.Host)
		if err != nil || b.Port == 0 {
			return bind{at: b.Host + ":" + strconv.FormatUint(uint64(b.Port), 10)}, errors.New("it must name one address and a port, such as localhost:8080")
		}
		at := host + ":" + strconv.FormatUint(uint64(b.Port), 10)
		if strings.Contains(host, ":") {
			at = "[" + host + "]:" + strconv.FormatUint(uint64(b.Port), 10)
		}
		return bind{at, "forwarded-tcpip", b.Host, b.Port, "tcpip-forward", ssh.Marshal(bindTCP{host, b.Port})}, actor.CheckForward(at)
	}
	var b bindSocket
	if err := ssh.Unmarshal(payload, &b); err != nil {
		return bind{}, errors.New("the request can't be read")
	}
	if !path.IsAbs(b.Path) {
		return bind{at: b.Path}, errors.New("the path of a socket must be absolute")
	}
	return bind{b.Path, "forwarded-streamlocal@openssh.com", b.Path, 0, "streamlocal-forward@openssh.com", ssh.Marshal(b)}, actor.CheckForward(b.Path)
}

// serveBind decides whether the target may listen for the agent. SSH has no words for a refusal here; the record has.
func (c *connection) serveBind(ctx context.Context, r *ssh.Request) bool {
	b, err := parseBind(r.Type, r.Payload)
	cmd := c.remoteCommand(b, "remote-forward "+b.at)
	switch {
	case err != nil:
		_ = c.core.Refuse(ctx, cmd, proxy.Objection{Class: classMalformed, Reason: "where the target is to listen can't be decided: " + err.Error()})
		return false
	case !c.e.cfg.Forwarding:
		_ = c.core.Refuse(ctx, cmd, proxy.Objection{Class: classForwarding, Reason: "forwarding is off for this target"})
		return false
	}
	if o := c.still(); o != nil {
		_ = c.core.Refuse(ctx, cmd, *o)
		return false
	}
	c.mu.Lock()
	_, there := c.binds[b.at]
	full := len(c.binds) >= maxBinds
	c.mu.Unlock()
	if there || full {
		_ = c.core.Refuse(ctx, cmd, proxy.Objection{Class: proxy.ClassQuota, Reason: "the connection listens there already, or at as many places as it may"})
		return false
	}
	pass, err := c.core.Authorize(ctx, cmd)
	if err != nil {
		return false
	}
	if err := pass.Use(); err != nil {
		_ = pass.Completed(ctx, proxy.Outcome{Status: "not_sent"})
		return false
	}
	// Known before the target listens: somebody may connect at once.
	c.mu.Lock()
	c.binds[b.at] = b
	c.mu.Unlock()
	pass.Forwarded(int64(len(b.payload)))
	ok, _, err := c.up.conn.SendRequest(b.request, true, b.payload)
	if err != nil || !ok {
		c.mu.Lock()
		delete(c.binds, b.at)
		c.mu.Unlock()
		_ = pass.Completed(ctx, proxy.Outcome{Status: c.status("error"), Code: classTarget})
		return false
	}
	return pass.Completed(ctx, proxy.Outcome{Status: "ok", Command: "remote-forward"}) == nil
}

// cancelBind ends what serveBind began. Nothing is decided: it only takes away.
func (c *connection) cancelBind(r *ssh.Request) bool {
	b, err := parseBind(strings.TrimPrefix(r.Type, "cancel-"), r.Payload)
	if err != nil {
		return false
	}
	c.mu.Lock()
	_, there := c.binds[b.at]
	delete(c.binds, b.at)
	c.mu.Unlock()
	if !there {
		return false
	}
	ok, _, err := c.up.conn.SendRequest("cancel-"+b.request, true, b.payload)
	return err == nil && ok
}

// remoteCommand is the binding of a place, and each connection to it.
func (c *connection) remoteCommand(b bind, text string) proxy.Command {
	cmd := proxy.Command{Kind: "remote-forward", Account: c.account.Name, Text: text, Scrubbed: clip(printable(text), 1024), Check: opaque}
	if actor.CheckForward(b.at) == nil {
		cmd.Ops = []proxy.Op{c.e.op("remote-forward", policy.Forward(c.e.name, c.account.Name, b.at), true)}
	}
	return cmd
}

// serveFromTarget decides one connection that came to a place where the target listens for the agent, and relays it.
func (c *connection) serveFromTarget(ctx context.Context, n ssh.NewChannel) {
	b, origin, ask, ok := c.boundFor(n)
	if !ok {
		_ = n.Reject(ssh.Prohibited, "not opened here")
		return
	}
	if err := c.enter(false); err != nil {
		_ = n.Reject(ssh.ResourceShortage, "deputy: "+err.Error())
		return
	}
	c.tasks.Go(func() {
		defer c.leave()
		c.serveRemote(ctx, n, b, origin, ask)
	})
}

// boundFor is the place that a channel of the target's belongs to, and what the agent is asked.
func (c *connection) boundFor(n ssh.NewChannel) (b bind, origin string, ask []byte, ok bool) {
	at := ""
	var tcp fromTCP
	if n.ChannelType() == "forwarded-tcpip" {
		if ssh.Unmarshal(n.ExtraData(), &tcp) != nil {
			return bind{}, "", nil, false
		}
		if bound, err := parseBind("tcpip-forward", ssh.Marshal(bindTCP{tcp.Host, tcp.Port})); err == nil {
			at = bound.at
		}
		origin = clip(printable(tcp.OriginHost), 64) + ":" + strconv.FormatUint(uint64(tcp.OriginPort), 10)
	} else {
		var socket fromSocket
		if ssh.Unmarshal(n.ExtraData(), &socket) != nil {
			return bind{}, "", nil, false
		}
		at, origin = socket.Path, "the host"
	}
	c.mu.Lock()
	b, ok = c.binds[at]
	c.mu.Unlock()
	if !ok || b.kind != n.ChannelType() {
		return bind{}, "", nil, false
	}
	if b.kind == "forwarded-tcpip" {
		return b, origin, ssh.Marshal(fromTCP{b.asked, b.port, printable(clip(tcp.OriginHost, 64)), tcp.OriginPort}), true
	}
	return b, origin, ssh.Marshal(fromSocket{Path: b.asked}), true
}

func (c *connection) serveRemote(ctx context.Context, n ssh.NewChannel, b bind, origin string, ask []byte) {
	reject := func() { _ = n.Reject(ssh.Prohibited, "deputy: not allowed") } // the reason is the agent's matter
	cmd := c.remoteCommand(b, "connection to "+b.at+" from "+origin)
	if o := c.still(); o != nil {
		_ = c.core.Refuse(ctx, cmd, *o)
		reject()
		return
	}
	pass, err := c.core.Authorize(ctx, cmd)
	if err != nil {
		reject()
		return
	}
	if err := pass.Use(); err != nil {
		_ = pass.Completed(ctx, proxy.Outcome{Status: "not_sent"})
		reject()
		return
	}
	pass.Forwarded(int64(len(ask)))
	agent, fromAgent, err := c.client.OpenChannel(b.kind, ask)
	if err != nil {
		_ = pass.Completed(ctx, proxy.Outcome{Status: c.status("error"), Code: "agent"})
		_ = n.Reject(ssh.ConnectionFailed, "deputy: the agent didn't open it")
		return
	}
	up, fromTarget, err := n.Accept()
	if err != nil {
		_ = agent.Close()
		go ssh.DiscardRequests(fromAgent)
		_ = pass.Completed(ctx, proxy.Outcome{Status: "cut"})
		return
	}
	bytes := c.join(agent, fromAgent, up, c.discard(fromTarget))
	_ = pass.Completed(context.WithoutCancel(ctx), proxy.Outcome{Status: c.status("ok"), Command: "remote-forward", Bytes: bytes})
}
