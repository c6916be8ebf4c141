package actor_test

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"strings"
	"testing"

	"github.com/deputymesh/deputy/actor"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

func TestAgentPathsAreParsedBySegment(t *testing.T) {
	a := agent(runner)
	if a.Depth() != 3 || a.Name() != "sqlrunner" || len(a.Segments()) != 3 || a.Segments()[1] != (actor.Segment{Name: "researcher", Instance: hexID("researcher")}) {
		t.Errorf("%+v", a.Segments())
	}
	p, ok := a.Parent()
	if !ok || p != agent(researcher) || !a.IsDirectChildOf(p) || a.IsDirectChildOf(agent(planner)) || p.IsDirectChildOf(a) {
		t.Errorf("parent %s", p)
	}
	if _, ok := agent(planner).Parent(); ok {
		t.Error("a first-level agent has a parent")
	}
	if child, err := agent(planner).Child("researcher", hexID("researcher")); err != nil || child != agent(researcher) {
		t.Errorf("child %s, %v", child, err)
	}
	td := spiffeid.RequireTrustDomainFromString(domain)
	if first, err := actor.NewAgentID(td, "planner", hexID("planner")); err != nil || first != agent(planner) {
		t.Errorf("first level %s, %v", first, err)
	}
	for _, path := range []string{"", "/agent", "/agents/a/" + hexID("x"), "/agent/a", "/agent/A/" + hexID("x"), "/agent/1a/" + hexID("x"),
		"/agent/a/" + strings.ToUpper(hexID("planner")), "/agent/a/" + hexID("x")[1:], "/agent/" + strings.Repeat("a", 33) + "/" + hexID("x"),
		"/agent/a/" + hexID("x") + "/b", "/deputy/broker/b", "/target/orders", "/x/agent/a/" + hexID("x")} {
		id := must(spiffeid.FromString("spiffe://" + domain + path))
		if a, err := actor.ParseAgentID(id); actor.ClassOf(err) != actor.ClassNotAgent {
			t.Errorf("%q is the agent %v (%v)", path, a, err)
		}
	}
	if (actor.AgentID{}).Depth() != 0 || (actor.AgentID{}).Segments() != nil {
		t.Error("no agent has a depth")
	}
}

func TestPatternsMatchWholeSegmentsOnly(t *testing.T) {
	for _, c := range []struct {
		pattern, id string
		want        bool
	}{
		{"/agent/planner/*", planner, true},
		{"/agent/planner/*", researcher, false},
		{"/agent/planner/*/researcher/*", researcher, true},
		{"/agent/*/*/researcher/*", researcher, true},
		{"/agent/plan/*", planner, false},
		{"/agent/planner/" + hexID("planner"), planner, true},
		{"/agent/planner/" + hexID("other"), planner, false},
	} {
		p := must(actor.ParsePathPattern(c.pattern))
		if got := p.Match(agent(c.id)); got != c.want || p.String() != c.pattern {
			t.Errorf("%s on %s: %v", c.pattern, c.id, got)
		}
	}
	for _, bad := range []string{"", "/agent/", "/agent/*", "/agent/pl*/*", "/agent/planner/**", "/agent/planner/*/", "/deputy/*/*", "agent/a/*", "/agent/a/7f3c"} {
		if p, err := actor.ParsePathPattern(bad); err == nil {
			t.Errorf("%q is the pattern %v", bad, p)
		}
	}
	if must(actor.ParsePathPattern("/agent/*/*")).MatchID(target) {
		t.Error("a target matches a pattern of agents")
	}
}

func TestAGradeComesBackAsItWentIn(t *testing.T) {
	full := actor.Evidence{Kind: "container", UID: 1<<32 - 1, GID: 0, Path: "/usr/bin/ü", SHA256: strings.Repeat("0f", 32), Cgroup: "/a"}
	for _, c := range []struct {
		grade actor.Grade
		seen  actor.Evidence
	}{{actor.Asserted, actor.Evidence{}}, {actor.Asserted, full}, {actor.Attested, full}, {actor.Attested, actor.Evidence{Kind: "unix"}}} {
		ext := must(actor.GradeExtension(c.grade, c.seen))
		if ext.Critical {
			t.Error("the extension is critical")
		}
		cert := svid(planner, func(k *certificate) { k.extra = []pkix.Extension{ext} })[0]
		g, e, err := actor.GradeFromCertificate(cert)
		if err != nil || g != c.grade || e != c.seen {
			t.Errorf("%s %+v: got %s %+v, %v", c.grade, c.seen, g, e, err)
		}
	}
	for name, try := range map[string]func() (pkix.Extension, error){
		"unknown grade":         func() (pkix.Extension, error) { return actor.GradeExtension("trusted", full) },
		"attested by nothing":   func() (pkix.Extension, error) { return actor.GradeExtension(actor.Attested, actor.Evidence{}) },
		"evidence without kind": func() (pkix.Extension, error) { return actor.GradeExtension(actor.Asserted, actor.Evidence{UID: 1}) },
		"kind that is no name": func() (pkix.Extension, error) {
			return actor.GradeExtension(actor.Attested, actor.Evidence{Kind: "Unix!"})
		},
		"short hash": func() (pkix.Extension, error) {
			return actor.GradeExtension(actor.Attested, actor.Evidence{Kind: "unix", SHA256: "00"})
		},
		"escape in the path": func() (pkix.Extension, error) {
			return actor.GradeExtension(actor.Attested, actor.Evidence{Kind: "unix", Path: "/a\x1b[2J"})
		},
	} {
		if _, err := try(); actor.ClassOf(err) != actor.ClassGrade {
			t.Errorf("%s: %v", name, err)
		}
	}
	good := must(actor.GradeExtension(actor.Attested, full))
	critical := good
	critical.Critical = true
	for name, list := range map[string][]pkix.Extension{"critical": {critical}, "twice": {good, good}} {
		if _, _, err := actor.GradeFromCertificate(&x509.Certificate{Extensions: list}); actor.ClassOf(err) != actor.ClassGrade {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestTheThumbprintIsRFC7638(t *testing.T) {
	// The vectors' login key, whose thumbprint is in the ID token, computed here the
	// long way round from its JWK.
	j := jwkOf(keyFor("login"))
	want := actor.Hash(`{"crv":"P-256","kty":"EC","x":"` + j["x"].(string) + `","y":"` + j["y"].(string) + `"}`)
	if got := actor.NonceFor(keyFor("login").Public()); got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if actor.NonceFor(p384("x").Public()) != "" || actor.NonceFor(nil) != "" {
		t.Error("a key that isn't on P-256 has a nonce")
	}
}

func TestAVerifierWithAHoleIsNotMade(t *testing.T) {
	for name, change := range map[string]func(*actor.Config){
		"trust domain": func(c *actor.Config) { c.TrustDomain = spiffeid.TrustDomain{} },
		"bundles":      func(c *actor.Config) { c.Bundles = nil },
		"revocations":  func(c *actor.Config) { c.Revocations = nil },
		"token keys":   func(c *actor.Config) { c.TokenKeys = nil },
		"identity":     func(c *actor.Config) { c.IdentityTokens = nil },
		"identity, broker": func(c *actor.Config) {
			c.IdentityTokens = nil
			c.Target = spiffeid.ID{}
			c.RootEvidence = actor.RootBroker
		},
		"root evidence":  func(c *actor.Config) { c.RootEvidence = "hope" },
		"mesh":           func(c *actor.Config) { c.Mesh = "" },
		"actors":         func(c *actor.Config) { c.MaxActors = 9 },
		"session":        func(c *actor.Config) { c.MaxSession = -1 },
		"target":         func(c *actor.Config) { c.Target = idOf("/deputy/proxy/p") },
		"foreign target": func(c *actor.Config) { c.Target = must(spiffeid.FromString("spiffe://evil.example/target/orders")) },
	} {
		if _, err := actor.NewVerifier(config(change)); err == nil {
			t.Errorf("made without a good %s", name)
		}
	}
}

func TestATokenKeyThatDoesNotFitIsRefused(t *testing.T) {
	f := chainOf(planner)
	credential := f.credential()
	kid := actor.NonceFor(keyFor("token").Public())
	for name, change := range map[string]func(*actor.KeyStatement){
		"another key under this kid": func(k *actor.KeyStatement) { k.Key = &keyFor("evil").PublicKey },
		"no key":                     func(k *actor.KeyStatement) { k.Key = nil },
		"certified for another mesh": func(k *actor.KeyStatement) { k.Mesh = "https://broker.evil.example" },
		"not valid yet":              func(k *actor.KeyStatement) { k.NotBefore = now.Add(actor.Skew + 1) },
		"not valid any more":         func(k *actor.KeyStatement) { k.Expires = now.Add(-actor.Skew) },
	} {
		k := tokenKeys()[kid]
		change(&k)
		v := newVerifier(t, func(c *actor.Config) { c.TokenKeys = keySet{kid: k} })
		if _, err := v.Verify(t.Context(), f.peer, credential); actor.ClassOf(err) != actor.ClassTokenKey {
			t.Errorf("%s: %v", name, err)
		}
	}
}
