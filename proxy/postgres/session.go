package postgres

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/deputymesh/deputy/internal/mask"
)

// endTimeout bounds what is still done for a session that is over: the cancel at the target and the last message.
const endTimeout = 800 * time.Millisecond

// session is one agent's connection with its own connection to the target.
type session struct {
	e      *Engine
	core   Session
	client net.Conn // TLS
	in     *frames
	out    *sink
	up     *upstream
	q      *queue
	log    *slog.Logger
	key    cancelKey
	peer   string // SPIFFE ID of the agent, for cancels
	keyed  *mask.Keyed
	decider

	// What the front alone uses.
	statements map[string]*prepared
	portals    map[string]*portal
	serial     int
	batch      int  // counts Syncs
	failed     bool // a refusal was sent in this batch: ignore everything up to the Sync
	open       bool // extended messages were sent since the last Sync
	joins      bool // the Query or FunctionCall at hand ends the transaction of such messages
	leftover   []*run
	// What leftover and statements hold at most, see held.go.
	leftoverBytes, preparedBytes int
	// sawMasked says that a masked table was touched: errors at COMMIT may speak of it.
	sawMasked bool
	// called says that code is under way which may change a pinned setting: nothing is decided before the target has said so.
	called   bool
	calledIn int // the batch of the last such

	// copying is set while a COPY FROM STDIN may be under way.
	copying *copying

	// What the back alone uses.
	copyingOut bool // the target is in the midst of a COPY TO STDOUT
	cut        bool // a frame is half written: nothing more can be said
	// notifications bounds how many of them come; tooMany says that some were dropped for that, lately.
	notifications *rate.Limiter
	tooMany       bool

	mu sync.Mutex
	// idleAfter is the number of the last Sync after which no transaction was open.
	idleAfter int
	channels  map[string]bool // LISTEN was sent for them
	defined   bool            // definitions may have changed since the last ReadyForQuery outside a transaction
}

// errTerminate says that the agent ended the session as one should.
var errTerminate = errors.New("the agent said goodbye")

func newSession(e *Engine, core Session, client net.Conn, up *upstream) *session {
	s := &session{
		e: e, core: core, client: client, in: newFrames(client, &e.buffers), out: newSink(client, &e.buffers), up: up, q: newQueue(),
		log: e.cfg.Logger.With("session", core.ID(), "target", e.name), keyed: mask.Random(),
		statements: map[string]*prepared{}, portals: map[string]*portal{}, batch: 1,
		channels: map[string]bool{}, notifications: rate.NewLimiter(notificationRate, notificationBurst),
	}
	s.resolve = s.resolveNames
	return s
}

// run relays until one side ends, then ends the other. It returns why, for the record.
func (s *session) run(ctx context.Context) (reason, detail string) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type end struct {
		front bool
		err   error
	}
	ends := make(chan end, 2)
	go func() { ends <- end{true, s.front(ctx)} }()
	go func() { ends <- end{false, s.back(ctx)} }()

	var first end
	waiting := 2
	select {
	case first = <-ends:
		waiting = 1
	case <-ctx.Done():
	case <-s.core.Context().Done():
	}
	over := s.core.Context().Err() != nil || ctx.Err() != nil
	var last *fault
	switch f, isFault := asFault(first.err); {
	case over:
		reason, detail, last = s.endedByCore(ctx)
	case isFault:
		reason, detail, last = "error", f.Error(), f
		last.fatal = true
	case first.front && (errors.Is(first.err, errTerminate) || isEOF(first.err)):
		reason = "client"
	case first.front:
		reason, detail = "client", first.err.Error()
	case isEOF(first.err):
		reason, detail = "upstream", "the target closed the connection"
		last = &fault{code: codeNoConnection, message: "the target closed the connection", fatal: true}
	default:
		reason, detail = "upstream", fmt.Sprint(first.err)
		last = &fault{code: codeNoConnection, message: "the connection to the target broke", fatal: true}
	}

	// 1. Whatever still runs at the target is cancelled; nobody waits for its answer any more.
	now := time.Now()
	stop, done := context.WithTimeout(context.WithoutCancel(ctx), endTimeout)
	defer done()
	var cancelling sync.WaitGroup
	if s.q.busy() && reason != "upstream" {
		cancelling.Go(func() {
			if err := s.up.cancel(stop); err != nil {
				s.log.WarnContext(ctx, "cancel at the end of a session failed", "error", err)
			}
		})
	}
	// 2. Both halves stop, however slow the peers are.
	cancel()
	s.q.close()
	_ = s.client.SetReadDeadline(now)
	_ = s.client.SetWriteDeadline(now.Add(endTimeout / 2))
	_ = s.up.conn.SetDeadline(now)
	for ; waiting > 0; waiting-- {
		<-ends
	}
	// 3. The agent hears why, if a message can still be put together.
	if last != nil && !s.cut && s.out.err == nil {
		_ = s.client.SetWriteDeadline(time.Now().Add(endTimeout / 2))
		last.write(s.out)
		_ = s.out.flush()
	}
	cancelling.Wait()
	_ = s.up.conn.SetDeadline(time.Now().Add(endTimeout / 4))
	if !s.up.half {
		_, _ = s.up.conn.Write([]byte{'X', 0, 0, 0, 4})
	}
	_ = s.up.conn.Close()
	_ = s.client.SetDeadline(time.Now().Add(endTimeout / 4))
	_ = s.client.Close()
	return reason, detail
}

const hintEnded = "Nothing more runs in it. Get a fresh credential and connect again, if you still may."

// endedByCore says why a session is over that neither side ended.
func (s *session) endedByCore(ctx context.Context) (reason, detail string, last *fault) {
	last = &fault{code: codeShutdown, message: "this proxy is shutting down", hint: "Connect again.", fatal: true}
	cause := context.Cause(s.core.Context())
	if cause == nil {
		return "shutdown", "", last
	}
	last.message = "this session has ended: " + cause.Error()
	last.hint = hintEnded
	return "ended", cause.Error(), last
}
