package sftp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
)

// Bounds of one session.
const (
	// maxUnderway is how many reads and writes wait for the target; OpenSSH's clients ask for 64 at once.
	maxUnderway = 256
	maxHandles  = 128
)

var errGone = errors.New("the target has ended")

// session is one agent's SFTP session.
type session struct {
	agent   io.ReadWriter
	target  Target
	decider Decider
	known   map[string]bool // extensions that the target has

	// Of the goroutine that reads the agent's requests; it alone writes to the target.
	nextID uint32
	buffer []byte

	gone chan struct{} // closed when nothing comes from the target any more

	answering sync.Mutex // guards writes to the agent

	mu         sync.Mutex
	answered   *sync.Cond          // with mu: an answer came, or none will
	pending    map[uint32]*pending // guarded by mu, as all that follows
	underway   int                 // reads and writes among them
	over       bool
	handles    map[string]*handle
	lastHandle uint64
}

// pending is a request that the target hasn't answered yet.
type pending struct {
	request request
	agent   uint32     // the agent's id of a read or write
	h       *handle    // of a read or write
	answer  chan reply // of everything else: who asked waits here
}

// Serve speaks with agent and target until either has ended, and returns when nothing of it goes on. It closes the target's channel. Whoever
// wants it to end sooner cancels ctx, with which nothing more is asked of the target, and closes both sides. The error says why a session
// ended that neither side ended.
func Serve(ctx context.Context, agent io.ReadWriter, target Target, d Decider) error {
	s := &session{
		agent: agent, target: target, decider: d, gone: make(chan struct{}),
		pending: map[uint32]*pending{}, handles: map[string]*handle{},
	}
	s.answered = sync.NewCond(&s.mu)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	if err := s.start(ctx); err != nil {
		_ = target.Close()
		if errors.Is(err, io.EOF) {
			return nil
		}
		return err
	}
	answers := make(chan error, 1)
	go func() { answers <- s.relayAnswers() }()
	err := s.serveRequests(ctx)
	how := "cut"
	switch {
	case err == nil:
		// The agent has nothing more to ask; what is under way is still answered. Where the target was gone before, the agent's end comes of that.
		if !s.left() {
			how = "cancelled"
		}
		s.settle()
		_ = target.CloseWrite()
	case ctx.Err() == nil:
		_ = target.Close()
	}
	fromTarget := <-answers
	_ = target.Close()
	s.abandon(context.WithoutCancel(ctx), how)
	if err == nil || errors.Is(err, errGone) {
		err = fromTarget
	}
	return err
}

// start agrees on the version, and on what both sides know beyond it.
func (s *session) start(ctx context.Context) error {
	kind, body, err := readPacket(s.agent, &s.buffer)
	var version uint32
	if err == nil {
		version, err = parseInit(kind, body)
	}
	if err == nil && version < protocolVersion {
		err = malformedf("the agent speaks version %d of SFTP; %d is expected", version, protocolVersion)
	}
	if err != nil {
		return s.spoilt(ctx, err)
	}
	if _, err := s.target.Write(seal(begin(fxpInit, protocolVersion))); err != nil {
		return errGone
	}
	kind, body, err = readPacket(s.target, &s.buffer)
	if err == nil {
		s.known, err = parseVersion(kind, body)
	}
	if err != nil {
		return fmt.Errorf("the target's answer: %s", err.Error()) // its end isn't the agent's
	}
	p := begin(fxpVersion, protocolVersion)
	for _, e := range []struct{ name, version string }{
		{extPosixRename, "1"}, {extStatvfs, "2"}, {extFstatvfs, "2"}, {extHardlink, "1"}, {extFsync, "1"}, {extLsetstat, "1"}, {extLimits, "1"},
		{extExpandPath, "1"},
	} {
		if s.known[e.name] {
			p = appendText(appendText(p, e.name), e.version)
		}
	}
	return s.send(seal(p))
}

// spoilt puts on record that the agent's packets can't be read, and returns it in words for the agent.
func (s *session) spoilt(ctx context.Context, err error) error {
	var m *malformed
	if !errors.As(err, &m) {
		return err
	}
	return s.decider.Refuse(ctx, Request{Kind: Session, Text: "sftp"}, "what the agent sends is not SFTP: "+m.what)
}

// serveRequests takes the agent's requests until it has no more. The error ends the session.
func (s *session) serveRequests(ctx context.Context) error {
	for {
		kind, body, err := readPacket(s.agent, &s.buffer)
		if ctx.Err() != nil { // before the end of the agent's connection, which comes of it
			return ctx.Err()
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		var r request
		if err == nil {
			r, err = parseRequest(kind, body)
		}
		if err != nil {
			return s.spoilt(ctx, err)
		}
		if err := s.serve(ctx, r); err != nil {
			return err
		}
	}
}

func (s *session) send(p []byte) error {
	s.answering.Lock()
	defer s.answering.Unlock()
	_, err := s.agent.Write(p)
	return err
}

func (s *session) sendStatus(id, code uint32, text string) error {
	return s.send(status{code, text}.encode(id))
}

// submit sends a request to the target under an id of its own.
func (s *session) submit(p *pending) error {
	s.mu.Lock()
	if s.over {
		s.mu.Unlock()
		return errGone
	}
	for s.nextID++; s.pending[s.nextID] != nil; s.nextID++ {
	}
	packet := p.request.encode(s.nextID)
	p.request.data = nil // its buffer is read into again
	s.pending[s.nextID] = p
	s.mu.Unlock()
	if _, err := s.target.Write(packet); err != nil {
		return errGone
	}
	return nil
}

// ask sends a request to the target and waits for the answer.
func (s *session) ask(ctx context.Context, r request) (reply, error) {
	answer := make(chan reply, 1)
	if err := s.submit(&pending{request: r, answer: answer}); err != nil {
		return reply{}, err
	}
	select {
	case rep := <-answer:
		return rep, nil
	case <-s.gone:
		return reply{}, errGone
	case <-ctx.Done():
		return reply{}, ctx.Err()
	}
}

// left says whether nothing comes from the target any more.
func (s *session) left() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.over
}

// settle waits until every read and write is answered.
func (s *session) settle() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.underway > 0 && !s.over {
		s.answered.Wait()
	}
}

// relayAnswers takes the target's answers until there are no more, and hands them to whoever waits for them.
func (s *session) relayAnswers() error {
	var buffer []byte
	for {
		kind, body, err := readPacket(s.target, &buffer)
		if err == nil {
			err = s.relayAnswer(kind, body)
		}
		if err == nil {
			continue
		}
		s.leave()
		_ = s.target.Close() // behind that, the agent's side may be closed, too
		var m *malformed
		if errors.As(err, &m) {
			return fmt.Errorf("the target's answer: %w", err)
		}
		// The target has ended, or the agent takes nothing any more. Who closed it knows why.
		return nil
	}
}

// leave notes that nothing comes from the target any more.
func (s *session) leave() {
	s.mu.Lock()
	s.over = true
	s.answered.Broadcast()
	s.mu.Unlock()
	close(s.gone)
}

func (s *session) relayAnswer(kind byte, body []byte) error {
	c := cursor{b: body}
	id := c.u32()
	s.mu.Lock()
	p := s.pending[id]
	delete(s.pending, id)
	s.mu.Unlock()
	if c.bad || p == nil {
		return malformedf("an answer of the kind %d that nobody asked for", kind)
	}
	rep, err := parseReply(p.request, kind, c.b)
	if err != nil {
		return err
	}
	if p.answer != nil {
		p.answer <- rep // data is asked for by reads alone, so nothing of it lies in the buffer
		return nil
	}
	s.mu.Lock()
	p.h.bytesOut += int64(len(rep.data))
	s.mu.Unlock()
	err = s.send(rep.encode(p.agent))
	s.mu.Lock()
	p.h.underway--
	s.underway--
	s.answered.Broadcast()
	s.mu.Unlock()
	return err
}
