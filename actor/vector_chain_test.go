package actor_test

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"strings"
	"time"

	"github.com/deputymesh/deputy/actor"
)

func validCases() []vectorCase {
	ok := func(name string, change func(f *flow)) vectorCase {
		return vectorCase{name: name, rule: "valid", change: change}
	}
	bare := func(f *flow) { f.user, f.idToken = nil, nil }
	broker := settings{RootEvidence: "broker"}
	return []vectorCase{
		ok("one agent", nil).from(planner),
		ok("two agents", nil).from(planner, researcher),
		ok("three agents", nil),
		ok("five agents", nil).from(agentsOf(5)...),
		ok("eight agents where that is allowed", func(f *flow) {
			set(f.user, "left", 7)
			for i, g := range f.grants {
				set(g, "left", 6-i)
			}
		}).from(agentsOf(8)...).with(settings{MaxActors: 8}),
		ok("each hop narrows", func(f *flow) {
			set(f.user, "cap", pgCap(func(d map[string]any) { d["tables"] = []any{"*.*"}; delete(d, "max_rows") }))
			set(f.grants[0], "cap", pgCap(func(d map[string]any) { d["tables"] = []any{"sales.*"} }))
			set(f.grants[1], "cap", pgCap(func(d map[string]any) {
				d["tables"], d["actions"], d["max_rows"] = []any{"sales.orders"}, []any{"select"}, 10
			}))
			set(f.token, "authorization_details", f.grants[1].claims["cap"])
		}),
		ok("root on the broker's word, without the ID token", func(f *flow) { f.parts = func(p []string) []string { return p[:4] } }).with(broker),
		ok("root on the broker's word, ID token verified all the same", nil).with(broker),
		ok("session without user grant, first agent", bare).from(planner).with(broker),
		ok("session without user grant, three agents", func(f *flow) {
			bare(f)
			f.grants[0].keep = true
			set(f.grants[0], "prh", actor.Hash("the ID token"))
		}).with(broker),
		ok("delegation to a listed pair", func(f *flow) {}).from(planner, agentsOf(1)[0]).
			with(settings{Delegations: []delegation{{"/agent/planner/*", "/agent/a0/*"}}}),
		ok("token expired within the skew", nil).with(settings{Now: start.Add(6*time.Minute + 29*time.Second).Unix()}),
		ok("token not valid yet within the skew", nil).with(settings{Now: start.Add(time.Minute - 30*time.Second).Unix()}),
		ok("SVID without the grade extension is asserted", func(f *flow) {
			f.grants[0].header["x5c"] = x5c(svid(planner, func(c *certificate) { c.extra = nil }))
		}),
		ok("grade without evidence", func(f *flow) {
			ext := must(actor.GradeExtension(actor.Asserted, actor.Evidence{}))
			f.grants[0].header["x5c"] = x5c(svid(planner, func(c *certificate) { c.extra = []pkix.Extension{ext} }))
		}),
		ok("SVID below an intermediate", func(f *flow) {
			mid := certificate{key: keyFor("mid"), ca: "ca", notBefore: start.Add(-time.Hour), notAfter: start.Add(3 * time.Minute), isCA: true}.mint(caCert("ca"))
			leaf := certificate{id: planner, key: keyFor(planner), ca: "mid", notBefore: start.Add(-time.Minute), notAfter: start.Add(time.Hour)}.mint(mid)
			f.grants[0].header["x5c"] = x5c([]*x509.Certificate{leaf, mid})
		}),
		ok("provider without sid and auth_time", func(f *flow) {
			delete(f.idToken.claims, "sid")
			delete(f.idToken.claims, "auth_time")
			sid := actor.Hash(f.idToken.sign())
			f.user.claims["root"].(map[string]any)["sid"] = sid
			set(f.token, "sid", sid)
		}),
		ok("session without acr", func(f *flow) { delete(f.idToken.claims, "acr"); delete(f.token.claims, "acr") }),
		ok("white space and escapes in JSON", func(f *flow) {
			f.token.rawClaims = func(s string) string {
				return "\n " + strings.Replace(s, `"iss":`, "\t\"\\u0069ss\" : ", 1) + "\r\n"
			}
		}),
		ok("no roles, no purpose", func(f *flow) {
			set(f.token, "roles", []string{})
			set(f.token, "purpose", "")
			set(f.user, "purpose", "")
		}),
		ok("lists in another order", func(f *flow) {
			set(f.token, "authorization_details", pgCap(func(d map[string]any) {
				d["tables"], d["actions"] = []any{"public.customers", "sales.*"}, []any{"insert", "select"}
			}))
		}),
	}
}

func claimCases() []vectorCase {
	const rule = "2 claims"
	cap := func(change func(map[string]any)) func(*flow) { return setToken("authorization_details", pgCap(change)) }
	return []vectorCase{
		bad(actor.ClassClaim, rule, "txn in upper case", setToken("txn", strings.ToUpper(hexID("txn")))),
		bad(actor.ClassClaim, rule, "jti of 64 bits", setGrant(0, "jti", "0123456789abcdef")).at(1),
		bad(actor.ClassClaim, rule, "left is negative", setGrant(0, "left", -1)).at(1),
		bad(actor.ClassClaim, rule, "left is beyond the hard limit", setUser("left", 8)).at(0),
		bad(actor.ClassClaim, rule, "prh is no hash", func(f *flow) { f.grants[0].keep = true; set(f.grants[0], "prh", "AAAA") }).at(1),
		bad(actor.ClassClaim, rule, "sub_id of another format", setGrant(0, "sub_id", map[string]any{"format": "opaque", "iss": idpURL, "sub": "x"})).at(1),
		bad(actor.ClassClaim, rule, "sub_id.iss with a fragment", setUser("sub_id", map[string]any{"format": "iss_sub", "iss": idpURL + "#a", "sub": "x"})).at(0),
		bad(actor.ClassClaim, rule, "sub_id.iss with an empty fragment", setUser("sub_id", map[string]any{"format": "iss_sub", "iss": idpURL + "#", "sub": "x"})).at(0),
		bad(actor.ClassClaim, rule, "mesh of 513 bytes", setGrant(0, "mesh", meshURL+"/"+strings.Repeat("x", 512-len(meshURL)))).at(1),
		bad(actor.ClassClaim, rule, "mesh with an upper-case scheme", setGrant(0, "mesh", "HTTPS"+strings.TrimPrefix(meshURL, "https"))).at(1),
		bad(actor.ClassClaim, rule, "mesh with an empty port", setGrant(0, "mesh", meshURL+":/")).at(1),
		bad(actor.ClassClaim, rule, "mesh with a quotation mark in its host", setGrant(0, "mesh", `https://a"b`)).at(1),
		bad(actor.ClassClaim, rule, "mesh with a bar in its path", setGrant(0, "mesh", meshURL+"/a|b")).at(1),
		bad(actor.ClassClaim, rule, "mesh with a broken escape", setGrant(0, "mesh", meshURL+"/%zz")).at(1),
		bad(actor.ClassClaim, rule, "token with an empty head", func(f *flow) { f.token.keep = true; set(f.token, "head", "") }),
		bad(actor.ClassClaim, rule, "token with an empty acr", setToken("acr", "")),
		bad(actor.ClassClaim, rule, "acr of 256 bytes", setToken("acr", strings.Repeat("a", 256))),
		bad(actor.ClassNotAgent, rule, "agent of more than 2048 bytes", setGrant(0, "delegate", agentsOf(60)[59])).at(1),
		bad(actor.ClassClaim, rule, "mesh with a query", setGrant(0, "mesh", meshURL+"?x")).at(1),
		bad(actor.ClassClaim, rule, "sub is not made from sub_id", setToken("sub", "u_AAAAAAAAAAAAAAAAAAAAAA")),
		bad(actor.ClassClaim, rule, "sub is an agent", setToken("sub", runner)),
		bad(actor.ClassClaim, rule, "purpose with an escape sequence", func(f *flow) { set(f.grants[0], "purpose", "x\u001b[2J") }).at(1),
		bad(actor.ClassClaim, rule, "purpose with a bidi override", setUser("purpose", "a\u202eb")).at(0),
		bad(actor.ClassClaim, rule, "purpose of more than 200 bytes", setUser("purpose", strings.Repeat("x", 201))).at(0),
		bad(actor.ClassClaim, rule, "sub_profile is user", func(f *flow) { f.token.claims["act"].(map[string]any)["sub_profile"] = "user" }),
		bad(actor.ClassClaim, rule, "exp before iat", setGrant(0, "exp", start.Unix())).at(1),
		bad(actor.ClassClaim, rule, "root of another type", func(f *flow) { f.user.claims["root"].(map[string]any)["type"] = "saml" }).at(0),
		bad(actor.ClassClaim, rule, "a role twice", setToken("roles", []string{"a", "a"})),
		bad(actor.ClassClaim, rule, "65 roles", func(f *flow) {
			var roles []string
			for i := range 65 {
				roles = append(roles, fmt.Sprint("role", i))
			}
			set(f.token, "roles", roles)
		}),
		bad(actor.ClassClaim, rule, "auth_time is 0", setToken("auth_time", 0)),
		bad(actor.ClassClaim, rule, "nbf after exp", setToken("nbf", start.Add(7*time.Minute).Unix())),
		bad(actor.ClassClaim, rule, "exp beyond all time", setToken("exp", int64(1)<<38)),
		bad(actor.ClassClaim, rule, "mesh is no URL", setGrant(0, "mesh", "broker")).at(1),
		bad(actor.ClassTokenAudience, rule, "aud is no target", setToken("aud", idOf("/deputy/proxy/p1").String())),
		bad(actor.ClassNotAgent, rule, "actor under /deputy/", setToken("act", actOf(idOf("/deputy/broker/b1").String(), runner))),
		bad(actor.ClassNotAgent, rule, "delegate under /deputy/", setGrant(0, "delegate", idOf("/deputy/broker/b1").String())).at(1),
		bad(actor.ClassNotAgent, rule, "delegator under /deputy/", setGrant(0, "iss", idOf("/deputy/issuer/i1").String())).at(1),
		bad(actor.ClassNotAgent, rule, "agent without an instance", setUser("delegate", idOf("/agent/planner").String())).at(0),
		bad(actor.ClassNotAgent, rule, "agent with a short instance", setUser("delegate", idOf("/agent/planner/7f3c").String())).at(0),
		bad(actor.ClassNotAgent, rule, "agent with dots in its path", setUser("delegate", planner+"/../admin")).at(0),
		bad(actor.ClassNotAgent, rule, "agent with an escaped slash", setUser("delegate", planner+"%2Fadmin")).at(0),
		bad(actor.ClassNotAgent, rule, "agent with an upper-case trust domain", setUser("delegate", strings.Replace(planner, domain, "Corp.example", 1))).at(0),
		bad(actor.ClassDetails, rule, "capability of an unknown type", setToken("authorization_details", []any{map[string]any{"type": "deputy_everything"}})),
		bad(actor.ClassDetails, rule, "no capability at all", setToken("authorization_details", []any{})),
		bad(actor.ClassDetails, rule, "capability with an unknown action", cap(func(d map[string]any) { d["actions"] = []any{"everything"} })),
		bad(actor.ClassDetails, rule, "capability with an empty list", cap(func(d map[string]any) { d["tables"] = []any{} })),
		bad(actor.ClassDetails, rule, "capability with max_rows 0", cap(func(d map[string]any) { d["max_rows"] = 0 })),
		bad(actor.ClassDetails, rule, "capability with a star inside a name", cap(func(d map[string]any) { d["tables"] = []any{"sales.ord*"} })),
		bad(actor.ClassDetails, rule, "capability with a table without schema", cap(func(d map[string]any) { d["tables"] = []any{"orders"} })),
		bad(actor.ClassDetails, rule, "capability with a database pattern", cap(func(d map[string]any) { d["databases"] = []any{"*"} })),
		bad(actor.ClassDetails, rule, "capability with a name of 64 bytes", cap(func(d map[string]any) { d["databases"] = []any{strings.Repeat("x", 64)} })),
		bad(actor.ClassDetails, rule, "capability with an empty name", cap(func(d map[string]any) { d["tables"] = []any{"."} })),
		bad(actor.ClassDetails, rule, "capability with a dotted table", cap(func(d map[string]any) { d["tables"] = []any{"db.sales.orders"} })),
		bad(actor.ClassDetails, rule, "capability with a location that is no target", cap(func(d map[string]any) { d["locations"] = []any{planner} })),
		bad(actor.ClassDetails, rule, "capability that says something twice", cap(func(d map[string]any) { d["actions"] = []any{"select", "select"} })),
		bad(actor.ClassJSONMissing, rule, "capability without actions", cap(func(d map[string]any) { delete(d, "actions") })),
		bad(actor.ClassJSONMissing, rule, "capability without a type", cap(func(d map[string]any) { delete(d, "type") })),
	}
}

func tokenCases() []vectorCase {
	const rule = "3 token"
	return []vectorCase{
		bad(actor.ClassTokenKey, rule, "unknown kid", func(f *flow) { f.token.header["kid"] = "unknown" }),
		bad(actor.ClassTokenKey, rule, "kid of the login key", func(f *flow) {
			f.token.header["kid"], f.token.key = actor.NonceFor(keyFor("login").Public()), keyFor("login")
		}),
		bad(actor.ClassTokenKey, rule, "token key that has expired", func(f *flow) {
			f.token.header["kid"], f.token.key = actor.NonceFor(keyFor("old token").Public()), keyFor("old token")
		}),
		bad(actor.ClassTokenSignature, rule, "token signed by another key", func(f *flow) { f.token.key = keyFor("evil") }),
		bad(actor.ClassTokenSignature, rule, "token signed by the presenter", func(f *flow) { f.token.key = keyFor(runner) }),
		bad(actor.ClassTokenSignature, rule, "token whose claims were changed afterwards", func(f *flow) {
			f.token.after = func(s string) string {
				p := strings.Split(s, ".")
				p[1] = b64([]byte(strings.Replace(string(unb64(p[1])), `"analyst"`, `"dbadmin"`, 1)))
				return strings.Join(p, ".")
			}
		}),
		bad(actor.ClassTokenIssuer, rule, "token of another mesh", setToken("iss", "https://broker.evil.example")),
		bad(actor.ClassTokenIssuer, rule, "iss with a trailing slash", setToken("iss", meshURL+"/")),
		bad(actor.ClassTokenAudience, rule, "token for another target", setToken("aud", otherTarget.String())),
		bad(actor.ClassTokenNotYet, rule, "token not valid yet", nil).with(settings{Now: start.Add(time.Minute - 31*time.Second).Unix()}),
		bad(actor.ClassTokenExpired, rule, "expired token", nil).with(settings{Now: start.Add(6*time.Minute + 30*time.Second).Unix()}),
		bad(actor.ClassTokenLifetime, rule, "token that lives longer than five minutes", setToken("exp", start.Add(6*time.Minute+time.Second).Unix())),
		bad(actor.ClassPresenterActor, "4 presenter", "token of another agent", func(f *flow) { f.peer = svid(agentsOf(1)[0]) }),
		bad(actor.ClassPresenterActor, "4 presenter", "token presented by the delegator", func(f *flow) { f.peer = svid(researcher) }),
		bad(actor.ClassPresenterClient, "4 presenter", "client_id is another actor", setToken("client_id", researcher)),
		bad(actor.ClassPresenterBinding, "4 presenter", "token bound to an SVID before its rotation", func(f *flow) {
			f.peer = svid(runner, func(c *certificate) { c.notAfter = start.Add(2 * time.Hour) })
		}),
		bad(actor.ClassPresenterBinding, "4 presenter", "token bound to another agent's SVID", setToken("cnf", map[string]any{"x5t#S256": actor.CertificateHash(svid(researcher)[0])})),
	}
}

func shapeCases() []vectorCase {
	const rule = "5 shape"
	evil := strings.Replace(planner, domain, "evil.example", 1)
	drop := func(i ...int) func(*flow) {
		return func(f *flow) {
			f.parts = func(p []string) []string {
				out := make([]string, len(i))
				for k, n := range i {
					out[k] = p[n]
				}
				return out
			}
		}
	}
	return []vectorCase{
		bad(actor.ClassActorCount, rule, "six actors where five are allowed", func(f *flow) {
			set(f.user, "left", 7)
			for i, g := range f.grants {
				set(g, "left", 6-i)
			}
		}).from(agentsOf(6)...),
		bad(actor.ClassActorTrustDomain, rule, "actor of another trust domain", setToken("act", actOf(evil, researcher, runner))),
		bad(actor.ClassActorTrustDomain, rule, "act.iss is another trust domain", func(f *flow) { f.token.claims["act"].(map[string]any)["iss"] = "spiffe://evil.example" }),
		bad(actor.ClassActorTrustDomain, rule, "act.iss is the broker", func(f *flow) { f.token.claims["act"].(map[string]any)["iss"] = meshURL }),
		bad(actor.ClassActorRepeated, rule, "repeated actor", func(f *flow) {}).from(planner, runner, planner, runner),
		bad(actor.ClassUserGrantMissing, rule, "no user grant where one is demanded", func(f *flow) {
			f.user, f.idToken = nil, nil
			f.grants[0].keep = true
			set(f.grants[0], "prh", actor.Hash("x"))
		}),
		bad(actor.ClassUserGrantMissing, rule, "no user grant where only that is demanded", func(f *flow) {
			f.user, f.idToken = nil, nil
			f.grants[0].keep = true
			set(f.grants[0], "prh", actor.Hash("x"))
		}).
			with(settings{RootEvidence: "broker", RequireUserGrant: true}),
		bad(actor.ClassActorGrants, rule, "omitted hop in the grants", drop(0, 1, 3, 4)),
		bad(actor.ClassActorGrants, rule, "omitted newest grant", drop(0, 2, 3, 4)),
		bad(actor.ClassActorGrants, rule, "omitted hop in act", setToken("act", actOf(planner, runner))),
		bad(actor.ClassActorGrants, rule, "reordered grants", drop(0, 2, 1, 3, 4)),
		bad(actor.ClassActorGrants, rule, "reordered actors", setToken("act", actOf(researcher, planner, runner))),
		bad(actor.ClassActorGrants, rule, "an actor that no grant names", setToken("act", actOf(agentsOf(1)[0], researcher, runner))),
		bad(actor.ClassActorGrants, rule, "a grant more than actors", drop(0, 1, 1, 2, 3, 4)),
		bad(actor.ClassActorGrants, rule, "no grants under a token that has several actors", drop(0)).with(settings{RootEvidence: "broker"}),
	}
}

func grantCases() []vectorCase {
	const rule = "6 grants"
	evilName := strings.Replace(planner, domain, "evil.example", 1)
	otherFlow := func() *flow {
		o := chainOf(planner, researcher, runner)
		for _, s := range append([]*statement{o.user, o.token}, o.grants...) {
			set(s, "txn", hexID("other txn"))
		}
		return o
	}
	svidOf := func(i int, id string, change ...func(*certificate)) func(*flow) {
		return func(f *flow) { f.grants[i].header["x5c"] = x5c(svid(id, change...)) }
	}
	return []vectorCase{
		bad(actor.ClassGrantHead, rule, "splice: token of one flow, grants of another", func(f *flow) {
			o := otherFlow()
			o.credential()
			lineage := o.lineage()
			f.parts = func(p []string) []string { return append(p[:1], lineage...) }
		}),
		bad(actor.ClassGrantHead, rule, "token without head", func(f *flow) { f.token.keep = true }),
		bad(actor.ClassGrantHead, rule, "head of another grant", func(f *flow) { f.token.keep = true; set(f.token, "head", actor.Hash("x")) }),
		bad(actor.ClassGrantHead, rule, "head where there is no grant", func(f *flow) {
			f.user, f.idToken = nil, nil
			set(f.token, "head", actor.Hash("x"))
		}).from(planner).with(settings{RootEvidence: "broker"}),
		bad(actor.ClassGrantTxn, rule, "splice: newest grant of one flow, older ones of another", func(f *flow) {
			lineage := otherFlow().lineage()
			f.parts = func(p []string) []string { return append(p[:2], lineage[1:]...) }
		}).at(0),
		bad(actor.ClassGrantPrevious, rule, "splice: older grants of a second flow with the same txn", func(f *flow) {
			o := chainOf(planner, researcher, runner)
			set(o.user, "jti", hexID("second user grant"))
			lineage := o.lineage()
			f.parts = func(p []string) []string { return append(p[:3], lineage[2:]...) }
		}).at(1),
		bad(actor.ClassGrantPrevious, rule, "prh of the grant before that", func(f *flow) {
			f.grants[1].keep = true
			set(f.grants[1], "prh", actor.Hash(f.lineage()[2]))
		}).at(2),
		bad(actor.ClassGrantTrustDomain, rule, "grant signed by another trust domain", svidOf(0, evilName, func(c *certificate) { c.ca, c.key = "evil", keyFor(planner) })).at(1),
		bad(actor.ClassGrantTrustDomain, rule, "grant issued and signed by another trust domain", func(f *flow) {
			svidOf(0, evilName, func(c *certificate) { c.ca, c.key = "evil", keyFor(planner) })(f)
			set(f.grants[0], "iss", evilName)
		}).at(1),
		bad(actor.ClassGrantTrustDomain, rule, "grant issued by another trust domain under our SVID", setGrant(0, "iss", evilName)).at(1),
		bad(actor.ClassGrantTrustDomain, rule, "grant signed by another trust domain under our issuer, from our CA", svidOf(0, evilName, func(c *certificate) { c.key = keyFor(planner) })).at(1),
		bad(actor.ClassGrantCertificate, rule, "grant with an SVID from a foreign CA", svidOf(0, planner, func(c *certificate) { c.ca = "evil" })).at(1),
		bad(actor.ClassGrantCertificate, rule, "expired SVID of a middle hop", svidOf(1, researcher, func(c *certificate) { c.notAfter = now.Add(-time.Second) })).at(2),
		bad(actor.ClassGrantCertificate, rule, "SVID with a key for no signatures", svidOf(0, planner, func(c *certificate) { c.usage = x509.KeyUsageKeyEncipherment })).at(1),
		bad(actor.ClassGrantCertificate, rule, "SVID that is a CA", svidOf(0, planner, func(c *certificate) { c.isCA = true })).at(1),
		bad(actor.ClassGrantCertificate, rule, "SVID without its intermediate", func(f *flow) {
			mid := certificate{key: keyFor("mid"), ca: "ca", notBefore: start.Add(-time.Hour), notAfter: start.Add(time.Hour), isCA: true}.mint(caCert("ca"))
			leaf := certificate{id: planner, key: keyFor(planner), ca: "mid", notBefore: start.Add(-time.Minute), notAfter: start.Add(time.Hour)}.mint(mid)
			f.grants[0].header["x5c"] = x5c([]*x509.Certificate{leaf})
		}).at(1),
		bad(actor.ClassGrantIssuer, rule, "SVID of another agent", func(f *flow) {
			svidOf(0, researcher)(f)
			f.grants[0].key = keyFor(researcher)
		}).at(1),
		bad(actor.ClassGrantIssuer, rule, "SVID of a role", func(f *flow) {
			svidOf(0, idOf("/deputy/broker/b1").String(), func(c *certificate) { c.key = keyFor(planner) })(f)
		}).at(1),
		bad(actor.ClassGrantIssuer, rule, "user grant of another provider than the user", setUser("iss", "https://idp.evil.example")).at(0),
		bad(actor.ClassGrantSignature, rule, "grant signed by another key", func(f *flow) { f.grants[0].key = keyFor("evil") }).at(1),
		bad(actor.ClassGrantSignature, rule, "grant signed by the token key", func(f *flow) { f.grants[1].key = keyFor("token") }).at(2),
		bad(actor.ClassGrantSignature, rule, "user grant with the login key's jwk, signed by another key", func(f *flow) { f.user.key = keyFor("evil") }).at(0),
		bad(actor.ClassGrantNotYet, rule, "grant from the future", setGrant(0, "iat", now.Add(31*time.Second).Unix())).at(1),
		bad(actor.ClassGrantExpired, rule, "expired grant", setGrant(0, "exp", start.Add(80*time.Second).Unix())).at(1),
		bad(actor.ClassGrantExpired, rule, "expired user grant", setUser("exp", start.Add(80*time.Second).Unix())).at(0),
		bad(actor.ClassGrantOutlivesSVID, rule, "grant that outlives its SVID", svidOf(1, researcher, func(c *certificate) { c.notAfter = start.Add(10 * time.Minute) })).at(2),
		bad(actor.ClassGrantMesh, rule, "changed mesh", setGrant(0, "mesh", "https://broker.evil.example")).at(1),
		bad(actor.ClassGrantMesh, rule, "user grant for another mesh", setUser("mesh", "https://broker.evil.example")).at(0),
		bad(actor.ClassGrantTxn, rule, "changed txn", setGrant(1, "txn", hexID("other txn"))).at(2),
		bad(actor.ClassGrantTxn, rule, "token with another txn", setToken("txn", hexID("other txn"))).at(0),
		bad(actor.ClassGrantSubject, rule, "changed sub_id", setGrant(0, "sub_id", map[string]any{"format": "iss_sub", "iss": idpURL, "sub": "mallory"})).at(1),
		bad(actor.ClassGrantSubject, rule, "token about another user", func(f *flow) {
			other := actor.SubjectID{Issuer: idpURL, Subject: "mallory"}
			set(f.token, "sub_id", map[string]any{"format": "iss_sub", "iss": idpURL, "sub": "mallory"})
			set(f.token, "sub", actor.SubjectName(other))
		}).at(0),
		bad(actor.ClassGrantDelegate, rule, "wrong delegate: the next grant is by somebody else", func(f *flow) {
			set(f.grants[1], "iss", planner)
			svidOf(1, planner)(f)
			f.grants[1].key = keyFor(planner)
		}).at(2),
		bad(actor.ClassGrantChild, rule, "delegate that is no direct child", nil).from(planner, agentsOf(1)[0]).at(1),
		bad(actor.ClassGrantChild, rule, "delegate that is a grandchild", nil).from(planner, runner).at(1),
		bad(actor.ClassGrantChild, rule, "delegate that is the parent", nil).from(planner, researcher, agentsOf(1)[0]).at(2),
		bad(actor.ClassGrantChild, rule, "user delegates past the first level", nil).from(researcher).at(0),
		bad(actor.ClassGrantChild, rule, "listed pair does not cover deeper paths", nil).from(planner, agentsOf(2)[1]).at(1).
			with(settings{Delegations: []delegation{{"/agent/planner/*", "/agent/a0/*"}}}),
		bad(actor.ClassGrantLeft, rule, "left stays", setGrant(0, "left", 4)).at(1),
		bad(actor.ClassGrantLeft, rule, "left grows", setGrant(1, "left", 5)).at(2),
		bad(actor.ClassGrantLeft, rule, "grant although none was left", func(f *flow) { set(f.user, "left", 0); set(f.grants[0], "left", 0) }).from(planner, researcher).at(1),
		bad(actor.ClassGrantExp, rule, "longer exp", setGrant(1, "exp", start.Add(41*time.Minute).Unix())).at(2),
		bad(actor.ClassGrantExp, rule, "exp past the user grant", setGrant(0, "exp", start.Add(51*time.Minute).Unix())).at(1),
		bad(actor.ClassTokenOutlives, rule, "token that outlives the newest grant", setGrant(1, "exp", start.Add(5*time.Minute).Unix())),
		bad(actor.ClassTokenOutlives, rule, "token that outlives the presenter's SVID", func(f *flow) {
			f.peer = svid(runner, func(c *certificate) { c.notAfter = start.Add(4 * time.Minute) })
			set(f.token, "cnf", map[string]any{"x5t#S256": actor.CertificateHash(f.peer[0])})
		}),
		bad(actor.ClassTokenPurpose, rule, "token with another purpose than the user's", setToken("purpose", "drop everything")),
	}
}

func capCases() []vectorCase {
	const rule = "6 cap"
	widen := func(change func(map[string]any)) func(*flow) { return setGrant(0, "cap", pgCap(change)) }
	token := func(change func(map[string]any)) func(*flow) {
		return setToken("authorization_details", pgCap(change))
	}
	changes := []struct {
		name   string
		change func(map[string]any)
	}{
		{"another action", func(d map[string]any) { d["actions"] = []any{"select", "delete"} }},
		{"another target", func(d map[string]any) { d["locations"] = []any{target.String(), otherTarget.String()} }},
		{"another database", func(d map[string]any) { d["databases"] = []any{"orders", "hr"} }},
		{"no databases", func(d map[string]any) { delete(d, "databases") }},
		{"all tables of a schema", func(d map[string]any) { d["tables"] = []any{"public.*"} }},
		{"a table in every schema", func(d map[string]any) { d["tables"] = []any{"*.customers"} }},
		{"all tables", func(d map[string]any) { d["tables"] = []any{"*.*"} }},
		{"no tables", func(d map[string]any) { delete(d, "tables") }},
		{"more rows", func(d map[string]any) { d["max_rows"] = 1001 }},
		{"no max_rows", func(d map[string]any) { delete(d, "max_rows") }},
	}
	var out []vectorCase
	for _, c := range changes {
		out = append(out,
			bad(actor.ClassGrantCap, rule, "widened cap: "+c.name, widen(c.change)).at(1),
			bad(actor.ClassTokenDetails, rule, "widened token: "+c.name, token(c.change)))
	}
	return append(out,
		bad(actor.ClassGrantCap, rule, "widened cap: a second object", setGrant(0, "cap", append(pgCap(), pgCap(func(d map[string]any) { d["actions"] = []any{"ddl"} })...))).at(1),
		bad(actor.ClassGrantCap, rule, "widened cap: one object made of two", func(f *flow) {
			set(f.user, "cap", append(pgCap(func(d map[string]any) { d["actions"] = []any{"select"} }), pgCap(func(d map[string]any) { d["actions"] = []any{"insert"} })...))
		}).at(1),
		bad(actor.ClassGrantCap, rule, "cap that widens again at the third hop", func(f *flow) {
			set(f.grants[0], "cap", pgCap(func(d map[string]any) { d["actions"] = []any{"select"} }))
		}).at(2))
}
