package mcpstdio

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

// Path is where a [Server] is.
const Path = "/mcp"

// DefaultSessions is how many sessions a [Server] has at once.
const DefaultSessions = 32

const (
	idleTime   = time.Hour // as the proxy's
	bodyTime   = 30 * time.Second
	headerTime = 15 * time.Second
	quietTime  = 2 * time.Minute
	keepAlive  = 30 * time.Second
	minToken   = 16
)

// ServerConfig makes a [Server].
type ServerConfig struct {
	// Command is the local server with its arguments.
	Command []string
	// Token is what the proxy shows as bearer token; nobody else gets anything. At least 16 bytes.
	Token string
	// MaxSessions is how many sessions and requests without one, and so processes, there are at once; [DefaultSessions] if 0.
	MaxSessions int
	// Stderr gets what the servers write to standard error.
	Stderr io.Writer
	Log    *slog.Logger
	Now    func() time.Time
}

// Server puts a local server behind streamable HTTP: a process per session, and per request of the stateless protocol. The headers that repeat a message
// are the proxy's to check: no process sees them.
type Server struct {
	cfg    ServerConfig
	token  [sha256.Size]byte
	places *places
	work   sync.WaitGroup // processes

	mu       sync.Mutex
	over     bool // guarded by mu, as is what follows
	sessions map[string]*session
}

// NewServer checks the configuration. It starts no process yet.
func NewServer(cfg ServerConfig) (*Server, error) {
	switch {
	case len(cfg.Command) == 0:
		return nil, errors.New("no command of a server")
	case len(cfg.Token) < minToken:
		return nil, fmt.Errorf("the token has %d bytes; at least %d are expected", len(cfg.Token), minToken)
	}
	if cfg.MaxSessions <= 0 {
		cfg.MaxSessions = DefaultSessions
	}
	if cfg.Stderr == nil {
		cfg.Stderr = io.Discard
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Server{cfg: cfg, token: sha256.Sum256([]byte(cfg.Token)), places: newPlaces(cfg.MaxSessions), sessions: map[string]*session{}}, nil
}

// Serve accepts the proxy on l until ctx is done; then it ends every session and request, waits for their processes, and returns nil. It closes l.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	web := &http.Server{
		Handler: s, ReadHeaderTimeout: headerTime, IdleTimeout: quietTime, MaxHeaderBytes: 64 << 10, BaseContext: func(net.Listener) context.Context { return ctx },
		ErrorLog: slog.NewLogLogger(s.cfg.Log.Handler(), slog.LevelDebug),
	}
	failed := make(chan error, 1)
	go func() { failed <- web.Serve(l) }()
	tick := time.NewTicker(time.Minute)
	defer tick.Stop()
	var err error
	for running := true; running; {
		select {
		case <-ctx.Done():
			running = false
		case err = <-failed:
			running = false
		case <-tick.C:
			s.endIdle()
		}
	}
	s.mu.Lock()
	s.over = true
	for _, one := range s.sessions {
		one.end(errEnds)
	}
	s.mu.Unlock()
	_ = web.Close()
	s.work.Wait()
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

func (s *Server) endIdle() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, one := range s.sessions {
		if since := one.idleSince(); !since.IsZero() && s.cfg.Now().Sub(since) > idleTime {
			one.end(errors.New("it was idle"))
		}
	}
}

// ServeHTTP takes one request of the proxy's.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	bearer, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	got := sha256.Sum256([]byte(bearer))
	switch {
	case subtle.ConstantTimeCompare(got[:], s.token[:]) != 1:
		w.Header().Set("WWW-Authenticate", "Bearer")
		w.Header().Set("Connection", "close")
		say(w, http.StatusUnauthorized, nil, codeInvalid, "this is for the proxy alone, which has the token")
		return
	case len(r.Header.Values("Origin")) > 0:
		say(w, http.StatusForbidden, nil, codeInvalid, "this isn't for pages")
		return
	case r.URL.Path != Path:
		say(w, http.StatusNotFound, nil, codeInvalid, "the server is at "+Path)
		return
	}
	switch r.Method {
	case http.MethodPost:
		s.post(w, r)
	case http.MethodGet:
		if one := s.find(w, r, nil); one != nil {
			s.stream(w, r, one)
		}
	case http.MethodDelete:
		if one := s.find(w, r, nil); one != nil {
			one.end(errors.New("the client ended it"))
			w.WriteHeader(http.StatusNoContent)
		}
	default:
		w.Header().Set("Allow", "POST, GET, DELETE")
		say(w, http.StatusMethodNotAllowed, nil, codeInvalid, "POST, GET and DELETE are expected")
	}
}

// say answers with JSON-RPC's error.
func say(w http.ResponseWriter, status int, id json.RawMessage, code int, text string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(errorMessage(id, code, text, nil)) // who is gone hears nothing
}

// find is the session that a request names.
func (s *Server) find(w http.ResponseWriter, r *http.Request, id json.RawMessage) *session {
	s.mu.Lock()
	defer s.mu.Unlock()
	one := s.sessions[r.Header.Get(sessionHeader)]
	if one == nil {
		say(w, http.StatusNotFound, id, codeInvalid, "there is no such session; begin one with initialize")
		return nil
	}
	one.use(s.cfg.Now())
	return one
}

func (s *Server) post(w http.ResponseWriter, r *http.Request) {
	slow := http.NewResponseController(w)
	_ = slow.SetReadDeadline(time.Now().Add(bodyTime))
	body, err := io.ReadAll(io.LimitReader(r.Body, maxToServer+1))
	_ = slow.SetReadDeadline(time.Time{})
	kind, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || len(body) > maxToServer || kind != "application/json" {
		say(w, http.StatusBadRequest, nil, codeInvalid, fmt.Sprintf("one message of at most %d bytes is expected, as application/json", maxToServer))
		return
	}
	m, err := parse(body)
	if err != nil {
		say(w, http.StatusBadRequest, nil, codeInvalid, "no message of JSON-RPC: "+err.Error())
		return
	}
	stateless := versionOf(m.Params) != ""
	switch {
	case m.isRequest() && stateless:
		s.alone(w, r, m, body)
		return
	case !m.isRequest() && (stateless || r.Header.Get(sessionHeader) == ""):
		notice(w, m)
		return
	}
	one, began := (*session)(nil), m.Method == "initialize"
	if began {
		if one, err = s.begin(r.Context()); err != nil {
			s.notBegun(w, m, err)
			return
		}
		w.Header().Set(sessionHeader, one.id)
	} else if one = s.find(w, r, m.ID); one == nil {
		return
	}
	if !m.isRequest() {
		if err := one.p.send(body, writeTime); err != nil {
			one.end(err)
			say(w, http.StatusBadGateway, nil, codeInternal, err.Error())
			return
		}
		w.WriteHeader(http.StatusAccepted)
		return
	}
	if !s.request(w, r, one, m, body) && began {
		one.end(errors.New("it wasn't begun: the client left, or the server refused"))
	}
}

// begin starts a session with its process.
func (s *Server) begin(ctx context.Context) (*session, error) {
	p, err := s.start(ctx)
	if err != nil {
		return nil, err
	}
	one := newSession(p, s.cfg.Now())
	var ran sync.WaitGroup
	ran.Go(one.run)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sessions[one.id] = one
	if s.over {
		one.end(errEnds)
	}
	go func() {
		<-one.gone.Done()
		s.mu.Lock()
		delete(s.sessions, one.id)
		s.mu.Unlock()
		s.places.ends()
		s.stop(p, &ran)
		s.cfg.Log.Info("a session has ended", "reason", context.Cause(one.gone), "server", p.err)
	}()
	return one, nil
}

// errEnds is why what was begun ends with the shim.
var errEnds = errors.New("the shim ends")

// start starts a process, which has its place and is waited for until stop has ended it.
func (s *Server) start(ctx context.Context) (*process, error) {
	if err := s.places.take(ctx); err != nil {
		return nil, err
	}
	s.mu.Lock()
	over := s.over
	if !over {
		s.work.Add(1)
	}
	s.mu.Unlock()
	if over {
		s.places.giveBack()
		return nil, errEnds
	}
	p, err := begin(s.cfg.Command, s.cfg.Stderr)
	if err != nil {
		s.places.giveBack()
		s.work.Done()
		return nil, err
	}
	return p, nil
}

// stop ends a process whose place knows that it ends, and what has run for it.
func (s *Server) stop(p *process, ran *sync.WaitGroup) {
	defer s.work.Done()
	p.end()
	s.places.hasEnded()
	ran.Wait()
}

// notBegun answers a request that no process was begun for.
func (s *Server) notBegun(w http.ResponseWriter, m message, err error) {
	s.cfg.Log.Error("a process was not begun", "method", m.Method, "error", err)
	say(w, http.StatusServiceUnavailable, m.ID, codeInternal, err.Error())
}

// request sends a request and relays what comes, to its response. It says whether that is a result.
func (s *Server) request(w http.ResponseWriter, r *http.Request, one *session, m message, body []byte) (done bool) {
	c, err := one.ask(r.Context(), m)
	if err != nil {
		say(w, http.StatusTooManyRequests, m.ID, codeInternal, err.Error())
		return false
	}
	defer one.leave(c)
	if err := one.p.send(body, writeTime); err != nil {
		one.end(err)
		say(w, http.StatusBadGateway, m.ID, codeInternal, err.Error())
		return false
	}
	out := &stream{w: w, gone: one.gone}
	answer, answered := out.relay(r.Context(), c, m, func(message) int { return http.StatusOK })
	return answered && answer.Result != nil
}

// stream is the session's own.
func (s *Server) stream(w http.ResponseWriter, r *http.Request, one *session) {
	c, waiting := one.listen(r.Context())
	defer one.leave(c)
	out := &stream{w: w, gone: one.gone}
	out.begin()
	for _, data := range waiting {
		out.event(data)
	}
	for {
		data, err := out.next(r.Context(), c)
		if err != nil {
			return
		}
		out.event(data)
	}
}
