package tcp

import (
	"context"

	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/internal/target"
	"github.com/deputymesh/deputy/proxy"
)

// Core is what the engine needs of the proxy's core for its one target; [ForTarget] makes one.
type Core interface {
	// Open verifies peer and credential. The error is a [*proxy.Refusal]. The caller closes the session.
	Open(ctx context.Context, peer proxy.Peer, credential string, conn proxy.Connection) (Session, error)
	// Count counts a failure of somebody who isn't authenticated yet.
	Count(class string)
}

// Session is one verified connection; see [proxy.Session] for the contract of each method.
type Session interface {
	ID() string
	Context() context.Context
	Authorize(ctx context.Context, cmd proxy.Command) (Pass, error)
	Close(reason, detail string)
}

// Pass allows one connection to the service; see [proxy.Pass] for the contract of each method.
type Pass interface {
	RecordID() audit.RecordID
	Use() error
	Forwarded(bytes int64)
	Completed(ctx context.Context, o proxy.Outcome) error
}

// ForTarget gives an engine the part of the core that is about one target.
func ForTarget(core *proxy.Core, t target.Name) Core { return targetCore{core, t} }

type targetCore struct {
	core   *proxy.Core
	target target.Name
}

func (c targetCore) Open(ctx context.Context, peer proxy.Peer, credential string, conn proxy.Connection) (Session, error) {
	s, err := c.core.Open(ctx, peer, credential, c.target, conn)
	if err != nil {
		return nil, err
	}
	return coreSession{s}, nil
}

func (c targetCore) Count(class string) { c.core.Count(class) }

type coreSession struct{ *proxy.Session }

func (s coreSession) Authorize(ctx context.Context, cmd proxy.Command) (Pass, error) {
	p, err := s.Session.Authorize(ctx, cmd)
	if err != nil {
		return nil, err
	}
	return p, nil
}
