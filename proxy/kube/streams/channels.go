package streams

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/coder/websocket"

	"github.com/deputymesh/deputy/proxy/internal/recording"
)

// Channels of a command (k8s.io/apimachinery/pkg/util/remotecommand): the first byte of each message.
const (
	stdin   = 0
	stdout  = 1
	stderr  = 2
	outcome = 3
	resize  = 4
	closes  = 255 // since v5: the sender is done with the channel that the second byte names
)

// goodbye is how long an agent may take to hear why a stream ends.
const goodbye = 3 * time.Second

// serveWebSocket carries channels, or SPDY in messages.
func (b *bridge) serveWebSocket(w http.ResponseWriter, r *http.Request) error {
	// 1. The API server agrees.
	var target *websocket.Conn
	begun, err := b.upgrade(w, func(ctx context.Context, send func(*http.Request) (*http.Response, error)) error {
		options := &websocket.DialOptions{
			HTTPClient: &http.Client{
				Transport:     roundTrip(send),
				CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
			},
			HTTPHeader: b.cfg.Request.Header, Host: b.cfg.Request.Host, Subprotocols: b.offer.protocols,
		}
		c, _, err := websocket.Dial(ctx, b.cfg.Request.URL.String(), options) //nolint:bodyclose // the connection is the body
		if err == nil && c.Subprotocol() == "" {
			_ = c.CloseNow()
			return errors.New("it chose no protocol")
		}
		target = c
		return err
	})
	if !begun || err != nil {
		return err
	}
	defer func() { _ = target.CloseNow() }()

	// 2. So does the agent's end, to the same protocol.
	agent, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{target.Subprotocol()}})
	if err != nil {
		return err
	}
	defer func() { _ = agent.CloseNow() }()
	agent.SetReadLimit(maxMessage)
	target.SetReadLimit(maxMessage)

	// 3. What passes.
	if target.Subprotocol() == tunnel {
		from := websocket.NetConn(b.ctx, agent, websocket.MessageBinary)
		return b.relaySPDY(from, websocket.NetConn(b.ctx, target, websocket.MessageBinary), from, func() { _ = target.CloseNow() }, func() {
			_ = agent.Close(websocket.StatusNormalClosure, "")
		})
	}
	// The library closes a connection with the context of a read: then the agent couldn't be told any more.
	c := channels{ctx: context.WithoutCancel(b.ctx), b: b, agent: agent, target: target, halfClose: target.Subprotocol() == v5}
	return b.both(c.toTarget, c.toAgent, func() { _ = target.CloseNow() }, func(err error) {
		c.goodbye(err)
		_ = agent.CloseNow()
	})
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// channels are those of one command.
type channels struct {
	ctx           context.Context // of the agent's end, which is closed when the stream has ended
	b             *bridge
	agent, target *websocket.Conn
	halfClose     bool
}

func (c channels) toTarget() error {
	for {
		kind, m, err := c.agent.Read(c.ctx)
		if err != nil {
			return err
		}
		if err := c.fromAgent(m); err != nil {
			return err
		}
		if err := c.target.Write(c.b.ctx, kind, m); err != nil {
			return err
		}
	}
}

func (c channels) fromAgent(m []byte) error {
	if len(m) == 0 {
		return fmt.Errorf("%w: a message without a channel", ErrAgent)
	}
	switch said := m[1:]; {
	case m[0] == stdin:
		return c.b.input(said)
	case m[0] == resize:
		return c.b.resized(said)
	case m[0] == closes && c.halfClose && len(said) == 1 && said[0] == stdin:
		return nil
	}
	return fmt.Errorf("%w: a message on channel %d", ErrAgent, m[0])
}

func (c channels) toAgent() error {
	for {
		kind, m, err := c.target.Read(c.b.ctx)
		if err != nil {
			return fromTarget{err}
		}
		if err := c.fromTarget(m); err != nil {
			return err
		}
		if err := c.agent.Write(c.ctx, kind, m); err != nil {
			return err
		}
	}
}

func (c channels) fromTarget(m []byte) error {
	if len(m) == 0 {
		return fmt.Errorf("%w: a message without a channel", ErrTarget)
	}
	switch said := m[1:]; m[0] {
	case stdout, stderr:
		return c.b.output(said)
	case outcome:
		if !c.b.status.add(said) {
			return fmt.Errorf("%w: its status is too long", ErrTarget)
		}
		return nil
	}
	return fmt.Errorf("%w: a message on channel %d", ErrTarget, m[0])
}

// fromTarget is the API server's end of a connection.
type fromTarget struct{ error }

func (e fromTarget) Unwrap() error { return e.error }

// goodbye ends the agent's connection: in the API server's words where that has ended its own, and else with a status that says why.
func (c channels) goodbye(why error) {
	said := websocket.CloseError{}
	switch {
	case errors.As(why, &fromTarget{}) && errors.As(why, &said):
		_ = c.agent.Close(said.Code, said.Reason)
	case ours(why):
		ctx, cancel := context.WithTimeout(c.ctx, goodbye)
		defer cancel()
		if c.agent.Write(ctx, websocket.MessageBinary, append([]byte{outcome}, failure(told(why))...)) == nil {
			_ = c.agent.Close(websocket.StatusNormalClosure, "") // with another code client-go doesn't read the status
		}
	}
}

// told is what an agent hears of an error.
func told(why error) string {
	switch {
	case errors.Is(why, recording.ErrFull):
		return "what passed here was recorded and its recording is full; start anew"
	case errors.Is(why, ErrUnrecorded):
		return ErrUnrecorded.Error() // the cause is the proxy's
	}
	return why.Error()
}

// input keeps what goes to a command, before it goes.
func (b *bridge) input(p []byte) error {
	if err := b.keep(p, (*recording.Recorder).Input); err != nil {
		return err
	}
	b.sent.Add(int64(len(p)))
	return nil
}

// output keeps what comes from it.
func (b *bridge) output(p []byte) error {
	if err := b.keep(p, (*recording.Recorder).Output); err != nil {
		return err
	}
	b.received.Add(int64(len(p)))
	return nil
}

func (b *bridge) keep(p []byte, how func(*recording.Recorder, []byte) error) error {
	if b.cfg.Recorder == nil {
		return nil
	}
	for len(p) > 0 {
		n := min(len(p), recording.MaxPiece)
		if err := how(b.cfg.Recorder, p[:n]); err != nil {
			return fmt.Errorf("%w: %w", ErrUnrecorded, err)
		}
		p = p[n:]
	}
	return nil
}

func (b *bridge) resized(p []byte) error {
	width, height, ok := size(p)
	if !ok {
		return fmt.Errorf("%w: a size that can't be read", ErrAgent)
	}
	if b.cfg.Recorder != nil {
		b.cfg.Recorder.Resize(width, height)
	}
	return nil
}
