package proxy

import (
	"context"
	"log/slog"
	"time"

	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/internal/target"
	"github.com/deputymesh/deputy/policy"
)

// Config makes a core.
type Config struct {
	Log    *audit.Log
	Logger *slog.Logger
	Now    func() time.Time
}

// Core verifies, decides and records for the engines of one proxy.
type Core struct {
	cfg Config
}

// New makes a core.
func New(cfg Config) (*Core, error) { return &Core{cfg: cfg}, nil }

// Open verifies peer and credential for the target and opens a session. The error is a [*Refusal]. The
// caller must Close the session.
func (c *Core) Open(ctx context.Context, peer Peer, credential string, t target.Name, conn Connection) (*Session, error) {
	return nil, &Refusal{Class: ClassNotReady, Reason: "this proxy isn't ready yet"}
}

// MaskedTables lists the tables of a target of which some policy masks a column, whoever it is for.
func (c *Core) MaskedTables(t target.Name) []policy.MaskedTable { return nil }

// Count counts a failure of somebody who isn't authenticated yet; the log records them in aggregate.
func (c *Core) Count(class string) { c.cfg.Log.Count(class) }
