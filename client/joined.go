package client

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/deputymesh/deputy/actor"
	agentv1 "github.com/deputymesh/deputy/proto/deputy/agent/v1"
)

// ErrNoSpawn is returned by Spawn of a sub-agent that lives in its parent's process: the issuer adds
// children only for a supervisor process. Start such agents with `deputy run`.
var ErrNoSpawn = errors.New("an in-process sub-agent can't start agents of its own; use `deputy run` for that")

const renewalContext = "deputy-svid-renewal-v1"

// joined is an in-process sub-agent: its key is here, its supervisor relays its requests to the issuer.
type joined struct {
	stream  agentv1.Agent_JoinClient
	cancel  context.CancelFunc
	done    chan struct{} // closed when the reader ended
	mesh    Mesh
	targets []Target
	ex      *Exchanger
	relays  sync.WaitGroup
	ctx     context.Context

	sendMu sync.Mutex // one sender at a time

	mu      sync.Mutex
	svid    *x509svid.SVID     // guarded by mu
	next    *ecdsa.PrivateKey  // guarded by mu: key of a renewal under way
	bundle  *x509bundle.Bundle // guarded by mu
	grade   actor.Grade        // guarded by mu
	chain   Chain              // guarded by mu
	failure error              // guarded by mu: why the identity ended
}

func join(ctx context.Context, rpc agentv1.AgentClient, name string, d Delegation) (*Agent, error) {
	doing := "starting the sub-agent " + name
	p, err := DelegationToProto(d)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", doing, err)
	}
	key, csr, err := NewRequest()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", doing, err)
	}
	// The sub-agent outlives this call and ends with Close, whatever ctx is for.
	life, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stopEarly := context.AfterFunc(ctx, cancel)
	j, err := joinStream(life, cancel, rpc, name, p, key, csr)
	if !stopEarly() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		cancel()
		return nil, rpcError(doing, err)
	}
	go j.read()
	return &Agent{j}, nil
}

func joinStream(ctx context.Context, cancel context.CancelFunc, rpc agentv1.AgentClient, name string, d *agentv1.Delegation, key *ecdsa.PrivateKey, csr []byte) (*joined, error) {
	stream, err := rpc.Join(ctx)
	if err != nil {
		return nil, err
	}
	if err := stream.Send(&agentv1.JoinRequest{Name: name, Delegation: d, Csr: csr}); err != nil {
		return nil, err
	}
	first, err := stream.Recv()
	if err != nil {
		return nil, err
	}
	j := &joined{stream: stream, cancel: cancel, done: make(chan struct{}), next: key, ctx: ctx}
	if j.mesh, err = MeshFromProto(first.GetMesh()); err != nil {
		return nil, err
	}
	if j.targets, err = TargetsFromProto(first.GetTargets()); err != nil {
		return nil, err
	}
	if err := j.apply(first); err != nil {
		return nil, err
	}
	if j.svid == nil || len(j.chain.Grants) == 0 {
		return nil, errors.New("the supervisor answered without an identity or without grants")
	}
	j.ex, err = NewExchanger(ExchangerConfig{Mesh: j.mesh, Source: j, Chain: j.currentChain})
	return j, err
}

// read takes new identities and grants until the stream ends, and asks for renewal at half-life.
func (j *joined) read() {
	defer close(j.done)
	messages := make(chan *agentv1.JoinResponse)
	failed := make(chan error, 1)
	go func() {
		for {
			m, err := j.stream.Recv()
			if err != nil {
				failed <- err
				return
			}
			select {
			case messages <- m:
			case <-j.ctx.Done():
				failed <- j.ctx.Err()
				return
			}
		}
	}()
	timer := time.NewTimer(j.halfLife())
	defer timer.Stop()
	for {
		var err error
		select {
		case m := <-messages:
			if err = j.apply(m); err == nil && m.GetIdentity() != nil {
				timer.Reset(j.halfLife())
			}
		case <-timer.C:
			err = j.renew()
		case err = <-failed:
		}
		if err != nil {
			j.mu.Lock()
			j.failure = fmt.Errorf("the sub-agent has ended: %w", err)
			j.mu.Unlock()
			j.cancel()
			return
		}
	}
}

func (j *joined) halfLife() time.Duration {
	j.mu.Lock()
	defer j.mu.Unlock()
	leaf := j.svid.Certificates[0]
	return max(time.Until(leaf.NotAfter)/2, time.Second)
}

func (j *joined) renew() error {
	key, csr, err := NewRequest()
	if err != nil {
		return err
	}
	j.mu.Lock()
	current := j.svid.PrivateKey
	j.next = key
	j.mu.Unlock()
	proof, err := ProveRenewal(current, csr)
	if err != nil {
		return err
	}
	j.sendMu.Lock()
	defer j.sendMu.Unlock()
	return j.stream.Send(&agentv1.JoinRequest{Csr: csr, Proof: proof})
}

func (j *joined) apply(m *agentv1.JoinResponse) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if g := m.GetGrants(); g != nil {
		j.chain = Chain{Grants: g.GetGrants(), IDToken: g.GetIdToken()}
	}
	id := m.GetIdentity()
	if id == nil {
		return nil
	}
	if j.next == nil {
		return errors.New("an identity came that was not asked for")
	}
	svid, bundle, err := ReadIdentity(id.GetSpiffeId(), id.GetSvid(), id.GetBundle(), j.next)
	if err != nil {
		return err
	}
	if j.svid != nil && j.svid.ID != svid.ID {
		return fmt.Errorf("the renewed identity is %s, not %s", svid.ID, j.svid.ID)
	}
	j.svid, j.bundle, j.next, j.grade = svid, bundle, nil, actor.Grade(id.GetGrade())
	return nil
}

// NewRequest makes an ECDSA P-256 key and a PKCS#10 request for it, DER. Names are the issuer's matter.
func NewRequest() (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("making a key: %w", err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, nil, fmt.Errorf("making a certificate request: %w", err)
	}
	return key, csr, nil
}

// ProveRenewal signs a renewal request with the current key, as deputy.spawn.v1 says.
func ProveRenewal(current crypto.Signer, csr []byte) ([]byte, error) {
	h := sha256.New()
	h.Write([]byte(renewalContext))
	h.Write(csr)
	proof, err := current.Sign(rand.Reader, h.Sum(nil), crypto.SHA256)
	if err != nil {
		return nil, fmt.Errorf("proving the current key: %w", err)
	}
	return proof, nil
}

// ReadIdentity checks what the issuer sent: the SVID is for this key and ID, and verifies against the bundle.
func ReadIdentity(id string, chain, bundle [][]byte, key *ecdsa.PrivateKey) (*x509svid.SVID, *x509bundle.Bundle, error) {
	want, err := spiffeid.FromString(id)
	if err != nil {
		return nil, nil, fmt.Errorf("the issuer's answer: %w", err)
	}
	certs := make([]*x509.Certificate, len(chain))
	for i, der := range chain {
		if certs[i], err = x509.ParseCertificate(der); err != nil {
			return nil, nil, fmt.Errorf("the issuer's answer: certificate %d: %w", i, err)
		}
	}
	roots := x509bundle.New(want.TrustDomain())
	for i, der := range bundle {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, nil, fmt.Errorf("the issuer's answer: authority %d: %w", i, err)
		}
		roots.AddX509Authority(c)
	}
	got, _, err := x509svid.Verify(certs, roots)
	if err != nil {
		return nil, nil, fmt.Errorf("the issuer's answer: %w", err)
	}
	if got != want {
		return nil, nil, fmt.Errorf("the issuer's answer: the SVID is for %s, not %s", got, want)
	}
	if pub, ok := certs[0].PublicKey.(*ecdsa.PublicKey); !ok || !pub.Equal(key.Public()) {
		return nil, nil, errors.New("the issuer's answer: the SVID is for another key")
	}
	return &x509svid.SVID{ID: want, Certificates: certs, PrivateKey: key}, roots, nil
}

// GetX509SVID is the current SVID.
func (j *joined) GetX509SVID() (*x509svid.SVID, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.failure != nil {
		return nil, j.failure
	}
	return j.svid, nil
}

// GetX509BundleForTrustDomain is the bundle of the agent's own trust domain.
func (j *joined) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.bundle.GetX509BundleForTrustDomain(td)
}

func (j *joined) currentChain() Chain {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.chain
}

func (j *joined) Source(context.Context) (Source, error) { return j, nil }

func (j *joined) Describe(context.Context) (Description, error) {
	svid, err := j.GetX509SVID()
	if err != nil {
		return Description{}, err
	}
	j.mu.Lock()
	grade, chain := j.grade, j.chain
	j.mu.Unlock()
	d, err := DescribeChain(chain)
	if err != nil {
		return Description{}, err
	}
	id, err := actor.ParseAgentID(svid.ID)
	if err != nil {
		return Description{}, err
	}
	d.ID, d.Grade, d.Mesh, d.Targets, d.SVIDExpires = id, grade, j.mesh, j.targets, svid.Certificates[0].NotAfter
	return d, nil
}

// DescribeChain reads what the grants say: user, task, purpose and what the newest one allows. It
// verifies nothing.
func DescribeChain(chain Chain) (Description, error) {
	if len(chain.Grants) == 0 {
		return Description{}, errors.New("this agent holds no grant")
	}
	last := chain.Grants[len(chain.Grants)-1]
	u, err := actor.ParseUserGrant(last)
	if err != nil {
		return Description{}, fmt.Errorf("reading the user grant: %w", err)
	}
	d := Description{User: u.Subject, Purpose: u.Purpose, Task: u.Txn, Cap: u.Cap, Left: u.Left, GrantsExpire: u.Expires, ID: u.Delegate}
	if len(chain.Grants) > 1 {
		g, err := actor.ParseGrant(chain.Grants[0])
		if err != nil {
			return Description{}, fmt.Errorf("reading the newest grant: %w", err)
		}
		d.Cap, d.Left, d.GrantsExpire, d.ID = g.Cap, g.Left, g.Expires, g.Delegate
	}
	return d, nil
}

func (j *joined) credential(ctx context.Context, target string, details actor.Details) (Credential, error) {
	if _, err := findTarget(j.targets, target); err != nil {
		return Credential{}, err
	}
	return j.ex.Credential(ctx, target, details)
}

func (j *joined) Delegate(_ context.Context, delegate actor.AgentID, d Delegation) (Chain, error) {
	chain, _, err := Narrow(j, j.currentChain(), delegate, d, time.Now())
	return chain, err
}

func (j *joined) Spawn(context.Context, string, Delegation) (*Agent, error) { return nil, ErrNoSpawn }

// DialPostgres returns a connection whose other end is a relay in this process, under this agent's own
// SVID and credential. The driver speaks the protocol in plain and is asked for no password.
func (j *joined) DialPostgres(_ context.Context, target string) (net.Conn, error) {
	t, err := postgresTarget(j.targets, target)
	if err != nil {
		return nil, err
	}
	if _, err := j.GetX509SVID(); err != nil {
		return nil, err
	}
	near, far := net.Pipe()
	r := &PostgresRelay{Target: t, Source: j, Credential: func(ctx context.Context) (Credential, error) {
		return j.ex.Credential(ctx, target, nil)
	}}
	j.relays.Go(func() {
		if err := r.Serve(j.ctx, far); err != nil {
			slog.DebugContext(j.ctx, "the connection to the target ended", "target", target, "error", err)
		}
	})
	return near, nil
}

func (j *joined) Close() error {
	j.sendMu.Lock()
	_ = j.stream.CloseSend()
	j.sendMu.Unlock()
	j.cancel()
	<-j.done
	j.relays.Wait()
	return nil
}
