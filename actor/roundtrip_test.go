package actor_test

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/deputymesh/deputy/actor"
	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// session walks the whole way with the package's own signers: user grant, grants,
// exchange, token, credential.
func session(t testing.TB, agents ...string) (peer []*x509.Certificate, credential string) {
	t.Helper()
	login := keyFor("login")
	f := chainOf(agents...)
	idToken := f.idToken.sign()
	details := must(actor.ParseDetails(must(json.Marshal(pgCap()))))
	raw, err := actor.SignUserGrant(login, actor.UserGrant{
		Issuer: idpURL, Root: actor.Root{Issuer: idpURL, Hash: actor.Hash(idToken), SID: actor.SessionID(idToken, "d3f1c2b0")},
		Delegate: agent(agents[0]), Mesh: meshURL, Subject: user, Txn: actor.NewHexID(), Cap: details, Left: actor.MaxLeft,
		Purpose: "q3", IssuedAt: start, Expires: start.Add(30 * time.Minute), ID: actor.NewHexID(),
	})
	if err != nil {
		t.Fatal(err)
	}
	grants := []string{raw}
	for i := 0; i+1 < len(agents); i++ {
		chain := svid(agents[i])
		g, err := actor.Narrow(grants[0], actor.Narrowing{Issuer: agent(agents[i]), Delegate: agent(agents[i+1]),
			IssuedAt: start, Expires: start.Add(time.Hour), NotAfter: chain[0].NotAfter})
		if err != nil {
			t.Fatal(err)
		}
		raw, err := actor.SignGrant(keyFor(agents[i]), chain, g)
		if err != nil {
			t.Fatal(err)
		}
		grants = append([]string{raw}, grants...)
	}
	peer = svid(agents[len(agents)-1])
	broker := newVerifier(t, func(c *actor.Config) { c.Target = spiffeid.ID{}; c.MaxActors = actor.HardMaxActors })
	s, err := broker.VerifySubject(t.Context(), peer, actor.JoinSubject(grants, idToken))
	if err != nil {
		t.Fatal(err)
	}
	tok, err := s.Token(actor.TokenRequest{Mesh: meshURL, Target: target, Details: s.Cap.ForTarget(target), Roles: []string{"analyst"}, Now: now})
	if err != nil {
		t.Fatal(err)
	}
	key := keyFor("token")
	signed, err := actor.SignToken(key, actor.NonceFor(key.Public()), tok)
	if err != nil {
		t.Fatal(err)
	}
	return peer, actor.JoinCredential(signed, grants, idToken)
}

func TestWhatThePackageSignsItAccepts(t *testing.T) {
	for n := 1; n <= actor.HardMaxActors; n++ {
		agents := agentsOf(n)
		peer, credential := session(t, agents...)
		v := newVerifier(t, func(c *actor.Config) { c.MaxActors = actor.HardMaxActors })
		c, err := v.Verify(t.Context(), peer, credential)
		if err != nil {
			t.Fatalf("%d agents: %v", n, err)
		}
		if c.Depth() != n || c.Leaf().ID != agents[n-1] {
			t.Errorf("%d agents: depth %d", n, c.Depth())
		}
		parsed, err := actor.ParseCredential(credential)
		if err != nil || parsed.String() != credential {
			t.Errorf("%d agents: the credential doesn't come out as it went in: %v", n, err)
		}
		t.Logf("%d agents: %d bytes", n, len(credential))
	}
}

func TestABareSessionRestsOnTheBrokersWord(t *testing.T) {
	f := chainOf(planner)
	f.user = nil
	broker := newVerifier(t, func(c *actor.Config) { c.Target = spiffeid.ID{} })
	s, err := broker.VerifySubject(t.Context(), f.peer, f.subject())
	if err != nil {
		t.Fatal(err)
	}
	if !s.Bare || s.Txn != "" || s.LoginKey != "" || s.Hops[0].Grade != actor.Asserted {
		t.Errorf("subject %+v", s)
	}
	details := must(actor.ParseDetails(must(json.Marshal(pgCap()))))
	tok := must(s.Token(actor.TokenRequest{Mesh: meshURL, Target: target, Details: details, Txn: actor.NewHexID(), Purpose: "p", Now: now}))
	key := keyFor("token")
	credential := must(actor.SignToken(key, actor.NonceFor(key.Public()), tok))
	c, err := newVerifier(t, func(c *actor.Config) { c.RootEvidence = actor.RootBroker }).Verify(t.Context(), f.peer, credential)
	if err != nil {
		t.Fatal(err)
	}
	if c.RootEvidence != actor.RootBroker || c.Hops[0].Grade != actor.Asserted || c.LowestGrade() != actor.Asserted || c.Purpose != "p" {
		t.Errorf("chain %+v", c)
	}
	_, err = newVerifier(t).Verify(t.Context(), f.peer, credential)
	if actor.ClassOf(err) != actor.ClassUserGrantMissing {
		t.Errorf("a target that demands a verified root accepted it: %v", err)
	}
}

func TestNarrowRefusesToWiden(t *testing.T) {
	f := chainOf(planner, researcher)
	userGrant := f.lineage()[1]
	base := actor.Narrowing{Issuer: agent(planner), Delegate: agent(researcher), IssuedAt: start, Expires: start.Add(10 * time.Hour)}
	g, err := actor.Narrow(userGrant, base)
	if err != nil {
		t.Fatal(err)
	}
	if !g.Expires.Equal(start.Add(50*time.Minute)) || g.Left != 3 || g.Purpose != "q3 refunds" || g.Previous != actor.Hash(userGrant) {
		t.Errorf("grant %+v", g)
	}
	left := 4
	for name, c := range map[string]struct {
		class  actor.Class
		change func(*actor.Narrowing)
	}{
		"left":   {actor.ClassGrantLeft, func(n *actor.Narrowing) { n.Left = &left }},
		"issuer": {actor.ClassGrantDelegate, func(n *actor.Narrowing) { n.Issuer = agent(researcher) }},
		"cap": {actor.ClassGrantCap, func(n *actor.Narrowing) {
			n.Cap = must(actor.ParseDetails(must(json.Marshal(pgCap(func(d map[string]any) { delete(d, "tables") })))))
		}},
	} {
		n := base
		c.change(&n)
		if _, err := actor.Narrow(userGrant, n); actor.ClassOf(err) != c.class {
			t.Errorf("%s: %v, want %s", name, err, c.class)
		}
	}
	if _, err := actor.Narrow("x", base); err == nil {
		t.Error("narrowed nothing")
	}
}

func TestSignersRefuseWhatNobodyWouldAccept(t *testing.T) {
	g := must(actor.Narrow(chainOf(planner).lineage()[0], actor.Narrowing{Issuer: agent(planner), Delegate: agent(researcher),
		IssuedAt: start, Expires: start.Add(10 * time.Minute)}))
	chain := svid(planner)
	if _, err := actor.SignGrant(keyFor(planner), chain, g); err != nil {
		t.Fatal(err)
	}
	long := g
	long.Expires = start.Add(2 * time.Hour)
	noJTI := g
	noJTI.ID = ""
	for name, try := range map[string]func() (string, error){
		"another key":       func() (string, error) { return actor.SignGrant(keyFor("evil"), chain, g) },
		"another SVID":      func() (string, error) { return actor.SignGrant(keyFor(researcher), svid(researcher), g) },
		"no SVID":           func() (string, error) { return actor.SignGrant(keyFor(planner), nil, g) },
		"outlives the SVID": func() (string, error) { return actor.SignGrant(keyFor(planner), chain, long) },
		"no jti":            func() (string, error) { return actor.SignGrant(keyFor(planner), chain, noJTI) },
		"empty user grant":  func() (string, error) { return actor.SignUserGrant(keyFor("login"), actor.UserGrant{}) },
		"call that is no name": func() (string, error) {
			return actor.SignOperatorRequest(keyFor("login"), actor.OperatorRequest{Issuer: idpURL, Mesh: meshURL, Act: "Revoke all",
				IssuedAt: now, Expires: now.Add(time.Minute), ID: actor.NewHexID()})
		},
		"empty token": func() (string, error) { return actor.SignToken(keyFor("token"), "x", actor.Token{}) },
		"kid of another key": func() (string, error) {
			c := must(actor.ParseCredential(chainOf(planner).credential()))
			return actor.SignToken(keyFor("token"), actor.NonceFor(keyFor("evil").Public()), c.Token)
		},
		"user grant to nobody": func() (string, error) {
			u := must(actor.ParseUserGrant(chainOf(planner).lineage()[0]))
			u.Delegate = actor.AgentID{}
			return actor.SignUserGrant(keyFor("login"), u)
		},
		"grant to nobody": func() (string, error) {
			n := g
			n.Delegate = actor.AgentID{}
			return actor.SignGrant(keyFor(planner), chain, n)
		},
		"token of nobody": func() (string, error) {
			c := must(actor.ParseCredential(chainOf(planner).credential()))
			c.Token.Actors = nil
			return actor.SignToken(keyFor("token"), actor.NonceFor(keyFor("token").Public()), c.Token)
		},
		"empty request": func() (string, error) { return actor.SignOperatorRequest(keyFor("login"), actor.OperatorRequest{}) },
		"key on P-384":  func() (string, error) { return actor.SignGrant(detSigner{p384("x")}, chain, g) },
		"empty certified key": func() (string, error) {
			return actor.SignKeyStatement(keyFor("certifying"), actor.KeyStatement{Mesh: meshURL})
		},
	} {
		if out, err := try(); err == nil {
			t.Errorf("%s: signed %s", name, out)
		}
	}
}

func TestRecheckFollowsClockAndRevocations(t *testing.T) {
	f := chainOf(planner, researcher)
	c, err := newVerifier(t).Verify(t.Context(), f.peer, f.credential())
	if err != nil {
		t.Fatal(err)
	}
	none := revokedSet{}
	if err := c.Recheck(now, none); err != nil {
		t.Error(err)
	}
	if err := c.Recheck(c.Expires.Add(actor.Skew), none); actor.ClassOf(err) != actor.ClassExpired {
		t.Errorf("after the end: %v", err)
	}
	for _, k := range c.RevocationKeys() {
		err := c.Recheck(now, revokedSet{k: true})
		var revoked *actor.RevokedError
		if actor.ClassOf(err) != actor.ClassRevoked || !errors.As(err, &revoked) || revoked.Key != k {
			t.Errorf("%s: %v", k, err)
		}
	}
	if err := c.Recheck(now, stale{}); actor.ClassOf(err) != actor.ClassRevocationUnknown {
		t.Errorf("stale feed: %v", err)
	}
	if err := c.Recheck(now, nil); err == nil {
		t.Error("no revocations is not the same as nothing revoked")
	}
	if err := new(actor.Chain).Recheck(now, none); err == nil {
		t.Error("a chain that no verifier made passes")
	}
}

type stale struct{}

func (stale) Check([]actor.RevocationKey) error { return errors.New("the feed is 11s old") }

func TestAnSVIDThatEndsFirstEndsTheChain(t *testing.T) {
	f := chainOf(planner, researcher)
	f.peer = svid(researcher, func(c *certificate) { c.notAfter = start.Add(5 * time.Minute) })
	set(f.token, "cnf", map[string]any{"x5t#S256": actor.CertificateHash(f.peer[0])})
	set(f.token, "exp", start.Add(5*time.Minute).Unix())
	c, err := newVerifier(t).Verify(t.Context(), f.peer, f.credential())
	if err != nil {
		t.Fatal(err)
	}
	// Certificates have no skew.
	if err := c.Recheck(start.Add(5*time.Minute+time.Second), revokedSet{}); actor.ClassOf(err) != actor.ClassExpired {
		t.Errorf("after the SVID's end: %v", err)
	}
}

func TestCachedSignaturesNeverOutliveBundleTimesOrRevocation(t *testing.T) {
	f := chainOf(planner, researcher)
	credential := f.credential()
	at := now
	bundle := x509bundle.FromX509Authorities(spiffeid.RequireTrustDomainFromString(domain), []*x509.Certificate{caCert("ca")})
	revoked := revokedSet{}
	v := newVerifier(t, func(c *actor.Config) {
		c.Bundles, c.Revocations = bundle, revoked
		c.Now = func() time.Time { return at }
	})
	verify := func() actor.Class {
		_, err := v.Verify(t.Context(), f.peer, credential)
		return actor.ClassOf(err)
	}
	for range 2 {
		if got := verify(); got != "" {
			t.Fatal(got)
		}
	}
	revoked[actor.RevocationKey{Kind: actor.RevokeTxn, Value: hexID("txn")}] = true
	if got := verify(); got != actor.ClassRevoked {
		t.Errorf("revoked: %q", got)
	}
	clear(revoked)
	at = start.Add(7 * time.Minute)
	if got := verify(); got != actor.ClassTokenExpired {
		t.Errorf("later: %q", got)
	}
	at = now
	bundle.SetX509Authorities([]*x509.Certificate{caCert("ca"), caCert("evil")})
	if got := verify(); got != "" {
		t.Errorf("bundle with one more: %q", got)
	}
	bundle.SetX509Authorities([]*x509.Certificate{caCert("evil")})
	if got := verify(); got != actor.ClassPeerCertificate {
		t.Errorf("bundle without our CA: %q", got)
	}
}

func TestACachedGrantIsRefusedWhenItsIntermediateEnds(t *testing.T) {
	f := chainOf(planner, researcher)
	mid := certificate{key: keyFor("mid"), ca: "ca", notBefore: start.Add(-time.Hour), notAfter: start.Add(3 * time.Minute), isCA: true}.mint(caCert("ca"))
	leaf := certificate{id: planner, key: keyFor(planner), ca: "mid", notBefore: start.Add(-time.Minute), notAfter: start.Add(time.Hour)}.mint(mid)
	f.grants[0].header["x5c"] = x5c([]*x509.Certificate{leaf, mid})
	credential := f.credential()
	at := now
	v := newVerifier(t, func(c *actor.Config) { c.Now = func() time.Time { return at } })
	c, err := v.Verify(t.Context(), f.peer, credential)
	if err != nil {
		t.Fatal(err)
	}
	if !c.Expires.Equal(start.Add(3 * time.Minute)) {
		t.Errorf("the chain ends at %s, the intermediate at %s", c.Expires, mid.NotAfter)
	}
	at = start.Add(3*time.Minute + time.Second)
	if _, err := v.Verify(t.Context(), f.peer, credential); actor.ClassOf(err) != actor.ClassGrantCertificate {
		t.Errorf("after its end: %v", err)
	}
}

func TestAKnownPresenterIsRefusedWhenItsIntermediateEnds(t *testing.T) {
	f := chainOf(planner, researcher)
	mid := certificate{key: keyFor("mid"), ca: "ca", notBefore: start.Add(-time.Hour), notAfter: start.Add(3 * time.Minute), isCA: true}.mint(caCert("ca"))
	leaf := certificate{id: researcher, key: keyFor(researcher), ca: "mid", notBefore: start.Add(-time.Minute), notAfter: start.Add(time.Hour)}.mint(mid)
	f.peer = []*x509.Certificate{leaf, mid}
	set(f.token, "cnf", map[string]any{"x5t#S256": actor.CertificateHash(leaf)})
	credential := f.credential()
	at := now
	v := newVerifier(t, func(c *actor.Config) { c.Now = func() time.Time { return at } })
	for range 2 {
		if _, err := v.Verify(t.Context(), f.peer, credential); err != nil {
			t.Fatal(err)
		}
	}
	// The same leaf without what vouched for it is another presenter.
	if _, err := v.Verify(t.Context(), f.peer[:1], credential); actor.ClassOf(err) != actor.ClassPeerCertificate {
		t.Errorf("without its intermediate: %v", err)
	}
	at = start.Add(3*time.Minute + time.Second)
	if _, err := v.Verify(t.Context(), f.peer, credential); actor.ClassOf(err) != actor.ClassPeerCertificate {
		t.Errorf("after its end: %v", err)
	}
}

func TestAChainSurvivesARecordButIsForReadingOnly(t *testing.T) {
	f := chainOf(planner, researcher, runner)
	c, err := newVerifier(t).Verify(t.Context(), f.peer, f.credential())
	if err != nil {
		t.Fatal(err)
	}
	var back actor.Chain
	if err := json.Unmarshal(must(json.Marshal(c)), &back); err != nil {
		t.Fatal(err)
	}
	var was, is bytes.Buffer
	if err := errors.Join(c.Tree(&was), back.Tree(&is)); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(was.String(), is.String()); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(c.RevocationKeys(), back.RevocationKeys()); diff != "" {
		t.Error(diff)
	}
	if err := back.Recheck(now, revokedSet{}); err == nil {
		t.Error("a chain out of a record passes as verified")
	}
}

func TestTheTreeShowsWhoActsForWhomAndWhatEachHopNarrowed(t *testing.T) {
	f := chainOf(planner, researcher, runner)
	set(f.grants[0], "cap", pgCap(func(d map[string]any) { d["tables"] = []any{"sales.orders"} }))
	set(f.grants[1], "cap", f.grants[0].claims["cap"])
	set(f.grants[1], "left", 0)
	set(f.token, "authorization_details", f.grants[0].claims["cap"])
	c, err := newVerifier(t).Verify(t.Context(), f.peer, f.credential())
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	if err := c.Tree(&b); err != nil {
		t.Fatal(err)
	}
	want := `00u1a2b3c4d5 (signed in at https://idp.corp.example)  [attested, root evidence: verified]
│  purpose: "q3 refunds"
│  may: select,insert on sales.*,public.customers in orders of orders, at most 1000 rows
│  until: 2026-11-20 12:50:00Z, delegations left: 4
└─ ` + planner + `  [attested by unix, uid 20001]
   │  purpose: "q3 refunds"
   │  may: select,insert on sales.orders in orders of orders, at most 1000 rows (before: select,insert on sales.*,public.customers in orders of orders, at most 1000 rows)
   │  until: 2026-11-20 12:40:00Z (before: 2026-11-20 12:50:00Z)
   └─ …/researcher/` + hexID("researcher") + `  [attested by unix, uid 20001]
      │  purpose: "q3 refunds"
      │  delegations left: 0 (before: 2)
      │  until: 2026-11-20 12:39:00Z (before: 2026-11-20 12:40:00Z)
      └─ …/sqlrunner/` + hexID("sqlrunner") + `  [attested by unix, uid 20001]
            may: select,insert on sales.orders in orders of orders, at most 1000 rows
            at:  spiffe://corp.example/target/orders
`
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Error(diff)
	}
}
