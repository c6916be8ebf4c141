package actor_test

import (
	"crypto/x509/pkix"
	"encoding/asn1"
	"time"

	"github.com/deputymesh/deputy/actor"
)

func rootCases() []vectorCase {
	const rule = "7 root"
	id := func(name string, value any) func(*flow) { return func(f *flow) { set(f.idToken, name, value) } }
	return []vectorCase{
		bad(actor.ClassIDTokenMissing, rule, "no ID token where the root must be verified", func(f *flow) { f.parts = func(p []string) []string { return p[:4] } }),
		bad(actor.ClassRootHash, rule, "ID token of another sign-in", func(f *flow) {
			f.user.keep = true
			f.user.claims["root"].(map[string]any)["th"] = actor.Hash("another")
		}),
		bad(actor.ClassIDToken, rule, "ID token signed by another key", func(f *flow) { f.idToken.key = keyFor("evil") }),
		bad(actor.ClassIDToken, rule, "ID token for another client", id("aud", "another-client")),
		bad(actor.ClassIDToken, rule, "ID token of another provider", id("iss", "https://idp.evil.example")),
		bad(actor.ClassRootSubject, rule, "ID token about another user", id("sub", "mallory")),
		bad(actor.ClassRootNonce, rule, "nonce that isn't the login key's thumbprint", id("nonce", actor.NonceFor(keyFor("evil").Public()))),
		bad(actor.ClassRootNonce, rule, "ID token without a nonce", func(f *flow) { delete(f.idToken.claims, "nonce") }),
		bad(actor.ClassRootNonce, rule, "user grant signed by another key", func(f *flow) {
			f.user.key = keyFor("evil")
			f.user.header["jwk"] = jwkOf(keyFor("evil"))
		}),
		bad(actor.ClassRootSession, rule, "token with another sid", setToken("sid", "other")),
		bad(actor.ClassRootSession, rule, "user grant with another sid than the ID token", func(f *flow) {
			f.user.claims["root"].(map[string]any)["sid"] = "other"
			set(f.token, "sid", "other")
		}),
		bad(actor.ClassRootAuthTime, rule, "renewed auth_time", setToken("auth_time", start.Unix())),
		bad(actor.ClassRootAuthTime, rule, "changed acr", setToken("acr", "gold")),
		bad(actor.ClassRootAge, rule, "session past its maximum", nil).with(settings{MaxSession: 3600}),
		bad(actor.ClassRootAge, rule, "auth_time in the future", setToken("auth_time", now.Add(time.Hour).Unix())),
		bad(actor.ClassIDToken, rule, "bad ID token where the broker's word would do", func(f *flow) { f.idToken.key = keyFor("evil") }).with(settings{RootEvidence: "broker"}),
	}
}

func gradeCases() []vectorCase {
	const rule = "8 grades"
	oid := asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 32473, 1, 1}
	at := func(ext pkix.Extension) func(*flow) {
		return func(f *flow) {
			f.grants[0].header["x5c"] = x5c(svid(planner, func(c *certificate) { c.extra = []pkix.Extension{ext} }))
		}
	}
	good := gradeExt(actor.Attested)[0]
	der := func(b ...byte) pkix.Extension { return pkix.Extension{Id: oid, Value: b} }
	return []vectorCase{
		bad(actor.ClassGrade, rule, "grade extension that is no DER", at(der('x'))).at(1),
		bad(actor.ClassGrade, rule, "grade extension with trailing bytes", at(pkix.Extension{Id: oid, Value: append(append([]byte{}, good.Value...), 5, 0)})).at(1),
		bad(actor.ClassGrade, rule, "grade of an unknown number", at(der(0x30, 6, 2, 1, 1, 0x0a, 1, 2))).at(1),
		bad(actor.ClassGrade, rule, "grade extension of version 2", at(der(0x30, 6, 2, 1, 2, 0x0a, 1, 0))).at(1),
		bad(actor.ClassGrade, rule, "grade extension with a long form length", at(der(0x30, 0x81, 6, 2, 1, 1, 0x0a, 1, 0))).at(1),
		bad(actor.ClassGrade, rule, "attested without evidence", at(der(0x30, 6, 2, 1, 1, 0x0a, 1, 1))).at(1),
		bad(actor.ClassGrade, rule, "grade extension with another member", at(der(0x30, 9, 2, 1, 1, 0x0a, 1, 0, 2, 1, 7))).at(1),
		bad(actor.ClassGrade, rule, "presenter with a bad grade extension", func(f *flow) {
			f.peer = svid(runner, func(c *certificate) { c.extra = []pkix.Extension{der('x')} })
			set(f.token, "cnf", map[string]any{"x5t#S256": actor.CertificateHash(f.peer[0])})
		}).at(3),
	}
}

func revokedCases() []vectorCase {
	const rule = "9 revocations"
	var out []vectorCase
	for _, r := range []struct {
		name string
		key  actor.RevocationKey
	}{
		{"user", actor.RevocationKey{Kind: actor.RevokeSubject, Issuer: idpURL, Value: "00u1a2b3c4d5"}},
		{"session", actor.RevocationKey{Kind: actor.RevokeSession, Issuer: idpURL, Value: "d3f1c2b0"}},
		{"task", actor.RevocationKey{Kind: actor.RevokeTxn, Value: hexID("txn")}},
		{"first agent", actor.RevocationKey{Kind: actor.RevokeActor, Value: planner}},
		{"middle agent", actor.RevocationKey{Kind: actor.RevokeActor, Value: researcher}},
		{"presenter", actor.RevocationKey{Kind: actor.RevokeActor, Value: runner}},
		{"edge from the user", actor.RevocationKey{Kind: actor.RevokeEdge, Issuer: idpURL + "#00u1a2b3c4d5", Value: planner}},
		{"edge between agents", actor.RevocationKey{Kind: actor.RevokeEdge, Issuer: planner, Value: researcher}},
		{"user grant", actor.RevocationKey{Kind: actor.RevokeStatement, Issuer: idpURL, Value: hexID("user grant")}},
		{"grant", actor.RevocationKey{Kind: actor.RevokeStatement, Issuer: researcher, Value: hexID("grant1")}},
		{"token", actor.RevocationKey{Kind: actor.RevokeStatement, Issuer: meshURL, Value: hexID("token")}},
		{"target", actor.RevocationKey{Kind: actor.RevokeTarget, Value: target.String()}},
	} {
		out = append(out, bad(actor.ClassRevoked, rule, "revoked "+r.name, nil).with(settings{Revoked: []actor.RevocationKey{r.key}}))
	}
	a := agentsOf(2)
	return append(out, bad(actor.ClassRevoked, rule, "revoked agent above an actor that a listed pair skipped", nil).from(planner, a[1]).
		with(settings{Revoked: []actor.RevocationKey{{Kind: actor.RevokeActor, Value: a[0]}},
			Delegations: []delegation{{"/agent/planner/*", "/agent/a0/*/a1/*"}}}))
}
