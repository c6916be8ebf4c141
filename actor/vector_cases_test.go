package actor_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"crypto/x509"

	"github.com/deputymesh/deputy/actor"
)

// vectorCase is one vector before it is made.
type vectorCase struct {
	name, rule string
	class      actor.Class // "" for a valid one
	hop        int         // where it matters: compared if not hopAny
	agents     []string
	settings   *settings
	change     func(f *flow)
}

const hopAny = -2

func bad(class actor.Class, rule, name string, change func(f *flow)) vectorCase {
	return vectorCase{name: name, rule: rule, class: class, hop: hopAny, change: change}
}

func (c vectorCase) at(hop int) vectorCase            { c.hop = hop; return c }
func (c vectorCase) with(s settings) vectorCase       { c.settings = &s; return c }
func (c vectorCase) from(agents ...string) vectorCase { c.agents = agents; return c }

func (c vectorCase) flow() *flow {
	agents := c.agents
	if agents == nil {
		agents = []string{planner, researcher, runner}
	}
	f := chainOf(agents...)
	if c.change != nil {
		c.change(f)
	}
	return f
}

func baseEnvironment() environment {
	e := environment{
		Description: "What the verifier of every vector believes. Certificates are DER in padded base64, leaf first; keys are JWKs; times are seconds. See docs/spec/credential.md, Test vectors.",
		TrustDomain: domain, Mesh: meshURL, CertifyingKey: jwkOf(keyFor("certifying")),
		Bundles:          map[string][]string{domain: x5c([]*x509.Certificate{caCert("ca")}), "evil.example": x5c([]*x509.Certificate{caCert("evil")})},
		IdentityProvider: identityEnv{idpURL, clientID, jwkOf(keyFor("idp"))},
		Settings:         settings{Now: now.Unix(), Target: target.String(), RootEvidence: "verified", MaxActors: 5, MaxSession: 12 * 3600},
		Certificates:     map[string][]string{},
	}
	for _, k := range []struct {
		name     string
		from, to time.Time
	}{
		{"token", start.Add(-time.Hour), start.Add(24 * time.Hour)},
		{"old token", start.Add(-48 * time.Hour), start.Add(-24 * time.Hour)},
	} {
		s := must(actor.SignKeyStatement(keyFor("certifying"), actor.KeyStatement{Mesh: meshURL, Key: &keyFor(k.name).PublicKey, NotBefore: k.from, Expires: k.to}))
		e.KeyStatements = append(e.KeyStatements, s)
	}
	return e
}

// name gives the peer's chain a name in the environment.
func (e *environment) nameChain(f *flow) string {
	if len(f.peer) == 0 {
		return ""
	}
	list := x5c(f.peer)
	for name, have := range e.Certificates {
		if strings.Join(have, " ") == strings.Join(list, " ") {
			return name
		}
	}
	name := fmt.Sprintf("peer-%02d", len(e.Certificates)+1)
	e.Certificates[name] = list
	return name
}

func credentialVectors(t testing.TB) (environment, credentialFile, credentialFile) {
	t.Helper()
	env := baseEnvironment()
	valid := credentialFile{Description: "Credentials that a verifier must accept, with what it must find out."}
	invalid := credentialFile{Description: "Credentials that a verifier must refuse, each with the class of the first rule that it breaks. hop counts from the root: 0 is the user grant."}
	names := map[string]bool{}
	for _, c := range allCases() {
		if names[c.name] {
			t.Fatalf("two vectors are called %q", c.name)
		}
		names[c.name] = true
		f := c.flow()
		vec := credentialVector{Name: c.name, Rule: c.rule, Settings: c.settings, Credential: f.credential(), Class: string(c.class)}
		vec.Peer = env.nameChain(f)
		if c.class != "" {
			if c.hop != hopAny {
				vec.Hop = &c.hop
			}
			invalid.Vectors = append(invalid.Vectors, vec)
			continue
		}
		chain, err := env.verifier(t, c.settings, false).Verify(t.Context(), f.peer, vec.Credential)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		vec.Chain = chainOutcome(chain)
		valid.Vectors = append(valid.Vectors, vec)
	}
	return env, valid, invalid
}

func allCases() []vectorCase {
	var out []vectorCase
	for _, list := range [][]vectorCase{validCases(), peerCases(), formCases(), jsonCases(), headerCases(), claimCases(),
		tokenCases(), shapeCases(), grantCases(), capCases(), rootCases(), gradeCases(), revokedCases()} {
		out = append(out, list...)
	}
	return out
}

// Small changes that many cases share.

func set(s *statement, name string, value any) { s.claims[name] = value }

func setToken(name string, value any) func(*flow) {
	return func(f *flow) { set(f.token, name, value) }
}

func setUser(name string, value any) func(*flow) {
	return func(f *flow) { set(f.user, name, value) }
}

func setGrant(i int, name string, value any) func(*flow) {
	return func(f *flow) { set(f.grants[i], name, value) }
}

func dropToken(name string) func(*flow) { return func(f *flow) { delete(f.token.claims, name) } }

func tokenText(old, new string) func(*flow) {
	return func(f *flow) { f.token.rawClaims = replacing(old, new) }
}

func replacing(old, new string) func(string) string {
	return func(s string) string {
		out := strings.Replace(s, old, new, 1)
		if out == s {
			panic("nothing to replace: " + old)
		}
		return out
	}
}

// insert puts members before the last brace.
func insert(members string) func(string) string {
	return func(s string) string { return s[:len(s)-1] + "," + members + "}" }
}

func agentsOf(n int) []string {
	var out []string
	id := ""
	for i := range n {
		name := fmt.Sprintf("a%d", i)
		if id == "" {
			id = "spiffe://" + domain + "/agent"
		}
		id += "/" + name + "/" + hexID(name)
		out = append(out, id)
	}
	return out
}
