package supervise

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/client"
	spawnv1 "github.com/deputymesh/deputy/proto/deputy/spawn/v1"
)

const (
	// resumeWithin is how long the issuer keeps an agent whose stream is gone.
	resumeWithin  = 5 * time.Second
	resumeEvery   = 200 * time.Millisecond
	answerTimeout = 10 * time.Second
)

// Identity is an agent's key, its SVID and its stream to the issuer: the agent lives as long as the
// stream. The key is in this process's memory alone. Safe for concurrent use.
type Identity struct {
	rpc  spawnv1.SpawnClient
	log  *slog.Logger
	done chan struct{}
	stop context.CancelFunc

	// asked is the next key, from when the issuer is asked for it until its answer is here: when an answer is lost, it may be the
	// current one or not. There is one at a time, however often is asked. Only keep's goroutine uses it.
	asked *nextKey

	mu      sync.Mutex
	svid    *x509svid.SVID     // guarded by mu
	bundle  *x509bundle.Bundle // guarded by mu
	grade   actor.Grade        // guarded by mu
	changed chan struct{}      // guarded by mu; closed at each change
	err     error              // guarded by mu; set before done is closed
}

// nextKey is a key that isn't certified yet, and the request for that.
type nextKey struct {
	key *ecdsa.PrivateKey
	csr []byte
}

// Attach presents a ticket with a fresh key and returns when the issuer has answered. The identity
// renews itself at half-life until ctx is done, Close is called or the issuer ends it; see Done.
func Attach(ctx context.Context, rpc spawnv1.SpawnClient, ticket []byte, log *slog.Logger) (*Identity, error) {
	key, csr, err := client.NewRequest()
	if err != nil {
		return nil, err
	}
	life, stop := context.WithCancel(ctx)
	id := &Identity{rpc: rpc, log: logger(log), done: make(chan struct{}), stop: stop, changed: make(chan struct{})}
	s, err := id.open(life, &spawnv1.AttachRequest{Ticket: ticket, Csr: csr}, key)
	if err != nil {
		stop()
		return nil, fmt.Errorf("attaching to the issuer: %w", plain(err))
	}
	go id.keep(life, s)
	return id, nil
}

// attachment is one stream to the issuer.
type attachment struct {
	stream  spawnv1.Spawn_AttachClient
	cancel  context.CancelFunc
	answers chan *spawnv1.AttachResponse
	failed  chan error
}

func (id *Identity) open(ctx context.Context, first *spawnv1.AttachRequest, key *ecdsa.PrivateKey) (*attachment, error) {
	// Not ctx itself: an agent that is done half-closes its stream, which a cancelled one can't.
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stream, err := id.rpc.Attach(ctx)
	if err != nil {
		cancel()
		return nil, err
	}
	a := &attachment{stream: stream, cancel: cancel, answers: make(chan *spawnv1.AttachResponse), failed: make(chan error, 1)}
	go func() {
		for {
			m, err := stream.Recv()
			if err != nil {
				a.failed <- err
				return
			}
			select {
			case a.answers <- m:
			case <-ctx.Done():
				a.failed <- ctx.Err()
				return
			}
		}
	}()
	if err := id.ask(a, first, key); err != nil {
		cancel()
		return nil, err
	}
	return a, nil
}

// goodbye tells the issuer that the agent is done, and waits a moment for it to have heard.
func (a *attachment) goodbye() error {
	if err := a.stream.CloseSend(); err != nil {
		return err
	}
	timeout := time.NewTimer(time.Second)
	defer timeout.Stop()
	for {
		select {
		case <-a.answers:
		case err := <-a.failed:
			return err
		case <-timeout.C:
			return errors.New("the issuer did not end the stream in time")
		}
	}
}

// ask sends one request and takes its answer.
func (id *Identity) ask(a *attachment, req *spawnv1.AttachRequest, key *ecdsa.PrivateKey) error {
	if err := a.stream.Send(req); err != nil && !errors.Is(err, io.EOF) {
		return err // on EOF the reader has the reason
	}
	timeout := time.NewTimer(answerTimeout)
	defer timeout.Stop()
	select {
	case m := <-a.answers:
		return id.apply(m, key)
	case err := <-a.failed:
		a.failed <- err
		return err
	case <-timeout.C:
		return status.Error(codes.DeadlineExceeded, "the issuer did not answer in time")
	}
}

func (id *Identity) apply(m *spawnv1.AttachResponse, key *ecdsa.PrivateKey) error {
	svid, bundle, err := client.ReadIdentity(m.GetSpiffeId(), m.GetSvid(), m.GetBundle(), key)
	if err != nil {
		return err
	}
	grade, _, err := actor.GradeFromCertificate(svid.Certificates[0])
	if err != nil {
		return fmt.Errorf("the issuer's answer: %w", err)
	}
	id.mu.Lock()
	defer id.mu.Unlock()
	if id.svid != nil && id.svid.ID != svid.ID {
		return fmt.Errorf("the issuer's answer: renewed as %s, not %s", svid.ID, id.svid.ID)
	}
	id.svid, id.bundle, id.grade = svid, bundle, grade
	close(id.changed)
	id.changed = make(chan struct{})
	return nil
}

// keep renews at half-life and resumes a broken stream within the issuer's patience.
func (id *Identity) keep(ctx context.Context, a *attachment) {
	err := id.renewals(ctx, a)
	id.mu.Lock()
	if ctx.Err() != nil {
		err = context.Canceled
	}
	id.err = err
	id.mu.Unlock()
	id.stop()
	close(id.done)
}

func (id *Identity) renewals(ctx context.Context, a *attachment) error {
	timer := time.NewTimer(id.halfLife())
	defer timer.Stop()
	defer func() { a.cancel() }()
	for {
		var err error
		select {
		case <-ctx.Done():
			id.log.DebugContext(ctx, "the agent is done", "stream", a.goodbye())
			return ctx.Err()
		case err = <-a.failed:
		case <-a.answers:
			err = errors.New("the issuer sent what was not asked for")
		case <-timer.C:
			var req *spawnv1.AttachRequest
			if req, err = id.request(id.currentKey()); err == nil {
				if err = id.ask(a, req, id.asked.key); err == nil {
					id.asked = nil
				}
			}
		}
		if err != nil {
			id.log.WarnContext(ctx, "the stream to the issuer broke; resuming", "error", plain(err))
			a.cancel()
			if a, err = id.resume(ctx, err); err != nil {
				a = &attachment{cancel: func() {}}
				return err
			}
		}
		timer.Reset(id.halfLife())
	}
}

func (id *Identity) resume(ctx context.Context, cause error) (*attachment, error) {
	deadline := time.Now().Add(resumeWithin)
	for {
		if final(cause) && id.asked == nil {
			return nil, fmt.Errorf("the issuer ended this agent: %w", plain(cause))
		}
		// When an answer was lost, to a renewal or to an attempt here, only the issuer knows which key is the current one.
		signers := []crypto.Signer{id.currentKey()}
		if id.asked != nil {
			signers = append(signers, id.asked.key)
		}
		over := true // no key is worth another try
		for _, signer := range signers {
			req, err := id.request(signer)
			if err != nil {
				return nil, err
			}
			req.Resume = id.ID().String()
			a, err := id.open(ctx, req, id.asked.key)
			if err == nil {
				id.asked = nil
				return a, nil
			}
			cause = err
			over = over && final(err)
		}
		if over {
			return nil, fmt.Errorf("the issuer ended this agent: %w", plain(cause))
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("the issuer can't be reached, so this agent has ended there: %w", plain(cause))
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(resumeEvery):
		}
	}
}

// final tells answers that no second try changes.
func final(err error) bool {
	switch status.Code(err) {
	case codes.PermissionDenied, codes.NotFound, codes.FailedPrecondition, codes.InvalidArgument, codes.Unimplemented, codes.Unauthenticated, codes.Aborted:
		return true
	}
	return false
}

func (id *Identity) currentKey() crypto.Signer {
	id.mu.Lock()
	defer id.mu.Unlock()
	return id.svid.PrivateKey
}

// request asks for the next key, and makes it where there is none that was asked for, proven by the one that may be current.
func (id *Identity) request(current crypto.Signer) (*spawnv1.AttachRequest, error) {
	if id.asked == nil {
		key, csr, err := client.NewRequest()
		if err != nil {
			return nil, err
		}
		id.asked = &nextKey{key, csr}
	}
	proof, err := client.ProveRenewal(current, id.asked.csr)
	if err != nil {
		return nil, err
	}
	return &spawnv1.AttachRequest{Csr: id.asked.csr, Proof: proof}, nil
}

func (id *Identity) halfLife() time.Duration {
	id.mu.Lock()
	defer id.mu.Unlock()
	return max(time.Until(id.svid.Certificates[0].NotAfter)/2, time.Second)
}

// ID is the agent's name.
func (id *Identity) ID() actor.AgentID {
	id.mu.Lock()
	defer id.mu.Unlock()
	a, _ := actor.ParseAgentID(id.svid.ID)
	return a
}

// Grade is what the issuer wrote into the SVID.
func (id *Identity) Grade() actor.Grade {
	id.mu.Lock()
	defer id.mu.Unlock()
	return id.grade
}

// GetX509SVID is the current SVID; an error when the issuer ended the agent.
func (id *Identity) GetX509SVID() (*x509svid.SVID, error) {
	id.mu.Lock()
	defer id.mu.Unlock()
	if id.err != nil {
		return nil, id.err
	}
	return id.svid, nil
}

// GetX509BundleForTrustDomain is the bundle of the agent's own trust domain.
func (id *Identity) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	id.mu.Lock()
	defer id.mu.Unlock()
	return id.bundle.GetX509BundleForTrustDomain(td)
}

// Changed is closed at the next change of SVID or bundle.
func (id *Identity) Changed() <-chan struct{} {
	id.mu.Lock()
	defer id.mu.Unlock()
	return id.changed
}

// Done is closed when the identity has ended; Err then says why.
func (id *Identity) Done() <-chan struct{} { return id.done }

// Err is nil before Done is closed.
func (id *Identity) Err() error {
	id.mu.Lock()
	defer id.mu.Unlock()
	return id.err
}

// Close ends the stream, and with it the agent.
func (id *Identity) Close() {
	id.stop()
	<-id.done
}

// plain takes gRPC's wording off an error that people read.
func plain(err error) error {
	if st, ok := status.FromError(err); ok && st.Code() != codes.OK {
		return &remoteError{st}
	}
	return err
}

type remoteError struct{ status *status.Status }

func (e *remoteError) Error() string              { return e.status.Message() }
func (e *remoteError) GRPCStatus() *status.Status { return e.status }
