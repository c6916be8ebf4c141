package spawn

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/issuer/attest"
	"github.com/deputymesh/deputy/issuer/ca"
	spawnv1 "github.com/deputymesh/deputy/proto/deputy/spawn/v1"
)

// Defaults of a [Config].
const (
	DefaultGrace      = 5 * time.Second
	DefaultTicketLife = 30 * time.Second
)

// firstMessageWithin bounds how long an Attach stream may stay silent before it says which agent it is for.
const firstMessageWithin = 10 * time.Second

// Log is the part of an audit log that the service writes. Append returns when the record is durable; after an error the act
// it is about must not happen. Submit is for ends, which take away and are never held up.
type Log interface {
	Append(ctx context.Context, r audit.Record) (audit.Receipt, error)
	Submit(r audit.Record) *audit.Pending
	Count(class string)
}

// Entry lets matching processes outside every agent start first-level agents of one name.
type Entry struct {
	Name string
	attest.Selectors
}

// UIDRange is the range of host uids for isolated agents, both ends included. The zero value is none. A uid is also its gid.
type UIDRange struct {
	First, Last uint32
}

// IsZero says that there is no range.
func (r UIDRange) IsZero() bool { return r == UIDRange{} }

// Contains says whether a uid belongs to the range.
func (r UIDRange) Contains(uid uint32) bool { return !r.IsZero() && r.First <= uid && uid <= r.Last }

// Limits bound what agents may start. Zero values mean the defaults.
type Limits struct {
	Depth      int // levels of agents, 5
	Children   int // live children per agent, 64
	Subtree    int // live agents below and including one first-level agent, 256
	FirstLevel int // live first-level agents per uid, 256
	// Registrations per second and subtree (and per uid outside), 10, with bursts of 32. In the long run a tenth of it:
	// everybody remembers each agent for hours, so none may come and go fast for ever.
	SpawnRate  float64
	SpawnBurst int
}

// WithDefaults fills what is zero.
func (l Limits) WithDefaults() Limits {
	def := func(v *int, d int) {
		if *v == 0 {
			*v = d
		}
	}
	def(&l.Depth, 5)
	def(&l.Children, 64)
	def(&l.Subtree, 256)
	def(&l.FirstLevel, 256)
	def(&l.SpawnBurst, 32)
	if l.SpawnRate == 0 {
		l.SpawnRate = 10
	}
	return l
}

// Config makes a Server.
type Config struct {
	CA       *ca.CA
	JWT      *ca.JWTAuthority // nil: no JWT-SVIDs, and SignJWT isn't called
	Bundle   *ca.Bundle
	Attestor *attest.Attestor
	Store    Store
	Log      Log
	Entries  []Entry
	Broker   []attest.Selectors // who may hear about ended agents; any that matches
	UIDs     UIDRange
	Limits   Limits

	Grace      time.Duration // DefaultGrace when zero
	TicketLife time.Duration // DefaultTicketLife when zero
	Now        func() time.Time
	Logger     *slog.Logger
}

// Server is the service: New, Start, serve, Close.
type Server struct {
	spawnv1.UnimplementedSpawnServer

	ca       *ca.CA
	jwt      *ca.JWTAuthority
	bundle   *ca.Bundle
	attestor *attest.Attestor
	store    Store
	audit    Log
	entries  []Entry
	broker   []attest.Selectors
	uidRange UIDRange
	limits   Limits
	grace    time.Duration
	ticket   time.Duration
	now      func() time.Time
	log      *slog.Logger
	bootID   string
	ownPath  string // the issuer's own cgroup

	stop    chan struct{}
	writer  *writer
	holders sync.WaitGroup // goroutines that wait for supervisors to die

	mu       sync.Mutex
	closing  bool
	agents   map[actor.AgentID]*agent   // not ended
	tickets  map[ticketHash]*agent      // not used yet
	held     map[attest.Ancestor]*agent // supervisors, until their process is dead
	cgroups  map[string]*agent          // cgroups that are one agent's own; ended ones too
	oldPaths []string                   // cgroups of ended agents, oldest first
	uids     map[uint32]*agent          // claimed uids of live agents
	lastUID  uint32                     // where the search for the next free uid begins
	firsts   map[uint32]int             // live first-level agents per uid
	rates    map[uint32]*pace           // registrations from outside, per uid
	budgets  map[uint32]*rate.Limiter   // records of refusals, per uid
	keys     map[[32]byte]*agent        // current keys of live agents
	removals uint64                     // rises when a mark is taken away: a place found before may be wrong
}

// New checks the configuration and makes a server, to be started.
func New(cfg Config) (*Server, error) {
	if cfg.CA == nil || cfg.Bundle == nil || cfg.Attestor == nil || cfg.Store == nil || cfg.Log == nil {
		return nil, errors.New("spawn service: CA, bundle, attestor, store and log are needed")
	}
	for i, e := range cfg.Entries {
		if err := CheckName(e.Name); err != nil {
			return nil, fmt.Errorf("spawn service: agent entry %d: %w", i, err)
		}
		if _, err := e.Selectors.Check(); err != nil {
			return nil, fmt.Errorf("spawn service: agent entry %d (%s): %w", i, e.Name, err)
		}
	}
	if r := cfg.UIDs; !r.IsZero() && (r.First == 0 || r.Last < r.First || r.Last == ^uint32(0)) {
		return nil, fmt.Errorf("spawn service: agents' uids %d to %d: want a rising range above 0", r.First, r.Last)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.Grace == 0 {
		cfg.Grace = DefaultGrace
	}
	if cfg.TicketLife == 0 {
		cfg.TicketLife = DefaultTicketLife
	}
	boot, err := bootID()
	if err != nil {
		return nil, fmt.Errorf("spawn service: %w", err)
	}
	last, err := randomBelow(cfg.UIDs)
	if err != nil {
		return nil, fmt.Errorf("spawn service: %w", err)
	}
	own, err := attest.OwnCgroup()
	if err != nil {
		return nil, fmt.Errorf("spawn service: %w", err)
	}
	s := &Server{
		ca: cfg.CA, jwt: cfg.JWT, bundle: cfg.Bundle, attestor: cfg.Attestor, store: cfg.Store, audit: cfg.Log,
		entries: cfg.Entries, broker: cfg.Broker, uidRange: cfg.UIDs, limits: cfg.Limits.WithDefaults(),
		grace: cfg.Grace, ticket: cfg.TicketLife, now: cfg.Now, log: cfg.Logger, bootID: boot, ownPath: own,
		stop:    make(chan struct{}),
		agents:  map[actor.AgentID]*agent{},
		tickets: map[ticketHash]*agent{},
		held:    map[attest.Ancestor]*agent{},
		cgroups: map[string]*agent{},
		uids:    map[uint32]*agent{},
		lastUID: last,
		firsts:  map[uint32]int{},
		rates:   map[uint32]*pace{},
		budgets: map[uint32]*rate.Limiter{},
		keys:    map[[32]byte]*agent{},
	}
	return s, nil
}

// Start takes up what the store kept: agents whose supervisor lives get the grace to resume, all others end. Nobody may be
// served before. After Start, Close is due, even when Start failed.
func (s *Server) Start(ctx context.Context) error {
	s.writer = startWriter(s.store, s.audit, s.log)
	if err := s.restore(ctx); err != nil {
		return fmt.Errorf("spawn service: taking up the agents: %w", err)
	}
	return nil
}

// Close ends all streams and waits for what the server started. Agents don't end by it: their supervisors may
// resume at the next start, within the grace.
func (s *Server) Close() {
	s.mu.Lock()
	if s.closing {
		s.mu.Unlock()
		return
	}
	s.closing = true
	close(s.stop)
	for _, a := range s.held {
		a.process.Close() // its holder returns
	}
	for _, a := range s.agents {
		a.stopTimers()
	}
	s.mu.Unlock()
	s.holders.Wait()
	s.writer.close()
}

// recordBudget says whether one more refusal of a uid may have a record of its own.
func (s *Server) recordBudget(uid uint32) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return limiterOf(s.budgets, uid, 1, 30).Allow()
}

func limiterOf(m map[uint32]*rate.Limiter, uid uint32, perSecond float64, burst int) *rate.Limiter {
	l := m[uid]
	if l == nil {
		l = rate.NewLimiter(rate.Limit(perSecond), burst)
		m[uid] = l
	}
	return l
}
