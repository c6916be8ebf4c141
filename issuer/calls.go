package issuer

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"

	"github.com/deputymesh/deputy/issuer/attest"
)

const (
	// callsPerUID bounds the calls that are under way from processes of one uid. A supervisor has one for itself and one for
	// each sub-agent in its program's process.
	callsPerUID = 2048
	// requestWithin bounds how long a call may be open without its first message.
	requestWithin = 10 * time.Second
)

// calls bounds what calls cost: each holds memory and a goroutine from its headers on, whether a message ever comes or not.
// Root isn't limited in number.
type calls struct {
	mu sync.Mutex
	n  map[uint32]int // guarded by mu
}

type lateKey struct{}

// open is asked when a call's headers have come, before anything is spent on it.
func (c *calls) open(ctx context.Context, _ *tap.Info) (context.Context, error) {
	p, err := attest.PeerFrom(ctx)
	if err != nil {
		return nil, status.Error(codes.Unauthenticated, err.Error())
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if p.UID != 0 && c.n[p.UID] >= callsPerUID {
		return nil, status.Errorf(codes.ResourceExhausted, "uid %d has %d calls under way already", p.UID, callsPerUID)
	}
	c.n[p.UID]++
	ctx, cancel := context.WithCancel(ctx)
	late := time.AfterFunc(requestWithin, cancel)
	context.AfterFunc(ctx, func() { // the call is over
		late.Stop()
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.n[p.UID]--; c.n[p.UID] == 0 {
			delete(c.n, p.UID)
		}
	})
	return context.WithValue(ctx, lateKey{}, late), nil
}

func begun(ctx context.Context) {
	if late, ok := ctx.Value(lateKey{}).(*time.Timer); ok {
		late.Stop()
	}
}

// unary runs once the message of a call is there.
func (c *calls) unary(ctx context.Context, req any, _ *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
	begun(ctx)
	return h(ctx, req)
}

func (c *calls) stream(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, h grpc.StreamHandler) error {
	return h(srv, &firstMessage{ServerStream: ss})
}

// firstMessage notes a stream's first message. Messages are read by one goroutine at a time.
type firstMessage struct {
	grpc.ServerStream
	came bool
}

func (f *firstMessage) RecvMsg(m any) error {
	err := f.ServerStream.RecvMsg(m)
	if err == nil && !f.came {
		f.came = true
		begun(f.Context())
	}
	return err
}
