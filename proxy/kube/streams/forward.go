package streams

import (
	"fmt"
	"net/http"
	"strconv"
	"sync/atomic"

	"github.com/moby/spdystream/spdy"
)

// maxForwards is how many connections are forwarded at once, by one stream of the agent's.
const maxForwards = 256

// forward is one connection to a port: a stream of data and one of errors.
type forward struct {
	request string // the agent's id
	port    string
	opened  []string // kinds of streams
	live    int
	refused string // why; "" for one that is allowed

	sent, received atomic.Int64
	ended          func(sent, received int64)
}

// openForward judges a stream of a forwarded connection. no is why it is refused.
func (s *session) openForward(t *stream, h http.Header) (no string, err error) {
	request, text := only(h, "Requestid"), only(h, "Port")
	port, bad := strconv.ParseUint(text, 10, 16)
	if t.kind != "data" && t.kind != "error" || request == "" || len(request) > 64 || bad != nil || port == 0 || strconv.FormatUint(port, 10) != text {
		return "", fmt.Errorf("%w: a stream that belongs to no connection to a port", ErrAgent)
	}
	s.mu.Lock()
	f, n := s.forwards[request], len(s.forwards)
	if f != nil {
		defer s.mu.Unlock()
		if f.port != text || len(f.opened) != 1 || f.opened[0] == t.kind {
			return "", fmt.Errorf("%w: a stream of a connection that has it already", ErrAgent)
		}
		f.opened = append(f.opened, t.kind)
		f.live++
		t.of = f
		return f.refused, nil
	}
	s.mu.Unlock()
	f = &forward{request: request, port: text, opened: []string{t.kind}, live: 1}
	t.of = f
	if n >= maxForwards {
		f.refused = fmt.Sprintf("%d connections are forwarded here already; close some", n)
	} else if f.ended, err = s.b.cfg.AllowPort(s.b.ctx, uint16(port)); err != nil {
		f.refused = err.Error()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if n < 2*maxForwards {
		s.forwards[request] = f
		return f.refused, nil
	}
	return "", fmt.Errorf("%w: it opens more connections than there may be", ErrAgent)
}

// leave is the end of one stream of a connection, which is over with both: the first may end before the second is opened. It needs the lock.
func (s *session) leave(f *forward) {
	if f.live--; f.live > 0 || len(f.opened) < 2 {
		return
	}
	delete(s.forwards, f.request)
	f.end()
}

func (f *forward) end() {
	if f.ended != nil {
		f.ended(f.sent.Load(), f.received.Load())
		f.ended = nil
	}
}

// over ends what is left, when the connection is.
func (s *session) over() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.forwards {
		f.end()
	}
	clear(s.forwards)
}

// refuse answers a stream in the API server's place, as that does where a port can't be reached.
func (s *session) refuse(t *stream, why string) error {
	t.here, t.targetDone = true, true
	s.mu.Lock()
	s.streams[t.id] = t
	s.mu.Unlock()
	end := &spdy.DataFrame{StreamId: t.id, Flags: spdy.DataFlagFin}
	if t.kind == "error" {
		end.Data = []byte(why[:min(len(why), maxStatus)])
	}
	err := s.agent.write(&spdy.SynReplyFrame{StreamId: t.id, Headers: http.Header{}}, end)
	s.forget(t, false)
	return err
}
