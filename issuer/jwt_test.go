package issuer_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	goworkload "github.com/spiffe/go-spiffe/v2/workloadapi"

	"os"

	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/audit/audittest"
	"github.com/deputymesh/deputy/internal/testca"
	"github.com/deputymesh/deputy/issuer"
	"github.com/deputymesh/deputy/issuer/attest"
	"github.com/deputymesh/deputy/issuer/ca"
	"github.com/deputymesh/deputy/issuer/spawn"
	"github.com/deputymesh/deputy/issuer/workloadapi"
)

// withJWT gives an issuer JWT-SVIDs.
func withJWT(t *testing.T) func(*issuer.Config) {
	key := testca.NewKey(t)
	return func(c *issuer.Config) {
		var err error
		if c.JWT, err = ca.NewJWTAuthority(ca.JWTConfig{TrustDomain: c.CA.TrustDomain(), Key: key, Mesh: "https://broker.test.example"}); err != nil {
			t.Fatal(err)
		}
	}
}

// claimsOf reads a token as a service does that knows the bundle.
func claimsOf(t *testing.T, p *process, token, audience string) *jwtsvid.SVID {
	t.Helper()
	b := p.must(command{Op: "jwtbundles"})
	if d := cmp.Diff([]string{"spiffe://" + trustDomain}, b.IDs); d != "" {
		t.Fatal(d)
	}
	set, err := jwtbundle.Parse(spiffeid.RequireTrustDomainFromString(trustDomain), []byte(b.Tokens[0]))
	if err != nil {
		t.Fatal(err)
	}
	v, err := jwtsvid.ParseAndValidate(token, set, []string{audience})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

var forX = []string{"x"}

// An agent's JWT-SVID names that agent, goes to its supervisor alone, and to nobody once the agent has ended.
func TestAnAgentGetsAJWTSVIDOfItselfAlone(t *testing.T) {
	m := newMesh(t, withJWT(t))
	p := m.start(command{})
	a := p.attach("planner", p)
	inner := p.start(command{})
	child := p.attach2(inner)
	sibling := p.attach2(p.start(command{}))
	program := p.start(command{})
	outside := m.start(command{})

	for _, q := range []struct {
		by *process
		id string
	}{{p, a.ID}, {inner, child.ID}} {
		for _, hint := range []string{"", q.id} {
			r := q.by.must(command{Op: "jwt", Audience: []string{"https://api.example", "x"}, ID: hint})
			if d := cmp.Diff([]string{q.id}, r.IDs); d != "" || len(r.Tokens) != 1 {
				t.Fatal(d)
			}
			v := claimsOf(t, program, r.Tokens[0], "x")
			if v.ID.String() != q.id || len(v.Claims) != 5 || time.Until(v.Expiry) > 5*time.Minute || time.Until(v.Expiry) < 4*time.Minute {
				t.Errorf("%+v", v)
			}
		}
	}
	for _, hint := range []string{
		child.ID, sibling.ID, "spiffe://test.example/deputy/broker", "spiffe://other.example/agent/planner/" + strings.Repeat("0", 32), a.ID + "/", "planner",
	} {
		p.refused(command{Op: "jwt", Audience: forX, ID: hint}, "PermissionDenied", "nobody gets a JWT-SVID of another")
	}
	inner.refused(command{Op: "jwt", Audience: forX, ID: a.ID}, "PermissionDenied", "nobody gets")
	inner.refused(command{Op: "jwt", Audience: forX, ID: sibling.ID}, "PermissionDenied", "nobody gets")
	program.refused(command{Op: "jwt", Audience: forX}, "PermissionDenied", "isn't its supervisor")
	program.refused(command{Op: "jwt", Audience: forX, ID: a.ID}, "PermissionDenied", "isn't its supervisor")
	outside.refused(command{Op: "jwt", Audience: forX, ID: a.ID}, "PermissionDenied", "no identity")
	p.refused(command{Op: "jwt", Audience: forX, Header: "none"}, "InvalidArgument", "workload.spiffe.io")
	for _, bad := range [][]string{nil, {""}, {"x", "x"}, {"https://broker.test.example"}, {"x", "spiffe://test.example/target/orders-db"}, {strings.Repeat("a", 256)}} {
		p.refused(command{Op: "jwt", Audience: bad}, "InvalidArgument", "audience")
	}

	// What was issued was recorded, what was refused too.
	var issued, refused int
	for _, r := range audittest.Of[*audit.JWTSVID](audittest.Records(t, m.log)) {
		e := r.Event.(*audit.JWTSVID)
		if e.Result == audit.Refusal {
			refused++
		} else if issued++; e.TokenID != string(r.ID) || e.Subject == "" || len(e.Audience) != 2 || e.KeyID == "" || e.Expires == nil {
			t.Errorf("%+v", e)
		}
	}
	if issued != 4 || refused != 16 {
		t.Errorf("%d issued, %d refused on record, want 4 and 16", issued, refused)
	}

	// An end holds for what is asked for and for what is out already, as far as the issuer is asked.
	token := inner.must(command{Op: "jwt", Audience: forX}).Tokens[0]
	if r := program.must(command{Op: "validate", Name: "x", JWT: token}); r.ID != child.ID || r.Count != 5 {
		t.Errorf("%+v", r)
	}
	program.refused(command{Op: "validate", Name: "y", JWT: token}, "InvalidArgument", "not for")
	program.refused(command{Op: "validate", JWT: token}, "InvalidArgument", "not for")
	program.refused(command{Op: "validate", Name: "x", JWT: token + "A"}, "InvalidArgument", "JWT-SVID")
	inner.must(command{Op: "done", Stream: "own"})
	m.gone(child.ID)
	inner.refused(command{Op: "jwt", Audience: forX}, "PermissionDenied", "no identity")
	program.refused(command{Op: "validate", Name: "x", JWT: token}, "InvalidArgument", "has ended")
	p.must(command{Op: "jwt", Audience: forX})
}

// attach2 registers a child of p's agent and attaches it by another process.
func (p *process) attach2(by *process) result {
	p.m.t.Helper()
	return p.attach("helper", by)
}

// Between its streams an agent has no proof that it is still there: it gets nothing, and what it has is still its own.
func TestNoJWTSVIDWithoutAStream(t *testing.T) {
	m := newMesh(t, withJWT(t))
	p := m.start(command{})
	a := p.attach("planner", p)
	token := p.must(command{Op: "jwt", Audience: forX}).Tokens[0]
	p.must(command{Op: "break", Stream: "own"})
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if r := p.do(command{Op: "jwt", Audience: forX}); r.Code == "FailedPrecondition" {
			break
		}
		if time.Now().After(end) {
			t.Fatal("it goes on getting them")
		}
	}
	p.must(command{Op: "validate", Name: "x", JWT: token})
	p.must(command{Op: "attach", Stream: "own", ID: a.ID})
	p.must(command{Op: "jwt", Audience: forX})
	m.restart()
	p.refused(command{Op: "jwt", Audience: forX}, "FailedPrecondition", "isn't attached")
	p.must(command{Op: "attach", Stream: "own", ID: a.ID})
	p.must(command{Op: "jwt", Audience: forX})
}

func TestAJWTSVIDEndsWithTheX509SVID(t *testing.T) {
	m := newMesh(t, shortLived(t, time.Minute), withJWT(t))
	p := m.start(command{})
	a := p.attach("planner", p)
	leaf := certificate(t, a.SVID)
	v := claimsOf(t, p, p.must(command{Op: "jwt", Audience: forX}).Tokens[0], "x")
	if v.Expiry.After(leaf.NotAfter) {
		t.Errorf("the JWT-SVID ends at %s, the X.509-SVID at %s", v.Expiry, leaf.NotAfter)
	}
}

func TestJWTSVIDsAreLimited(t *testing.T) {
	m := newMesh(t, withJWT(t))
	p := m.start(command{})
	p.attach("planner", p)
	inner := p.start(command{})
	p.attach2(inner)
	codes := map[string]int{}
	for range 40 {
		codes[p.do(command{Op: "jwt", Audience: forX}).Code]++
	}
	if codes[ok] < 32 || codes["ResourceExhausted"] == 0 {
		t.Error(codes)
	}
	inner.must(command{Op: "jwt", Audience: forX}) // one agent's haste is not another's
}

// noJWTRecords is a log whose disk fails for JWT-SVIDs.
type noJWTRecords struct{ spawn.Log }

func (l noJWTRecords) Append(ctx context.Context, r audit.Record) (audit.Receipt, error) {
	if e, is := r.Event.(*audit.JWTSVID); is && e.Result == audit.Accepted {
		return audit.Receipt{}, errors.New("the disk is gone")
	}
	return l.Log.Append(ctx, r)
}

func TestWithoutARecordThereIsNoJWTSVID(t *testing.T) {
	m := newMesh(t, withJWT(t), func(c *issuer.Config) {
		c.Log = noJWTRecords{c.Log}
		c.Roles = []workloadapi.Entry{{ID: spiffeid.RequireFromPath(c.CA.TrustDomain(), "/app/billing"), Selectors: attest.Selectors{UID: uid(uint32(os.Geteuid()))}}}
	})
	p := m.start(command{})
	if r := p.do(command{Op: "jwt", Audience: forX}); r.Code != "Unavailable" || len(r.Tokens) > 0 || strings.Contains(r.Text, "disk") {
		t.Errorf("%+v", r)
	}
	p.attach("planner", p)
	if r := p.do(command{Op: "jwt", Audience: forX}); r.Code != "Internal" || len(r.Tokens) > 0 || strings.Contains(r.Text, "disk") {
		t.Errorf("%+v", r)
	}
}

// Workloads that aren't agents get JWT-SVIDs for their entries, Deputy's own roles get none, and go-spiffe's own client is served.
func TestWorkloadsGetJWTSVIDsOfTheirEntries(t *testing.T) {
	self := attest.Selectors{UID: uid(uint32(os.Geteuid()))}
	m := newMesh(t, withJWT(t), func(c *issuer.Config) {
		for _, path := range []string{"/app/billing", "/deputy/broker", "/deputy", "/app/mail"} {
			c.Roles = append(c.Roles, workloadapi.Entry{ID: spiffeid.RequireFromPath(c.CA.TrustDomain(), path), Selectors: self})
		}
		c.Roles = append(c.Roles, workloadapi.Entry{ID: spiffeid.RequireFromPath(c.CA.TrustDomain(), "/app/other"), Selectors: attest.Selectors{UID: uid(4242)}})
	})
	source, err := goworkload.NewJWTSource(t.Context(), goworkload.WithClientOptions(goworkload.WithAddr("unix://"+m.socket())))
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	all, err := source.FetchJWTSVIDs(t.Context(), jwtsvid.Params{Audience: "x", ExtraAudiences: []string{"y"}})
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, v := range all {
		ids = append(ids, v.ID.Path())
		if _, err := jwtsvid.ParseAndValidate(v.Marshal(), source, []string{"y"}); err != nil {
			t.Error(err)
		}
	}
	if d := cmp.Diff([]string{"/app/billing", "/app/mail"}, ids); d != "" {
		t.Error(d)
	}
	mail := spiffeid.RequireFromPath(m.td, "/app/mail")
	if v, err := source.FetchJWTSVID(t.Context(), jwtsvid.Params{Audience: "x", Subject: mail}); err != nil || v.ID != mail {
		t.Errorf("%v %v", v, err)
	}
	p := m.start(command{})
	for _, hint := range []string{"/deputy/broker", "/app/other", "/app/unknown"} {
		p.refused(command{Op: "jwt", Audience: forX, ID: "spiffe://test.example" + hint}, "PermissionDenied", "no identity")
	}
	p.refused(command{Op: "jwt"}, "InvalidArgument", "audience")
	p.refused(command{Op: "jwt", Audience: []string{"spiffe://test.example/target/orders-db"}}, "InvalidArgument", "never a JWT-SVID")

	// A next key is pushed before it signs, and an old one taken away.
	next := testca.NewKey(t)
	changed := source.Updated()
	if err := m.issuer.SetJWTBundle(&next.PublicKey); err != nil {
		t.Fatal(err)
	}
	<-changed
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		b, err := source.GetJWTBundleForTrustDomain(m.td)
		if err != nil {
			t.Fatal(err)
		}
		if len(b.JWTAuthorities()) == 2 {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the next key didn't come")
		}
	}
}

func TestDeputysOwnRolesHaveNoJWTSVIDs(t *testing.T) {
	m := newMesh(t, withBroker, withJWT(t))
	m.start(command{}).refused(command{Op: "jwt", Audience: forX}, "PermissionDenied", "mTLS")
}

func TestOneKeyHasOneUse(t *testing.T) {
	cfg := newMesh(t, withJWT(t)).cfg
	cfg.Store = nopStore{}
	authority := testca.New(t, trustDomain)
	var err error
	if cfg.CA, err = ca.New(ca.Config{TrustDomain: authority.TrustDomain(), Certificate: authority.Certificate(), Key: authority.Key()}); err != nil {
		t.Fatal(err)
	}
	good := cfg.JWT
	if cfg.JWT, err = ca.NewJWTAuthority(ca.JWTConfig{TrustDomain: authority.TrustDomain(), Key: authority.Key(), Mesh: "https://broker.test.example"}); err != nil {
		t.Fatal(err)
	}
	if _, err := issuer.New(cfg); err == nil || !strings.Contains(err.Error(), "X.509 authority") {
		t.Error(err)
	}
	cfg.JWT = good
	cfg.JWTKeys = append(slices.Clone(cfg.JWTKeys), &authority.Key().PublicKey)
	if _, err := issuer.New(cfg); err == nil || !strings.Contains(err.Error(), "X.509 authority") {
		t.Error(err)
	}
	cfg.JWTKeys = nil
	if _, err := issuer.New(cfg); err != nil {
		t.Error(err)
	}
	if cfg.JWT, err = ca.NewJWTAuthority(ca.JWTConfig{TrustDomain: spiffeid.RequireTrustDomainFromString("other.example"), Key: testca.NewKey(t), Mesh: "https://broker.test.example"}); err != nil {
		t.Fatal(err)
	}
	if _, err := issuer.New(cfg); err == nil || !strings.Contains(err.Error(), "other.example") {
		t.Error(err)
	}
}
