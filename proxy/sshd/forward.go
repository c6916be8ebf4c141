package sshd

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"path"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/policy"
	"github.com/deputymesh/deputy/proxy"
)

type directTCP struct {
	Host       string
	Port       uint32
	OriginHost string
	OriginPort uint32
}

type directSocket struct {
	Path     string
	Reserved string
	Port     uint32
}

// hostOf is the one spelling of a host: a name in lower case, or an address as netip writes it. What a resolver would take for an
// address or a name that has another spelling (127.1, 0x7f.1, ::ffff:127.0.0.1, "localhost.") is that spelling or refused, so that no rule
// about a destination is led around by another way to write it.
func hostOf(s string) (string, error) {
	if ip, err := netip.ParseAddr(s); err == nil {
		if ip = ip.Unmap(); ip.Zone() != "" {
			return "", errors.New("an address with a zone")
		}
		if ip.IsUnspecified() { // who connects to it reaches the host itself, by a name that no rule has
			return "", errors.New("every address at once")
		}
		return ip.String(), nil
	}
	host := strings.ToLower(s)
	labels := strings.Split(host, ".")
	for _, l := range labels {
		if l == "" || strings.Trim(l, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
			return "", errors.New("neither a host name (letters, digits and - between single dots) nor an address")
		}
	}
	// inet_aton takes a text for an address whose last part is a number, in whichever base.
	if last := labels[len(labels)-1]; last[0] >= '0' && last[0] <= '9' {
		if _, err := strconv.ParseUint(last, 0, 64); err == nil || strings.Trim(last, "0123456789") == "" || last == "0x" {
			return "", errors.New("an address in another form than four numbers from 0 to 255")
		}
	}
	return host, nil
}

// destination is where a channel wants to be forwarded to, in its one canonical form, and what the target is asked for.
func destination(kind string, data []byte) (to string, ask []byte, err error) {
	if kind == "direct-tcpip" {
		var d directTCP
		if err := ssh.Unmarshal(data, &d); err != nil {
			return "", nil, errors.New("the request can't be read")
		}
		host, err := hostOf(d.Host)
		if err != nil {
			return d.Host + ":" + strconv.FormatUint(uint64(d.Port), 10), nil, err
		}
		to = host + ":" + strconv.FormatUint(uint64(d.Port), 10)
		if strings.Contains(host, ":") {
			to = "[" + host + "]:" + strconv.FormatUint(uint64(d.Port), 10)
		}
		// Where it comes from is the agent's matter; the target only writes it down.
		return to, ssh.Marshal(directTCP{host, d.Port, "127.0.0.1", 0}), actor.CheckForward(to)
	}
	var d directSocket
	if err := ssh.Unmarshal(data, &d); err != nil {
		return "", nil, errors.New("the request can't be read")
	}
	if !path.IsAbs(d.Path) {
		return "", nil, errors.New("the path of a socket must be absolute")
	}
	return d.Path, ssh.Marshal(directSocket{Path: d.Path}), actor.CheckForward(d.Path)
}

// serveForward decides one forwarded connection and relays it.
func (c *connection) serveForward(ctx context.Context, n ssh.NewChannel) {
	reject := func(r error) { _ = n.Reject(ssh.Prohibited, "deputy: "+clip(printable(r.Error()), 1024)) }
	to, ask, err := destination(n.ChannelType(), n.ExtraData())
	cmd := proxy.Command{Kind: "forward", Account: c.account.Name, Text: "forward " + to, Scrubbed: "forward " + clip(printable(to), 1024), Check: opaque}
	if err != nil {
		reject(c.core.Refuse(ctx, cmd, proxy.Objection{Class: classMalformed, Reason: "where the forwarding leads to can't be decided: " + err.Error()}))
		return
	}
	cmd.Ops = []proxy.Op{c.e.op("forward", policy.Forward(c.e.name, c.account.Name, to), true)}
	if !c.e.cfg.Forwarding {
		reject(c.core.Refuse(ctx, cmd, proxy.Objection{Class: classForwarding, Reason: "forwarding is off for this target"}))
		return
	}
	if o := c.still(); o != nil {
		reject(c.core.Refuse(ctx, cmd, *o))
		return
	}
	pass, err := c.core.Authorize(ctx, cmd)
	if err != nil {
		reject(forAgent(err, "this couldn't be decided"))
		return
	}
	if err := pass.Use(); err != nil {
		_ = pass.Completed(ctx, proxy.Outcome{Status: "not_sent"})
		reject(forAgent(err, "the session is over"))
		return
	}
	pass.Forwarded(int64(len(ask)))
	up, requests, err := c.up.conn.OpenChannel(n.ChannelType(), ask)
	if err != nil {
		_ = pass.Completed(ctx, proxy.Outcome{Status: c.status("error"), Code: classTarget})
		_ = n.Reject(ssh.ConnectionFailed, "deputy: the target didn't open it (record: "+pass.RecordID().String()+")")
		return
	}
	targetGone := c.discard(requests)
	agent, requests, err := n.Accept()
	if err != nil {
		_ = up.Close()
		_ = pass.Completed(ctx, proxy.Outcome{Status: "cut"})
		return
	}
	bytes := c.join(agent, requests, up, targetGone)
	_ = pass.Completed(context.WithoutCancel(ctx), proxy.Outcome{Status: c.status("ok"), Command: "forward", Bytes: bytes})
}

// discard answers what a target asks on a channel, until the target closes it.
func (c *connection) discard(requests <-chan *ssh.Request) (gone <-chan struct{}) {
	over := make(chan struct{})
	c.tasks.Go(func() {
		ssh.DiscardRequests(requests)
		close(over)
	})
	return over
}

// join relays between two channels until both are over, and gives the number of bytes that went to the agent.
func (c *connection) join(agent ssh.Channel, requests <-chan *ssh.Request, up ssh.Channel, targetGone <-chan struct{}) int64 {
	var bytes atomic.Int64
	var both sync.WaitGroup
	sent := make(chan struct{})
	both.Go(func() {
		defer close(sent)
		_, _ = io.Copy(up, struct{ io.Reader }{agent})
		_ = up.CloseWrite()
	})
	both.Go(func() {
		// It fails where the agent has closed its channel; what ends the target's then is below.
		_, _ = io.Copy(counted{agent, &bytes}, struct{ io.Reader }{up})
		_ = agent.CloseWrite()
		// The target may have ended one direction only.
		<-targetGone
		_ = agent.Close()
	})
	// Whoever closes its channel ends both: half of a connection is only left by CloseWrite. What the agent sent before still goes to the target, for
	// as long as it takes it.
	gone := make(chan struct{})
	c.tasks.Go(func() {
		for r := range requests {
			_ = r.Reply(false, nil)
		}
		patience := time.NewTimer(drainTime)
		defer patience.Stop()
		select {
		case <-sent:
		case <-targetGone:
		case <-patience.C:
		}
		_ = up.Close()
		close(gone)
	})
	both.Wait()
	_ = agent.Close()
	_ = up.Close()
	<-gone
	return bytes.Load()
}

// drainTime is how long a target may take for what an agent sent before it closed its end.
const drainTime = 10 * time.Second
