package sqlparse

import (
	"context"
	"io"
	"time"
)

// ChildArg is the usual name of the hidden subcommand that runs [ChildMain]. Test binaries hook it in
// TestMain: if len(os.Args) > 1 && os.Args[1] == sqlparse.ChildArg { … ChildMain(os.Stdin, os.Stdout) }.
const ChildArg = "sqlparse-child"

// Config says how a [Pool] parses. Zero values mean the defaults.
type Config struct {
	// Command starts a child that runs [ChildMain] on its standard input and output:
	// {os.Executable(), ChildArg}. Required.
	Command []string
	// Children that run at once; default 2.
	Children int
	// Timeout for one text, waiting for a child included; default 2 s.
	Timeout time.Duration
	// MaxBytes of one text; default 16 KiB.
	MaxBytes int
	// CacheBytes bounds each of the two caches by the size of keys and facts; default 8 MiB,
	// negative: no cache.
	CacheBytes int
}

// A Pool parses SQL in child processes. It is safe for concurrent use.
type Pool struct{}

// New makes a pool and starts its first child, so that a child that can't start shows at once.
func New(cfg Config) (*Pool, error) { return nil, ErrNoParser }

// Parse gives the facts of every statement in sql, none for a text without statements. The result is
// shared with the cache: callers don't change it. An error means that nothing of the text may reach
// a server: [ErrTooLarge], [ErrTooComplex], [ErrDied], [*SyntaxError], or the context's.
func (p *Pool) Parse(ctx context.Context, sql string) ([]Statement, error) { return nil, ErrNoParser }

// Close ends the children and waits for them. Parse calls under way fail with [ErrClosed].
func (p *Pool) Close() error { return nil }

// ChildMain answers requests on stdin with facts on stdout until stdin ends: the body of the hidden
// subcommand. It trusts nothing on stdin but its framing.
func ChildMain(stdin io.Reader, stdout io.Writer) error { return ErrNoParser }
