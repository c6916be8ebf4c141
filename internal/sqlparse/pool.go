package sqlparse

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// ChildArg is the usual name of the hidden subcommand that runs [ChildMain]. Test binaries hook it in
// TestMain:
//
//	if len(os.Args) > 1 && os.Args[1] == sqlparse.ChildArg {
//		if err := sqlparse.ChildMain(os.Stdin, os.Stdout); err != nil {
//			os.Exit(1)
//		}
//		os.Exit(0)
//	}
const ChildArg = "sqlparse-child"

// Config says how a [Pool] parses. Zero values mean the defaults.
type Config struct {
	// Command starts a child that runs [ChildMain] on its standard input and output:
	// {os.Executable(), ChildArg}. Required.
	Command []string
	// Children that run at once; default 2.
	Children int
	// Timeout for one text, and for waiting for a child; default 2 s.
	Timeout time.Duration
	// StartTimeout of a child, until it answers; default 30 s. On a busy machine a start takes longer than a text may.
	StartTimeout time.Duration
	// MaxBytes of one text; default 256 KiB, at most 1 MiB. What is long is rarely what is hostile: drivers ask the catalogue in
	// 20 KB, and write batches in 100. Operators, depth, names and time have limits of their own.
	MaxBytes int
	// CacheBytes bounds each of the two caches by the size of keys and facts; default 8 MiB,
	// negative: no cache.
	CacheBytes int
}

// maxUses is how many texts a child parses before a fresh one takes over: the parser is C, and what
// it leaks or breaks doesn't grow old.
const maxUses = 100_000

// A Pool parses SQL in child processes. It is safe for concurrent use.
type Pool struct {
	cfg       Config
	exact     *cache // by text
	templates *cache // by text without constants
	slots     chan *child
	lanes     lanes
	closed    chan struct{}
	waiters   sync.WaitGroup

	exactHits, templateHits, parsed, deaths atomic.Uint64

	mu   sync.Mutex
	live map[*child]bool // nil once closed
}

// Stats counts what a pool did since it was made.
type Stats struct {
	ExactHits, TemplateHits, Parsed uint64
	// Deaths counts the children that a text killed or that hung on one.
	Deaths uint64
}

// New makes a pool and starts its first child, so that a child that can't start shows at once; ctx
// bounds that only. The caller closes the pool.
func New(ctx context.Context, cfg Config) (*Pool, error) {
	if !available {
		return nil, ErrNoParser
	}
	if len(cfg.Command) == 0 {
		return nil, errors.New("sqlparse: the configuration names no command for children")
	}
	if cfg.Children <= 0 {
		cfg.Children = 2
	}
	if cfg.Timeout <= 0 {
		cfg.Timeout = 2 * time.Second
	}
	if cfg.StartTimeout <= 0 {
		cfg.StartTimeout = 30 * time.Second
	}
	if cfg.MaxBytes <= 0 {
		cfg.MaxBytes = 256 << 10
	}
	if cfg.MaxBytes > maxRequest {
		return nil, fmt.Errorf("sqlparse: MaxBytes %d is over %d", cfg.MaxBytes, maxRequest)
	}
	if cfg.CacheBytes == 0 {
		cfg.CacheBytes = 8 << 20
	}
	p := &Pool{
		cfg: cfg, exact: newCache(cfg.CacheBytes), templates: newCache(cfg.CacheBytes),
		slots: make(chan *child, cfg.Children), closed: make(chan struct{}), live: map[*child]bool{},
		lanes: lanes{width: max(1, cfg.Children-1), byWho: map[string]*lane{}},
	}
	first, err := p.fresh(ctx)
	if err != nil {
		return nil, errors.Join(err, p.Close())
	}
	p.slots <- first
	for range cfg.Children - 1 {
		p.slots <- nil
	}
	return p, nil
}

// ParseFor is [Pool.Parse] for somebody: all but one of the children are out of reach of any one of them, so whoever sends what
// takes its time, or kills a child, keeps the others waiting no longer than for their own texts.
func (p *Pool) ParseFor(ctx context.Context, who, sql string) ([]Statement, error) {
	return p.parse(ctx, sql, func(ctx context.Context) (func(), error) { return p.lanes.enter(ctx, who) })
}

// Parse gives the facts of every statement in sql, none for a text without statements. The result is
// shared with the cache: callers don't change it. An error means that nothing of the text may reach
// a server: [ErrTooLarge], [ErrTooComplex], [ErrDied], [ErrNoChild], [*SyntaxError], [ErrClosed], or the context's.
func (p *Pool) Parse(ctx context.Context, sql string) ([]Statement, error) {
	return p.parse(ctx, sql, func(context.Context) (func(), error) { return func() {}, nil })
}

// parse calls enter where a child is needed.
func (p *Pool) parse(ctx context.Context, sql string, enter func(context.Context) (func(), error)) ([]Statement, error) {
	if len(sql) > p.cfg.MaxBytes {
		return nil, fmt.Errorf("%w: %d bytes, the limit is %d", ErrTooLarge, len(sql), p.cfg.MaxBytes)
	}
	if err := checkText(sql); err != nil {
		return nil, err
	}
	if e, ok := p.exact.get(sql); ok {
		p.exactHits.Add(1)
		return e.statements, nil
	}
	key, templated := templateKey(sql)
	if templated {
		if e, ok := p.templates.get(key); ok {
			p.templateHits.Add(1)
			return e.instance(sql), nil
		}
	}
	wait, cancel := context.WithTimeout(ctx, p.cfg.Timeout)
	leave, err := enter(wait)
	cancel()
	if err != nil {
		return nil, err
	}
	r, size, err := p.ask(ctx, sql)
	leave()
	if err != nil {
		return nil, err
	}
	p.parsed.Add(1)
	if err := r.err(); err != nil {
		return nil, err
	}
	if templated && r.Template && len(r.Statements) == 1 {
		p.templates.put(&entry{key: key, statements: r.Statements, tail: len(sql) - r.Ends[0]}, size)
	} else {
		p.exact.put(&entry{key: sql, statements: r.Statements}, size)
	}
	return r.Statements, nil
}

// instance gives the facts of a template for the text sql, whose constants they don't depend on.
func (e *entry) instance(sql string) []Statement {
	s := e.statements[0]
	s.Text = sql[:len(sql)-e.tail]
	return []Statement{s}
}

// Stats gives the counts.
func (p *Pool) Stats() Stats {
	return Stats{
		ExactHits: p.exactHits.Load(), TemplateHits: p.templateHits.Load(),
		Parsed: p.parsed.Load(), Deaths: p.deaths.Load(),
	}
}

// slot waits for a place among the children: nil where one has to start.
func (p *Pool) slot(ctx context.Context) (*child, error) {
	select { // mostly there is one
	case c := <-p.slots:
		return c, nil
	default:
	}
	ctx, cancel := context.WithTimeout(ctx, p.cfg.Timeout)
	defer cancel()
	select {
	case <-p.closed:
		return nil, ErrClosed
	case <-ctx.Done():
		return nil, fmt.Errorf("waiting for an SQL parser: %w", context.Cause(ctx))
	case c := <-p.slots:
		return c, nil
	}
}

// fresh starts a child and waits until it answers.
func (p *Pool) fresh(ctx context.Context) (*child, error) {
	c, err := p.start()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, p.cfg.StartTimeout)
	defer cancel()
	const greeting = "SELECT 1"
	body, err := c.ask(ctx, greeting)
	if err == nil {
		_, err = decodeReply(body, greeting)
	}
	if err != nil {
		p.end(c)
		return nil, fmt.Errorf("%w: the child %q doesn't answer: %w", ErrNoChild, p.cfg.Command, err)
	}
	return c, nil
}

// ask has a child parse sql and gives its reply and the reply's size.
func (p *Pool) ask(ctx context.Context, sql string) (*reply, int, error) {
	c, err := p.slot(ctx)
	if err != nil {
		return nil, 0, err
	}
	defer func() { p.slots <- c }()
	if c != nil && (c.exited() || c.uses >= maxUses) {
		p.end(c)
		c = nil
	}
	if c == nil {
		fresh, err := p.fresh(ctx)
		if err != nil {
			return nil, 0, err
		}
		c = fresh
	}
	ctx, cancel := context.WithTimeout(ctx, p.cfg.Timeout)
	defer cancel()
	body, err := c.ask(ctx, sql)
	var r *reply
	if err == nil {
		r, err = decodeReply(body, sql)
	}
	if err != nil {
		p.end(c)
		c = nil
		select {
		case <-p.closed:
			return nil, 0, ErrClosed
		default:
		}
		p.deaths.Add(1)
		return nil, 0, fmt.Errorf("%w: %w", ErrDied, err)
	}
	return r, len(body), nil
}

// Close ends the children and waits for them. Parse calls under way fail with [ErrClosed].
func (p *Pool) Close() error {
	p.mu.Lock()
	live := p.live
	p.live = nil
	if live != nil {
		close(p.closed)
	}
	p.mu.Unlock()
	for c := range live {
		c.kill()
	}
	p.waiters.Wait()
	return nil
}
