package mcpstdio

import (
	"bytes"
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

// versions are those that have sessions.
var versions = []string{"2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05"}

// ServerConfig makes a [Server].
type ServerConfig struct {
	// Command is the local server with its arguments.
	Command []string
	// Token is what the proxy shows as bearer token; nobody else gets anything. At least 16 bytes.
	Token string
	// MaxSessions is how many sessions, and so processes, there are at once; [DefaultSessions] if 0.
	MaxSessions int
	// Stderr gets what the servers write to standard error.
	Stderr io.Writer
	Log    *slog.Logger
	Now    func() time.Time
}

// Server puts a local server behind streamable HTTP with sessions: a process per session.
type Server struct {
	cfg   ServerConfig
	token [sha256.Size]byte
	work  sync.WaitGroup // processes

	mu       sync.Mutex
	over     bool // guarded by mu, as is what follows
	starting int
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
	return &Server{cfg: cfg, token: sha256.Sum256([]byte(cfg.Token)), sessions: map[string]*session{}}, nil
}

// Serve accepts the proxy on l until ctx is done; then it ends every session, waits for its process, and returns nil. It closes l.
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
		one.end(errors.New("the shim ends"))
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
	if version := versionOf(m.Params); version != "" {
		// Without sessions nothing would keep the processes of two users apart.
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusBadRequest)
		_, _ = w.Write(errorMessage(m.ID, codeVersion, "servers on standard input have sessions here", map[string]any{"supported": versions, "requested": version}))
		return
	}
	one, began := (*session)(nil), m.Method == "initialize"
	if began {
		if one, err = s.begin(); err != nil {
			s.cfg.Log.Error("a session was not begun", "error", err)
			say(w, http.StatusServiceUnavailable, m.ID, codeInternal, err.Error())
			return
		}
		w.Header().Set(sessionHeader, one.id)
	} else if one = s.find(w, r, m.ID); one == nil {
		return
	}
	if !m.isRequest() {
		if err := one.p.send(body); err != nil {
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
func (s *Server) begin() (*session, error) {
	s.mu.Lock()
	if s.over || len(s.sessions)+s.starting >= s.cfg.MaxSessions {
		s.mu.Unlock()
		return nil, fmt.Errorf("%d sessions are open, or the shim ends", s.cfg.MaxSessions)
	}
	s.starting++
	s.work.Add(1)
	s.mu.Unlock()
	p, err := begin(s.cfg.Command, s.cfg.Stderr)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.starting--
	if err != nil {
		s.work.Done()
		return nil, err
	}
	one := newSession(p, s.cfg.Now())
	s.sessions[one.id] = one
	if s.over {
		one.end(errors.New("the shim ends"))
	}
	ran := make(chan struct{})
	go func() {
		defer close(ran)
		one.run()
	}()
	go func() {
		defer s.work.Done()
		<-one.gone.Done()
		s.mu.Lock()
		delete(s.sessions, one.id)
		s.mu.Unlock()
		p.end()
		<-ran
		s.cfg.Log.Info("a session has ended", "reason", context.Cause(one.gone), "server", p.err)
	}()
	return one, nil
}

// request sends a request and relays what comes, to its response: as JSON, or as a stream once something comes before. It says whether that is a result.
func (s *Server) request(w http.ResponseWriter, r *http.Request, one *session, m message, body []byte) (done bool) {
	c, err := one.ask(r.Context(), m)
	if err != nil {
		say(w, http.StatusTooManyRequests, m.ID, codeInternal, err.Error())
		return false
	}
	defer one.leave(c)
	if err := one.p.send(body); err != nil {
		one.end(err)
		say(w, http.StatusBadGateway, m.ID, codeInternal, err.Error())
		return false
	}
	out := &stream{w: w, session: one}
	for {
		data, err := out.next(r.Context(), c)
		if err != nil {
			if out.begun {
				out.event(errorMessage(m.ID, codeInternal, err.Error(), nil))
			} else if r.Context().Err() == nil {
				say(w, http.StatusBadGateway, m.ID, codeInternal, err.Error())
			}
			return false
		}
		answer, err := parse(data)
		if last := err == nil && answer.isResponse(); !last || out.begun {
			out.event(data)
			if last {
				return answer.Result != nil
			}
			continue
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(data) // who is gone hears nothing
		return answer.Result != nil
	}
}

// stream is the session's own.
func (s *Server) stream(w http.ResponseWriter, r *http.Request, one *session) {
	c, waiting := one.listen(r.Context())
	defer one.leave(c)
	out := &stream{w: w, session: one}
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

// stream writes an event stream.
type stream struct {
	w       http.ResponseWriter
	session *session
	begun   bool
}

// next waits for the next message, and keeps a stream that has begun alive.
func (o *stream) next(ctx context.Context, c *call) ([]byte, error) {
	alive := time.NewTicker(keepAlive)
	defer alive.Stop()
	for {
		select {
		case data := <-c.messages:
			return data, nil
		case <-o.session.gone.Done():
			return nil, fmt.Errorf("the server has ended: %w", context.Cause(o.session.gone))
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-c.replaced:
			return nil, errors.New("another stream took its place")
		case <-alive.C:
			if o.begun {
				_, _ = io.WriteString(o.w, ":\n\n")
				o.flush()
			}
		}
	}
}

func (o *stream) begin() {
	o.begun = true
	o.w.Header().Set("Content-Type", "text/event-stream")
	o.w.Header().Set("Cache-Control", "no-store")
	o.w.WriteHeader(http.StatusOK)
	o.flush()
}

func (o *stream) event(data []byte) {
	if !o.begun {
		o.begin()
	}
	text, err := line(data)
	if err != nil {
		return // what can't be parsed isn't passed on
	}
	var b bytes.Buffer
	b.WriteString("event: message\ndata: ")
	b.Write(text)
	b.WriteByte('\n')
	_, _ = o.w.Write(b.Bytes()) // who is gone hears nothing
	o.flush()
}

func (o *stream) flush() { _ = http.NewResponseController(o.w).Flush() }
