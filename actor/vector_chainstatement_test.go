package actor_test

import (
	"encoding/base64"
	"encoding/json"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/internal/testverifier"
)

// chainCall is the request that a service holds a chain statement against.
type chainCall struct {
	Proxy  string `json:"proxy"`
	Target string `json:"target"`
	Method string `json:"method"`
	Path   string `json:"path"`
}

var statedCall = chainCall{"spiffe://" + domain + "/deputy/proxy/main", target.String(), "POST", "/v1/invoices/42"}

func (e environment) chainCall(c chainCall, at time.Time) actor.ChainCall {
	set := x509bundle.NewSet()
	for td, list := range e.Bundles {
		set.Add(x509bundle.FromX509Authorities(spiffeid.RequireTrustDomainFromString(td), must(decodeChain(list))))
	}
	return actor.ChainCall{Bundles: set, Proxy: must(spiffeid.FromString(c.Proxy)), Target: must(spiffeid.FromString(c.Target)), Method: c.Method, Path: c.Path, Now: at}
}

const (
	statedPlanner    = "spiffe://" + domain + "/agent/planner/0123456789abcdef0123456789abcdef"
	statedResearcher = statedPlanner + "/researcher/fedcba9876543210fedcba9876543210"
)

// plainSVID is an SVID of a role, which has no grade.
func plainSVID(id string, change ...func(*certificate)) []string {
	return x5c(svid(id, append([]func(*certificate){func(c *certificate) { c.extra = nil }}, change...)...))
}

func chainStatement(change func(*statement)) *statement {
	s := &statement{
		header: map[string]any{"alg": "ES256", "typ": "deputy-chain+jwt", "x5c": plainSVID(statedCall.Proxy)},
		claims: map[string]any{
			"iss": statedCall.Proxy, "aud": statedCall.Target, "sub_id": subID(), "txn": hexID("txn"),
			"actors": []any{map[string]any{"sub": statedPlanner, "grade": "attested"}, map[string]any{"sub": statedResearcher, "grade": "asserted"}},
			"roles":  []string{"analyst"}, "purpose": "q3 refunds", "root_evidence": "verified", "htm": statedCall.Method, "path": statedCall.Path, "record": "01a2077e-87fb-7000-8000-000000000000",
			"iat": now.Unix(), "exp": now.Add(30 * time.Second).Unix(), "jti": hexID("chain"),
		},
		key: keyFor(statedCall.Proxy),
	}
	if change != nil {
		change(s)
	}
	return s
}

func chainStatementVectors() []statementVector {
	claim := func(name string, v any) func(*statement) { return func(s *statement) { s.claims[name] = v } }
	head := func(name string, v any) func(*statement) { return func(s *statement) { s.header[name] = v } }
	without := func(name string) func(*statement) { return func(s *statement) { delete(s.claims, name) } }
	// by signs as somebody else, with the certificate that belongs to it.
	by := func(id string, change ...func(*certificate)) func(*statement) {
		return func(s *statement) { s.header["x5c"], s.key = plainSVID(id, change...), keyFor(id) }
	}
	actors := func(list ...any) func(*statement) { return claim("actors", list) }
	one := func(sub, grade string) any { return map[string]any{"sub": sub, "grade": grade} }
	other := "spiffe://" + domain + "/deputy/proxy/other"
	many := make([]any, 9)
	for i := range many {
		many[i] = one(statedPlanner, "attested")
	}
	var out []statementVector
	for _, c := range []struct {
		name   string
		valid  bool
		change func(*statement)
	}{
		{"valid", true, nil},
		{"without roles and purpose", true, func(s *statement) { s.claims["roles"], s.claims["purpose"] = []string{}, "" }},
		{"root on the broker's word", true, claim("root_evidence", "broker")},
		{"one agent", true, actors(one(statedPlanner, "attested"))},
		{"expired within the skew", true, func(s *statement) {
			s.claims["iat"], s.claims["exp"] = now.Add(-59*time.Second).Unix(), now.Add(-29*time.Second).Unix()
		}},
		{"from the future within the skew", true, func(s *statement) {
			s.claims["iat"], s.claims["exp"] = now.Add(30*time.Second).Unix(), now.Add(60*time.Second).Unix()
		}},
		{"another proxy", false, func(s *statement) { by(other)(s); s.claims["iss"] = other }},
		{"another proxy in this one's name", false, by(other)},
		{"this proxy in another's name", false, claim("iss", other)},
		{"an agent", false, func(s *statement) { by(statedPlanner)(s); s.claims["iss"] = statedPlanner }},
		{"another key under this certificate", false, func(s *statement) { s.key = keyFor("evil") }},
		{"a certificate of nobody's CA", false, by(statedCall.Proxy, func(c *certificate) { c.ca = "evil ca" })},
		{"a certificate that has expired", false, by(statedCall.Proxy, func(c *certificate) { c.notAfter = now.Add(-time.Second) })},
		{"no certificate", false, head("x5c", []string{})},
		{"a key instead of certificates", false, func(s *statement) { delete(s.header, "x5c"); s.header["jwk"] = jwkOf(s.key) }},
		{"another typ", false, head("typ", "deputy-grant+jwt")},
		{"alg none", false, head("alg", "none")},
		{"a kid", false, head("kid", "1")},
		{"another service", false, claim("aud", "spiffe://"+domain+"/target/other")},
		{"aud is no target", false, claim("aud", statedCall.Proxy)},
		{"aud is an array", false, claim("aud", []string{statedCall.Target})},
		{"another method", false, claim("htm", "GET")},
		{"another path", false, claim("path", "/v1/invoices/43")},
		{"a path that isn't canonical", false, claim("path", "/v1/invoices/%34%32")},
		{"expired", false, func(s *statement) {
			s.claims["iat"], s.claims["exp"] = now.Add(-60*time.Second).Unix(), now.Add(-30*time.Second).Unix()
		}},
		{"from the future", false, func(s *statement) {
			s.claims["iat"], s.claims["exp"] = now.Add(31*time.Second).Unix(), now.Add(61*time.Second).Unix()
		}},
		{"lives longer than half a minute", false, claim("exp", now.Add(31*time.Second).Unix())},
		{"ends before it begins", false, claim("exp", now.Unix())},
		{"no agents", false, actors()},
		{"nine agents", false, actors(many...)},
		{"a role among the agents", false, actors(one(statedCall.Proxy, "attested"))},
		{"a grade that is none", false, actors(one(statedPlanner, "trusted"))},
		{"an agent without a grade", false, actors(map[string]any{"sub": statedPlanner})},
		{"a role twice", false, claim("roles", []string{"a", "a"})},
		{"an empty role", false, claim("roles", []string{""})},
		{"root evidence that is none", false, claim("root_evidence", "asserted")},
		{"a purpose with a line feed", false, claim("purpose", "a\nb")},
		{"txn that is no id", false, claim("txn", "1")},
		{"an empty record", false, claim("record", "")},
		{"a record that is too long", false, claim("record", strings.Repeat("r", 129))},
		{"an unknown claim", false, claim("scope", "all")},
		{"without txn", false, without("txn")},
		{"without sub_id", false, without("sub_id")},
		{"without roles", false, without("roles")},
		{"without record", false, without("record")},
		{"without jti", false, without("jti")},
		{"a claim twice", false, func(s *statement) {
			s.rawClaims = func(c string) string { return `{"htm":"GET",` + c[1:] }
		}},
		{"a bit of the signature", false, func(s *statement) { s.after = flipped }},
		{"bytes behind it", false, func(s *statement) { s.after = func(raw string) string { return raw + "." } }},
	} {
		out = append(out, statementVector{Name: c.name, Valid: c.valid, Statement: chainStatement(c.change).sign()})
	}
	return out
}

// flipped changes a bit in the middle of the signature.
func flipped(raw string) string {
	at := strings.LastIndexByte(raw, '.') + 1
	sig := must(base64.RawURLEncoding.DecodeString(raw[at:]))
	sig[len(sig)/2] ^= 1
	return raw[:at] + base64.RawURLEncoding.EncodeToString(sig)
}

// Whatever is changed in a chain statement that is signed again, both verifiers judge it the same.
func TestTwoVerifiersJudgeChainStatementsTheSame(t *testing.T) {
	env := readVectors[environment](t, "environment.json")
	call := env.chainCall(statedCall, now)
	second := testverifier.Start(t)
	r := rand.New(rand.NewPCG(20261126, 4))
	names := []string{"iss", "aud", "sub_id", "txn", "actors", "roles", "purpose", "root_evidence", "htm", "path", "record", "iat", "exp", "jti", "new"}
	values := []any{
		nil, true, "", "x", "a\u2028b", "POST", "/v1/invoices/42", "/v1//42", "/", "verified", "broker", statedPlanner, statedCall.Proxy, statedCall.Target, "spiffe://" + domain + "/deputy/proxy", "spiffe://" + domain + "/deputy/proxy/a/b",
		"SPIFFE://" + domain + "/deputy/proxy/main", hexID("other"), strings.ToUpper(hexID("other")), 0, -1, 1.5, json.Number("1e3"), now.Unix(), now.Unix() + 30, now.Unix() + 31, now.Unix() - 30, now.Unix() - 31, int64(1) << 37, int64(1)<<37 + 1,
		[]any{}, []any{"a", "b"}, []any{"a", "a"}, []any{map[string]any{"sub": statedPlanner, "grade": "attested"}}, []any{map[string]any{"sub": statedPlanner, "grade": ""}}, map[string]any{}, subID(),
		map[string]any{"format": "iss_sub", "iss": idpURL, "sub": ""}, map[string]any{"format": "iss_sub", "iss": idpURL, "sub": "someone else"}, strings.Repeat("r", 128), strings.Repeat("é", 100), strings.Repeat("é", 101),
	}
	counts := map[bool]int{}
	for range 1500 {
		s := chainStatement(nil)
		for range 1 + r.IntN(2) {
			switch name := names[r.IntN(len(names))]; r.IntN(6) {
			case 0:
				delete(s.claims, name)
			case 1:
				if at, ok := s.claims[name].(int64); ok {
					s.claims[name] = at + int64(r.IntN(7)-3)*10
				}
			default:
				s.claims[name] = values[r.IntN(len(values))]
			}
		}
		raw := s.sign()
		_, err := actor.VerifyChain(raw, call)
		var theirs struct{ Valid bool }
		second.Ask(t, map[string]any{"chain_statement": raw, "call": statedCall, "now": now.Unix()}, &theirs)
		if theirs.Valid != (err == nil) {
			t.Errorf("ours %v, theirs %t: %s", err, theirs.Valid, must(json.Marshal(s.claims)))
		}
		counts[theirs.Valid]++
	}
	if counts[true] < 50 || counts[false] < 500 {
		t.Errorf("%v: too little of one kind", counts)
	}
}
