package streams

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/moby/spdystream/spdy"
)

// serveSPDY carries streams of SPDY, without a WebSocket around them.
func (b *bridge) serveSPDY(w http.ResponseWriter, r *http.Request) error {
	// 1. The API server agrees.
	var target io.ReadWriteCloser
	var chosen string
	begun, err := b.upgrade(w, func(ctx context.Context, send func(*http.Request) (*http.Response, error)) error {
		q := b.cfg.Request.Clone(ctx)
		q.Method, q.Body, q.ContentLength = r.Method, nil, 0
		q.Header.Set("Connection", "Upgrade")
		q.Header.Set("Upgrade", spdyVersion)
		q.Header[protocolHeader] = b.offer.protocols
		a, err := send(q) //nolint:bodyclose // the connection is the body
		if err != nil || a.StatusCode != http.StatusSwitchingProtocols {
			return err
		}
		var ok bool
		if target, ok = a.Body.(io.ReadWriteCloser); !ok {
			return errors.New("its connection can't be written to")
		}
		chosen = a.Header.Get(protocolHeader)
		if !strings.EqualFold(a.Header.Get("Upgrade"), spdyVersion) || !tokenIn(a.Header.Values("Connection"), "upgrade") || !slices.Contains(b.offer.protocols, chosen) {
			_ = target.Close()
			return fmt.Errorf("it chose %q, %q", a.Header.Get("Upgrade"), chosen)
		}
		return nil
	})
	if !begun || err != nil {
		return err
	}
	defer func() { _ = target.Close() }()

	// 2. So does the agent's end.
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return err
	}
	head := w.Header().Clone()
	head.Set("Connection", "Upgrade")
	head.Set("Upgrade", spdyVersion)
	head.Set(protocolHeader, chosen)
	out := bufio.NewWriter(conn)
	_, _ = io.WriteString(out, "HTTP/1.1 101 Switching Protocols\r\n")
	_ = head.Write(out)
	_, _ = io.WriteString(out, "\r\n")
	if err := out.Flush(); err != nil {
		return err
	}

	// 3. What passes. Past what it has read ahead, the server's own reader isn't used: at the agent's end it ends the request's context, as if the session were over.
	early, err := buffered.Peek(buffered.Reader.Buffered())
	if err != nil {
		return err
	}
	return b.relaySPDY(conn, target, io.MultiReader(bytes.NewReader(early), conn), func() { _ = target.Close() }, func() { _ = conn.Close() })
}

// relaySPDY carries frames. early reads from the agent what it sent ahead, and then what it sends.
func (b *bridge) relaySPDY(agent, target io.ReadWriteCloser, early io.Reader, closeTarget, closeAgent func()) error {
	s := &session{b: b, streams: map[spdy.StreamId]*stream{}, forwards: map[string]*forward{}}
	var err error
	if s.agent, err = newPeer(agent, early); err != nil {
		return err
	}
	if s.target, err = newPeer(target, target); err != nil {
		return err
	}
	defer s.over() // what was opened meanwhile
	return b.both(s.toTarget, s.toAgent, func() {
		closeTarget()
		s.over()
	}, func(err error) {
		s.goodbye(err)
		closeAgent()
	})
}

// session is a connection of SPDY from end to end.
type session struct {
	b             *bridge
	agent, target *peer
	last          spdy.StreamId // that the agent opened

	mu       sync.Mutex // guards what follows
	streams  map[spdy.StreamId]*stream
	forwards map[string]*forward // by the agent's id of a request
}

// stream is one that the agent opened.
type stream struct {
	id   spdy.StreamId
	kind string
	of   *forward
	// here is a stream that the API server knows nothing of, or nothing any more.
	here bool
	// Whose last word was said.
	agentDone, targetDone bool
}

// toTarget carries what the agent says.
func (s *session) toTarget() error {
	for {
		f, err := s.agent.in.next()
		if err != nil {
			return broken(err, ErrAgent)
		}
		switch f := f.(type) {
		case *spdy.SynStreamFrame:
			err = s.open(f)
		case *spdy.DataFrame:
			err = s.data(f, true)
		case *spdy.RstStreamFrame:
			err = s.reset(f, s.target, true)
		case *spdy.PingFrame, *spdy.GoAwayFrame:
			err = s.target.write(f)
		default:
			err = fmt.Errorf("%w: %T", ErrAgent, f)
		}
		if err != nil {
			return err
		}
	}
}

// toAgent carries what the API server says.
func (s *session) toAgent() error {
	for {
		f, err := s.target.in.next()
		if err != nil {
			return broken(err, ErrTarget)
		}
		switch f := f.(type) {
		case *spdy.SynReplyFrame:
			if s.known(f.StreamId) {
				err = s.agent.write(&spdy.SynReplyFrame{StreamId: f.StreamId, CFHeader: spdy.ControlFrameHeader{}, Headers: http.Header{}})
			}
		case *spdy.DataFrame:
			err = s.data(f, false)
		case *spdy.RstStreamFrame:
			err = s.reset(f, s.agent, false)
		case *spdy.PingFrame, *spdy.GoAwayFrame:
			err = s.agent.write(f)
		default:
			err = fmt.Errorf("%w: %T", ErrTarget, f) // it opens no streams
		}
		if err != nil {
			return err
		}
	}
}

// broken tells a connection's end from what can't be read on it.
func broken(err, whose error) error {
	var read net.Error
	if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || errors.As(err, &read) || errors.Is(err, context.Canceled) {
		return err
	}
	return fmt.Errorf("%w: %w", whose, err)
}

func (s *session) known(id spdy.StreamId) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.streams[id]
	return t != nil && !t.here
}

// open judges a stream that the agent opens.
func (s *session) open(f *spdy.SynStreamFrame) error {
	fin := f.CFHeader.Flags & spdy.ControlFlagFin
	if f.StreamId%2 == 0 || f.StreamId <= s.last || f.AssociatedToStreamId != 0 || f.CFHeader.Flags != fin {
		return fmt.Errorf("%w: it opens stream %d after %d", ErrAgent, f.StreamId, s.last)
	}
	s.last = f.StreamId
	t := &stream{id: f.StreamId, kind: only(f.Headers, "Streamtype"), agentDone: fin != 0}
	headers := http.Header{"Streamtype": {t.kind}}
	if s.b.cfg.Kind == PortForward {
		no, err := s.openForward(t, f.Headers)
		if err != nil {
			return err
		}
		if no != "" {
			return s.refuse(t, no)
		}
		headers.Set("Port", only(f.Headers, "Port"))
		headers.Set("Requestid", t.of.request)
	} else if err := s.openCommand(t); err != nil {
		return err
	}
	s.mu.Lock()
	s.streams[t.id] = t
	s.mu.Unlock()
	return s.target.write(&spdy.SynStreamFrame{
		StreamId: f.StreamId, Priority: f.Priority, CFHeader: spdy.ControlFrameHeader{Flags: fin}, Headers: headers,
	})
}

// only is the one value of a header.
func only(h http.Header, name string) string {
	if v := h[name]; len(v) == 1 {
		return v[0]
	}
	return ""
}

// openCommand lets each stream of a command be opened once.
func (s *session) openCommand(t *stream) error {
	if !slices.Contains([]string{"error", "stdin", "stdout", "stderr", "resize"}, t.kind) {
		return fmt.Errorf("%w: a stream of another kind", ErrAgent)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, other := range s.streams {
		if other.kind == t.kind {
			return fmt.Errorf("%w: %s twice", ErrAgent, t.kind)
		}
	}
	return nil
}

// data judges a frame of data, and passes it on.
func (s *session) data(f *spdy.DataFrame, fromAgent bool) error {
	fin := f.Flags&spdy.DataFlagFin != 0
	s.mu.Lock()
	t := s.streams[f.StreamId]
	if t == nil || t.here && !fromAgent {
		s.mu.Unlock()
		return nil // it was reset at the other end
	}
	done := &t.targetDone
	if fromAgent {
		done = &t.agentDone
	}
	after, passes := *done, !t.here
	*done = after || fin
	s.mu.Unlock()
	whose, to := ErrTarget, s.agent
	if fromAgent {
		whose, to = ErrAgent, s.target
	}
	if after {
		return fmt.Errorf("%w: data after the end of a stream", whose)
	}
	if passes {
		if err := s.judge(t, f.Data, fromAgent); err != nil {
			return err
		}
		if err := to.write(f); err != nil {
			return err
		}
	}
	s.forget(t, false)
	return nil
}

// judge reads data by what its stream is for.
func (s *session) judge(t *stream, data []byte, fromAgent bool) error {
	if len(data) == 0 {
		return nil
	}
	switch {
	case t.kind == "data" && fromAgent:
		s.b.sent.Add(int64(len(data)))
		t.of.sent.Add(int64(len(data)))
	case t.kind == "data":
		s.b.received.Add(int64(len(data)))
		t.of.received.Add(int64(len(data)))
	case t.kind == "stdin" && fromAgent:
		return s.b.input(data)
	case t.kind == "resize" && fromAgent:
		return s.b.resized(data)
	case (t.kind == "stdout" || t.kind == "stderr") && !fromAgent:
		return s.b.output(data)
	case t.kind == "error" && !fromAgent && s.b.cfg.Kind == PortForward:
		// why a connection failed, for the agent alone
	case t.kind == "error" && !fromAgent:
		if !s.b.status.add(data) {
			return fmt.Errorf("%w: its status is too long", ErrTarget)
		}
	case fromAgent:
		return fmt.Errorf("%w: data on its stream %s", ErrAgent, t.kind)
	default:
		return fmt.Errorf("%w: data on its stream %s", ErrTarget, t.kind)
	}
	return nil
}

func (s *session) reset(f *spdy.RstStreamFrame, to *peer, fromAgent bool) error {
	s.mu.Lock()
	t := s.streams[f.StreamId]
	passes := t != nil && !t.here
	if passes {
		t.here = true // what was on its way is dropped
	}
	s.mu.Unlock()
	if t != nil && (passes || fromAgent) {
		s.forget(t, true)
	}
	if !passes {
		return nil
	}
	return to.write(f)
}

// forget drops a stream on which both have said their last word, or one has broken it off. Those of a command stay: none is opened twice.
func (s *session) forget(t *stream, reset bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.b.cfg.Kind != PortForward || !reset && !(t.agentDone && (t.targetDone || t.here)) || s.streams[t.id] != t {
		return
	}
	delete(s.streams, t.id)
	if t.of != nil {
		s.leave(t.of)
	}
}

// goodbye tells the agent why its command is cut off, on the stream where the API server would.
func (s *session) goodbye(why error) {
	if s.b.cfg.Kind != Command || !ours(why) {
		return
	}
	s.mu.Lock()
	var t *stream
	for _, other := range s.streams {
		if other.kind == "error" && !other.targetDone {
			t = other
			t.targetDone = true
		}
	}
	s.mu.Unlock()
	if t == nil {
		return
	}
	said := make(chan struct{})
	go func() {
		defer close(said)
		_ = s.agent.write(&spdy.DataFrame{StreamId: t.id, Flags: spdy.DataFlagFin, Data: failure(told(why))})
	}()
	timer := time.NewTimer(goodbye)
	defer timer.Stop()
	select {
	case <-said:
	case <-timer.C: // nobody reads
		_ = s.agent.conn.Close()
		<-said
	}
}
