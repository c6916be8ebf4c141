package broker_test

import (
	"context"
	"crypto/ecdsa"
	"encoding/json"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/coreos/go-oidc/v3/oidc/oidctest"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/internal/testca"
	spawnv1 "github.com/deputymesh/deputy/proto/deputy/spawn/v1"
)

// clock is a time that tests move.
type clock struct {
	mu     sync.Mutex
	offset time.Duration
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Add(c.offset)
}

func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.offset += d
}

// provider is an identity provider.
type provider struct {
	*httptest.Server
	key *ecdsa.PrivateKey
}

func newProvider(t *testing.T) *provider {
	t.Helper()
	key := testca.NewKey(t)
	o := &oidctest.Server{PublicKeys: []oidctest.PublicKey{{PublicKey: key.Public(), KeyID: "k", Algorithm: "ES256"}}, Algorithms: []string{"ES256"}}
	srv := httptest.NewTLSServer(o)
	t.Cleanup(srv.Close)
	o.SetIssuer(srv.URL)
	return &provider{srv, key}
}

// issuer is an issuer that only says which agents ended.
type issuer struct {
	spawnv1.UnimplementedSpawnServer
	mu    sync.Mutex
	ended []*spawnv1.EndedAgent
	news  chan struct{}
}

func (i *issuer) end(id actor.AgentID) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.ended = append(i.ended, &spawnv1.EndedAgent{Revision: uint64(len(i.ended) + 1), SpiffeId: id.String(), Reason: "exited", EndedAt: timestamppb.Now()})
	close(i.news)
	i.news = make(chan struct{})
}

func (i *issuer) Ended(req *spawnv1.EndedRequest, s grpc.ServerStreamingServer[spawnv1.EndedAgent]) error {
	at, live := req.GetAfterRevision(), false
	for {
		i.mu.Lock()
		if at > uint64(len(i.ended)) {
			i.mu.Unlock()
			return status.Error(codes.FailedPrecondition, "ahead")
		}
		more, news := i.ended[at:], i.news
		i.mu.Unlock()
		for _, e := range more {
			at = e.GetRevision()
			if err := s.Send(&spawnv1.EndedAgent{Revision: e.GetRevision(), SpiffeId: e.GetSpiffeId(), Reason: e.GetReason(), EndedAt: e.GetEndedAt(), Live: live}); err != nil {
				return err
			}
		}
		if !live {
			live = true
			if err := s.Send(&spawnv1.EndedAgent{Revision: at, Live: true}); err != nil {
				return err
			}
		}
		select {
		case <-news:
		case <-s.Context().Done():
			return nil
		}
	}
}

// Revoke keeps nothing: the broker's word is the issuer's to act on.
func (i *issuer) Revoke(context.Context, *spawnv1.RevokeRequest) (*spawnv1.RevokeResponse, error) {
	return &spawnv1.RevokeResponse{}, nil
}

// login is a user who signed in.
type login struct {
	m       *mesh
	key     *ecdsa.PrivateKey
	user    actor.SubjectID
	sid     string
	idToken string
}

func (m *mesh) login(sub string, change ...func(map[string]any)) *login {
	m.t.Helper()
	return m.loginAt(m.idp, sub, change...)
}

func (m *mesh) loginAt(p *provider, sub string, change ...func(map[string]any)) *login {
	m.t.Helper()
	key := testca.NewKey(m.t)
	now := m.clock.now()
	c := map[string]any{
		"iss": p.URL, "sub": sub, "aud": "deputy", "nonce": actor.NonceFor(key.Public()), "sid": "sid-" + sub,
		"iat": now.Unix(), "auth_time": now.Unix(), "exp": now.Add(time.Hour).Unix(), "groups": []string{"analysts"},
	}
	for _, f := range change {
		f(c)
	}
	raw, err := json.Marshal(c)
	if err != nil {
		m.t.Fatal(err)
	}
	l := &login{m: m, key: key, user: actor.SubjectID{Issuer: p.URL, Subject: sub}, idToken: oidctest.SignIDToken(p.key, "k", "ES256", string(raw))}
	sid, _ := c["sid"].(string)
	l.sid = actor.SessionID(l.idToken, sid)
	return l
}

func (m *mesh) cap(verbs ...string) actor.Details {
	m.t.Helper()
	id, err := actor.TargetID(m.ca.TrustDomain(), "orders-db")
	if err != nil {
		m.t.Fatal(err)
	}
	d := actor.PostgresDetail{Actions: verbs, Databases: []string{"orders"}}
	d.Locations = append(d.Locations, id)
	return actor.Details{d}
}

// root is the user's grant to a first agent.
func (l *login) root(to *x509svid.SVID, change ...func(*actor.UserGrant)) string {
	l.m.t.Helper()
	now := l.m.clock.now()
	g := actor.UserGrant{
		Issuer: l.user.Issuer, Root: actor.Root{Issuer: l.user.Issuer, Hash: actor.Hash(l.idToken), SID: l.sid}, Delegate: agentID(l.m.t, to),
		Mesh: meshURL, Subject: l.user, Txn: actor.NewHexID(), Cap: l.m.cap("select", "update"), Left: 3, Purpose: "q3 refunds",
		IssuedAt: now, Expires: now.Add(30 * time.Minute), ID: actor.NewHexID(),
	}
	for _, f := range change {
		f(&g)
	}
	s, err := actor.SignUserGrant(l.key, g)
	if err != nil {
		l.m.t.Fatal(err)
	}
	return s
}

// pass makes from's grant to another agent, after the newest of before.
func (m *mesh) pass(from, to *x509svid.SVID, before string, change ...func(*actor.Grant)) string {
	m.t.Helper()
	now := m.clock.now()
	g, err := actor.Narrow(before, actor.Narrowing{
		Issuer: agentID(m.t, from), Delegate: agentID(m.t, to), IssuedAt: now, Expires: now.Add(time.Hour), NotAfter: from.Certificates[0].NotAfter,
	})
	if err != nil {
		m.t.Fatal(err)
	}
	for _, f := range change {
		f(&g)
	}
	s, err := actor.SignGrant(from.PrivateKey, from.Certificates, g)
	if err != nil {
		m.t.Fatal(err)
	}
	return s
}
