package actor_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"strings"
	"time"

	"github.com/deputymesh/deputy/actor"
)

func peerCases() []vectorCase {
	peer := func(change ...func(*certificate)) func(*flow) {
		return func(f *flow) { f.peer = svid(runner, change...) }
	}
	const rule = "1 peer"
	return []vectorCase{
		bad(actor.ClassPeerCertificate, rule, "peer without a certificate", func(f *flow) { f.peer = nil }),
		bad(actor.ClassPeerCertificate, rule, "peer with an expired SVID", peer(func(c *certificate) { c.notAfter = now.Add(-time.Second) })),
		bad(actor.ClassPeerCertificate, rule, "peer with an SVID that is not valid yet", peer(func(c *certificate) { c.notBefore = now.Add(time.Minute) })),
		bad(actor.ClassPeerCertificate, rule, "peer with our name from a foreign CA", peer(func(c *certificate) { c.ca = "evil" })),
		bad(actor.ClassPeerCertificate, rule, "peer with an SVID that is a CA", peer(func(c *certificate) { c.isCA = true })),
		bad(actor.ClassPeerCertificate, rule, "peer with a key for no signatures", peer(func(c *certificate) { c.usage = x509.KeyUsageKeyAgreement })),
		bad(actor.ClassPeerCertificate, rule, "peer with five certificates", func(f *flow) {
			f.peer = append(f.peer, caCert("ca"), caCert("ca"), caCert("ca"), caCert("ca"))
		}),
		bad(actor.ClassPeerCertificate, rule, "peer with a critical grade", peer(func(c *certificate) { c.extra[0].Critical = true })),
		bad(actor.ClassPeerCertificate, rule, "peer with a critical extension that nobody knows", peer(func(c *certificate) {
			c.extra = append(c.extra, pkix.Extension{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 32473, 1, 99}, Critical: true, Value: []byte{5, 0}})
		})),
		bad(actor.ClassPeerTrustDomain, rule, "peer of another trust domain", peer(func(c *certificate) {
			c.ca, c.id = "evil", strings.Replace(runner, domain, "evil.example", 1)
		})),
		bad(actor.ClassPeerTrustDomain, rule, "peer of another trust domain from our own CA", peer(func(c *certificate) {
			c.id = strings.Replace(runner, domain, "evil.example", 1)
		})),
		bad(actor.ClassNotAgent, rule, "peer is a role under /deputy/", peer(func(c *certificate) { c.id = idOf("/deputy/broker/b1").String() })),
		bad(actor.ClassNotAgent, rule, "peer is a target", peer(func(c *certificate) { c.id = target.String() })),
	}
}

func formCases() []vectorCase {
	whole := func(change func(string) string) func(*flow) { return func(f *flow) { f.whole = change } }
	parts := func(change func(p []string) []string) func(*flow) { return func(f *flow) { f.parts = change } }
	const rule = "2 form"
	return []vectorCase{
		bad(actor.ClassSize, rule, "empty credential", whole(func(string) string { return "" })),
		bad(actor.ClassSize, rule, "credential of more than 32 KiB", whole(func(s string) string { return s + strings.Repeat("A", actor.MaxSize) })),
		bad(actor.ClassAlphabet, rule, "padded base64", whole(func(s string) string { return s + "=" })),
		bad(actor.ClassAlphabet, rule, "newline in base64", whole(func(s string) string { return s[:40] + "\n" + s[40:] })),
		bad(actor.ClassAlphabet, rule, "trailing newline", whole(func(s string) string { return s + "\n" })),
		bad(actor.ClassAlphabet, rule, "leading space", whole(func(s string) string { return " " + s })),
		bad(actor.ClassAlphabet, rule, "standard instead of url base64", whole(func(s string) string { return "+" + s[1:] })),
		bad(actor.ClassAlphabet, rule, "JWS in JSON serialization", whole(func(s string) string {
			p := strings.SplitN(strings.SplitN(s, "~", 2)[0], ".", 3)
			return fmt.Sprintf(`{"payload":%q,"protected":%q,"signature":%q}`, p[1], p[0], p[2])
		})),
		bad(actor.ClassBase64, rule, "stray bits in the last character of a signature", func(f *flow) {
			f.token.after = func(s string) string { return stray(s) }
		}),
		bad(actor.ClassBase64, rule, "stray bits in a grant's signature", func(f *flow) {
			f.grants[0].after = func(s string) string { return stray(s) }
		}),
		bad(actor.ClassParts, rule, "empty part", whole(func(s string) string { return strings.Replace(s, "~", "~~", 1) })),
		bad(actor.ClassParts, rule, "trailing separator", whole(func(s string) string { return s + "~" })),
		bad(actor.ClassParts, rule, "part without a signature", whole(func(s string) string { return s[:strings.LastIndex(s, ".")] })),
		bad(actor.ClassParts, rule, "alg none without a signature", func(f *flow) {
			f.token.header["alg"] = "none"
			f.token.after = func(s string) string { return s[:strings.LastIndex(s, ".")+1] }
		}),
		bad(actor.ClassParts, rule, "part with four members", whole(func(s string) string { return s + ".AAAA" })),
		bad(actor.ClassParts, rule, "eleven parts", parts(func(p []string) []string {
			for len(p) < 11 {
				p = append(p[:2], p[1:]...)
			}
			return p
		})),
		bad(actor.ClassOrder, rule, "user grant before the grants", parts(func(p []string) []string { return []string{p[0], p[3], p[1], p[2], p[4]} })),
		bad(actor.ClassOrder, rule, "ID token without the user grant", func(f *flow) {
			f.user = nil
		}),
		bad(actor.ClassOrder, rule, "two user grants", parts(func(p []string) []string { return []string{p[0], p[1], p[2], p[3], p[3], p[4]} })),
		bad(actor.ClassOrder, rule, "two tokens", parts(func(p []string) []string { return append([]string{p[0]}, p...) })),
		bad(actor.ClassHeaderType, rule, "ID token between the grants", parts(func(p []string) []string { return []string{p[0], p[1], p[4], p[2], p[3]} })),
		bad(actor.ClassHeaderType, rule, "two ID tokens", parts(func(p []string) []string { return append(p, p[4]) })),
		bad(actor.ClassHeaderType, rule, "grant in the place of the token", parts(func(p []string) []string { return p[1:] })),
	}
}

// stray sets a bit of the last character that carries no data: 64 bytes leave
// four unused bits.
func stray(s string) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	last := strings.IndexByte(alphabet, s[len(s)-1])
	return s[:len(s)-1] + string(alphabet[last|1])
}

func jsonCases() []vectorCase {
	const rule = "2 strict JSON"
	raw := func(change func(string) string) func(*flow) { return func(f *flow) { f.token.rawClaims = change } }
	grantRaw := func(change func(string) string) func(*flow) { return func(f *flow) { f.grants[0].rawClaims = change } }
	out := []vectorCase{
		bad(actor.ClassJSONDuplicate, rule, "duplicate member in the token", raw(insert(`"iss":"`+meshURL+`"`))),
		bad(actor.ClassJSONDuplicate, rule, "duplicate member by an escaped name", raw(insert(`"\u0069ss":"`+meshURL+`"`))),
		bad(actor.ClassJSONDuplicate, rule, "duplicate member deep in a grant", grantRaw(replacing(`"format":"iss_sub"`, `"format":"iss_sub","format":"iss_sub"`))).at(1),
		bad(actor.ClassJSONCase, rule, "case-folded member beside the real one", raw(insert(`"SUB":"u_other"`))),
		bad(actor.ClassJSONCase, rule, "member folded by the long s beside the real one", raw(insert(`"ſub":"u_other"`))),
		bad(actor.ClassJSONCase, rule, "member in other case instead of the real one", raw(replacing(`"aud":`, `"Aud":`))),
		bad(actor.ClassJSONCase, rule, "Kelvin sign in a header member", func(f *flow) { f.token.rawHeader = replacing(`"kid"`, "\"\u212aid\"") }),
		bad(actor.ClassJSONTrailing, rule, "trailing bytes after the claims", raw(func(s string) string { return s + "{}" })),
		bad(actor.ClassJSONTrailing, rule, "trailing NUL", raw(func(s string) string { return s + "\x00" })),
		bad(actor.ClassJSONTrailing, rule, "trailing bytes after a header", func(f *flow) { f.grants[1].rawHeader = func(s string) string { return s + " x" } }),
		bad(actor.ClassJSONUTF8, rule, "invalid UTF-8", raw(replacing("q3 refunds", "q3 \xff refunds"))),
		bad(actor.ClassJSONUTF8, rule, "overlong UTF-8", raw(replacing("q3 refunds", "q3 \xc0\xaf"))),
		bad(actor.ClassJSONUTF8, rule, "lone surrogate escape", raw(replacing("q3 refunds", `q3 \ud800`))),
		bad(actor.ClassJSONSyntax, rule, "byte order mark", raw(func(s string) string { return "\ufeff" + s })),
		bad(actor.ClassJSONSyntax, rule, "comment", raw(func(s string) string { return "/**/" + s })),
		bad(actor.ClassJSONSyntax, rule, "trailing comma", raw(func(s string) string { return s[:len(s)-1] + ",}" })),
		bad(actor.ClassJSONSyntax, rule, "number with a leading zero", raw(replacing(`"iat":`, `"iat":0`))),
		bad(actor.ClassJSONSyntax, rule, "control character in a string", raw(replacing("q3 refunds", "q3\trefunds"))),
		bad(actor.ClassJSONSyntax, rule, "NaN", raw(func(s string) string {
			return strings.Replace(s, fmt.Sprint(`"nbf":`, start.Add(time.Minute).Unix()), `"nbf":NaN`, 1)
		})),
		bad(actor.ClassJSONType, rule, "claims are an array", raw(func(s string) string { return "[" + s + "]" })),
		bad(actor.ClassJSONUnknown, rule, "unknown member in the token", setToken("scope", "all")),
		bad(actor.ClassJSONUnknown, rule, "act with a member that actors don't have", func(f *flow) { f.token.claims["act"].(map[string]any)["exp"] = 1 }),
		bad(actor.ClassJSONUnknown, rule, "grant with aud", setGrant(0, "aud", target.String())).at(1),
		bad(actor.ClassJSONUnknown, rule, "delegator that claims a grade", setGrant(1, "grade", "attested")).at(2),
		bad(actor.ClassJSONUnknown, rule, "user grant that claims a grade", setUser("grade", "attested")).at(0),
		bad(actor.ClassJSONUnknown, rule, "capability with an unknown constraint", setToken("authorization_details", pgCap(func(d map[string]any) { d["columns"] = []any{"id"} }))),
		bad(actor.ClassJSONType, rule, "act is a string", setToken("act", runner)),
		bad(actor.ClassJSONType, rule, "act is an array", setToken("act", []any{actOf(planner), actOf(researcher), actOf(runner)})),
		bad(actor.ClassJSONType, rule, "aud is an array", setToken("aud", []any{target.String()})),
		bad(actor.ClassJSONType, rule, "exp is a string", setToken("exp", "1795000000")),
		bad(actor.ClassJSONType, rule, "left is true", setGrant(0, "left", true)).at(1),
		bad(actor.ClassJSONType, rule, "roles is null", setToken("roles", nil)),
		bad(actor.ClassJSONType, rule, "cap is an object", setGrant(0, "cap", pgCap()[0])).at(1),
		bad(actor.ClassJSONRange, rule, "exp is a float", tokenText(`"exp":`, `"exp":1.5e0,"x":`)),
		bad(actor.ClassJSONRange, rule, "exp with an exponent", raw(func(s string) string { return exponent(s) })),
		bad(actor.ClassJSONRange, rule, "exp overflows 64 bits", setToken("exp", uint64(18446744073709551615))),
		bad(actor.ClassJSONRange, rule, "left is a float", grantRaw(replacing(`"left":3`, `"left":3.0`))).at(1),
		bad(actor.ClassJSONDepth, rule, "act as a depth bomb", setToken("act", actOf(agentsOf(20)...))),
		bad(actor.ClassJSONDepth, rule, "array as a depth bomb", raw(insert(`"x":`+strings.Repeat("[", 3000)+strings.Repeat("]", 3000)))),
		bad(actor.ClassJSONDuplicate, rule, "duplicate nonce in the ID token", func(f *flow) { f.idToken.rawClaims = insert(`"nonce":"x"`) }),
		bad(actor.ClassJSONCase, rule, "nonce of the ID token in other case", func(f *flow) { f.idToken.rawClaims = replacing(`"nonce"`, `"Nonce"`) }),
		bad(actor.ClassJSONCase, rule, "alg of the ID token in other case", func(f *flow) { f.idToken.rawHeader = replacing(`"kid"`, `"Alg":"none","kid"`) }),
		bad(actor.ClassJSONCase, rule, "case-folded nonce in the ID token", func(f *flow) { f.idToken.rawClaims = insert(`"Nonce":"x"`) }),
	}
	for _, name := range []string{"iss", "aud", "sub", "sub_id", "sid", "auth_time", "client_id", "act", "cnf",
		"authorization_details", "roles", "purpose", "txn", "iat", "nbf", "exp", "jti"} {
		out = append(out, bad(actor.ClassJSONMissing, rule, "token without "+name, dropToken(name)).from(planner))
	}
	for _, name := range []string{"iss", "delegate", "mesh", "sub_id", "txn", "cap", "left", "purpose", "iat", "exp", "jti"} {
		out = append(out,
			bad(actor.ClassJSONMissing, rule, "grant without "+name, func(f *flow) { delete(f.grants[0].claims, name) }).at(1).from(planner, researcher),
			bad(actor.ClassJSONMissing, rule, "user grant without "+name, func(f *flow) { delete(f.user.claims, name) }).at(0).from(planner))
	}
	return append(out,
		bad(actor.ClassJSONMissing, rule, "grant without prh", func(f *flow) { f.grants[0].keep = true }).at(1),
		bad(actor.ClassJSONMissing, rule, "user grant without root", func(f *flow) { delete(f.user.claims, "root") }).at(0),
		bad(actor.ClassJSONMissing, rule, "act without iss", func(f *flow) { delete(f.token.claims["act"].(map[string]any), "iss") }),
		bad(actor.ClassJSONMissing, rule, "cnf without x5t#S256", setToken("cnf", map[string]any{})),
		bad(actor.ClassJSONUnknown, rule, "cnf with a second binding", func(f *flow) { f.token.claims["cnf"].(map[string]any)["jkt"] = "x" }))
}

func exponent(s string) string {
	exp := fmt.Sprint(start.Add(6 * time.Minute).Unix())
	return strings.Replace(s, `"exp":`+exp, `"exp":`+exp+`e0`, 1)
}

func p384(name string) *ecdsa.PrivateKey {
	sum := sha256.Sum256([]byte(name))
	return must(ecdsa.ParseRawPrivateKey(elliptic.P384(), append(make([]byte, 16), sum[:]...)))
}

func headerCases() []vectorCase {
	const rule = "2 header"
	token := func(name string, value any) func(*flow) { return func(f *flow) { f.token.header[name] = value } }
	grant := func(name string, value any) func(*flow) { return func(f *flow) { f.grants[0].header[name] = value } }
	user := func(name string, value any) func(*flow) { return func(f *flow) { f.user.header[name] = value } }
	id := func(name string, value any) func(*flow) { return func(f *flow) { f.idToken.header[name] = value } }
	jwkWith := func(name string, value any) map[string]any {
		j := jwkOf(keyFor("login"))
		j[name] = value
		return j
	}
	return []vectorCase{
		bad(actor.ClassHeaderAlg, rule, "token with alg none", token("alg", "none")),
		bad(actor.ClassHeaderAlg, rule, "token with alg noNE", token("alg", "noNE")),
		bad(actor.ClassHeaderAlg, rule, "token with alg HS256", token("alg", "HS256")),
		bad(actor.ClassHeaderAlg, rule, "token with alg RS256", token("alg", "RS256")),
		bad(actor.ClassHeaderAlg, rule, "token with alg in lower case", token("alg", "es256")),
		bad(actor.ClassHeaderAlg, rule, "token without alg", func(f *flow) { delete(f.token.header, "alg") }),
		bad(actor.ClassHeaderAlg, rule, "token on the wrong curve", func(f *flow) {
			f.token.header["alg"], f.token.key = "ES384", detSigner{p384("token")}
		}),
		bad(actor.ClassHeaderAlg, rule, "grant with alg none", grant("alg", "none")).at(1),
		bad(actor.ClassHeaderAlg, rule, "user grant with alg HS256", user("alg", "HS256")).at(0),
		bad(actor.ClassHeaderMember, rule, "token with jku", token("jku", "https://evil.example/jwks")),
		bad(actor.ClassHeaderMember, rule, "token with x5u", token("x5u", "https://evil.example/cert")),
		bad(actor.ClassHeaderMember, rule, "token with crit", token("crit", []string{"exp"})),
		bad(actor.ClassHeaderMember, rule, "token with a foreign jwk", token("jwk", jwkOf(keyFor("evil")))),
		bad(actor.ClassHeaderMember, rule, "token with x5c", token("x5c", x5c(svid(runner)))),
		bad(actor.ClassHeaderMember, rule, "token without kid", func(f *flow) { delete(f.token.header, "kid") }),
		bad(actor.ClassHeaderMember, rule, "token with b64", token("b64", false)),
		bad(actor.ClassHeaderMember, rule, "grant with jwk", grant("jwk", jwkOf(keyFor("evil")))).at(1),
		bad(actor.ClassHeaderMember, rule, "grant with kid", grant("kid", "1")).at(1),
		bad(actor.ClassHeaderMember, rule, "grant without x5c", func(f *flow) { delete(f.grants[0].header, "x5c") }).at(1),
		bad(actor.ClassHeaderMember, rule, "grant with x5t#S256", grant("x5t#S256", "x")).at(1),
		bad(actor.ClassHeaderMember, rule, "grant with an empty kid", grant("kid", "")).at(1),
		bad(actor.ClassTokenKey, rule, "token with an empty kid", token("kid", "")),
		bad(actor.ClassHeaderMember, rule, "user grant with kid", user("kid", "1")).at(0),
		bad(actor.ClassHeaderMember, rule, "user grant with jku", user("jku", "https://evil.example/jwks")).at(0),
		bad(actor.ClassHeaderMember, rule, "user grant without jwk", func(f *flow) { delete(f.user.header, "jwk") }).at(0),
		bad(actor.ClassHeaderMember, rule, "user grant with a private key in jwk", user("jwk", jwkWith("d", "AAAA"))).at(0),
		bad(actor.ClassHeaderType, rule, "token with typ JWT", token("typ", "JWT")),
		bad(actor.ClassHeaderType, rule, "token without typ", func(f *flow) { delete(f.token.header, "typ") }),
		bad(actor.ClassHeaderType, rule, "token with typ in other case", token("typ", "AT+JWT")),
		bad(actor.ClassHeaderType, rule, "token with typ application/at+jwt", token("typ", "application/at+jwt")),
		bad(actor.ClassHeaderType, rule, "ID token as access token", func(f *flow) {
			f.parts = func(p []string) []string { return []string{p[4], p[1], p[2], p[3]} }
		}),
		bad(actor.ClassHeaderType, rule, "grant with typ JWT", grant("typ", "JWT")),
		bad(actor.ClassHeaderMember, rule, "user grant with the typ of a grant", user("typ", "deputy-grant+jwt")).at(1),
		bad(actor.ClassJSONDuplicate, rule, "duplicate alg in a header", func(f *flow) { f.token.rawHeader = insert(`"alg":"none"`) }),
		bad(actor.ClassJSONDuplicate, rule, "duplicate typ in a grant's header", func(f *flow) { f.grants[0].rawHeader = insert(`"typ":"x"`) }),
		bad(actor.ClassHeaderKey, rule, "jwk on P-384", user("jwk", jwkOf(detSigner{p384("login")}))).at(0),
		bad(actor.ClassHeaderKey, rule, "jwk that is no point of the curve", user("jwk", jwkWith("y", b64(make([]byte, 32))))).at(0),
		bad(actor.ClassHeaderKey, rule, "jwk with a short coordinate", user("jwk", jwkWith("y", "AAAA"))).at(0),
		bad(actor.ClassHeaderKey, rule, "jwk of a symmetric key", user("jwk", jwkWith("kty", "oct"))).at(0),
		bad(actor.ClassHeaderKey, rule, "x5c is empty", grant("x5c", []string{})).at(1),
		bad(actor.ClassHeaderKey, rule, "x5c is no certificate", grant("x5c", []string{"AAAA"})).at(1),
		bad(actor.ClassBase64, rule, "x5c with a line break", grant("x5c", []string{"AA\nAA"})).at(1),
		bad(actor.ClassHeaderKey, rule, "x5c with five certificates", func(f *flow) {
			one := x5c(svid(planner))[0]
			f.grants[0].header["x5c"] = []string{one, one, one, one, one}
		}).at(1),
		bad(actor.ClassHeaderKey, rule, "x5c leaf on P-384", func(f *flow) {
			k := detSigner{p384("planner")}
			f.grants[0].header["x5c"] = x5c(svid(planner, func(c *certificate) { c.key = k }))
		}).at(1),
		bad(actor.ClassHeaderMember, rule, "ID token with jku", id("jku", "https://evil.example/jwks")),
		bad(actor.ClassHeaderMember, rule, "ID token with jwk", id("jwk", jwkOf(keyFor("evil")))),
		bad(actor.ClassHeaderMember, rule, "ID token with crit", id("crit", []string{"x"})),
		bad(actor.ClassHeaderAlg, rule, "ID token with alg none", id("alg", "none")),
		bad(actor.ClassHeaderAlg, rule, "ID token with alg HS256", id("alg", "HS256")),
	}
}
