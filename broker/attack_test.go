package broker_test

import (
	"crypto/x509"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/internal/idp"
	"github.com/deputymesh/deputy/internal/testca"
)

type certificate = x509.Certificate

// flow is one user's task, from the sign-in to a third agent.
type flow struct {
	login                       *login
	planner, researcher, runner *x509svid.SVID
	root, one, two              string
}

func (m *mesh) flow(sub string) flow {
	f := flow{login: m.login(sub), planner: m.agent("planner")}
	f.researcher = m.child(f.planner, "researcher")
	f.runner = m.child(f.researcher, "runner")
	f.root = f.login.root(f.planner)
	f.one = m.pass(f.planner, f.researcher, f.root)
	f.two = m.pass(f.researcher, f.runner, f.one)
	return f
}

func (f flow) parts() []string { return []string{f.two, f.one, f.root, f.login.idToken} }

// Every part of one flow put into another, alone and in combinations, is refused: chain splicing.
func TestSplicesOfTwoFlows(t *testing.T) {
	m := newMesh(t)
	a, b := m.flow("alice"), m.flow("bob")
	// The same user, in another task, is another flow too.
	c := m.flow("alice")
	for _, other := range []flow{b, c} {
		mine, theirs := a.parts(), other.parts()
		for mask := 1; mask < 1<<len(mine)-1; mask++ {
			mixed := make([]string, len(mine))
			for i := range mine {
				mixed[i] = mine[i]
				if mask&(1<<i) != 0 {
					mixed[i] = theirs[i]
				}
			}
			if r := m.exchange(a.runner, join(mixed...)); r.status == http.StatusOK || r.Error != "invalid_request" {
				t.Errorf("splice %04b: %s", mask, r)
			}
			m.clock.pass(time.Second) // stay below the rate
		}
	}
	m.ok(m.exchange(a.runner, join(a.parts()...)))
}

func TestAttacksOnTheExchange(t *testing.T) {
	m := newMesh(t)
	const bad = "invalid_request"
	other := testca.New(t, "evil.example")
	for name, tc := range map[string]struct {
		do      func(f flow) reply
		code    string
		classes []string
	}{
		"stolen credential, other agent": {func(f flow) reply {
			return m.exchange(m.agent("thief"), join(f.root, f.login.idToken))
		}, bad, []string{string(actor.ClassGrantDelegate)}},
		"parent presents its child's": {func(f flow) reply {
			return m.exchange(f.planner, join(f.one, f.root, f.login.idToken))
		}, bad, []string{string(actor.ClassGrantDelegate)}},
		"child presents its parent's": {func(f flow) reply {
			return m.exchange(f.researcher, join(f.root, f.login.idToken))
		}, bad, []string{string(actor.ClassGrantDelegate)}},
		"omitted hop": {func(f flow) reply {
			return m.exchange(f.runner, join(f.two, f.root, f.login.idToken))
		}, bad, []string{string(actor.ClassGrantPrevious), string(actor.ClassGrantDelegate)}},
		"reordered hops": {func(f flow) reply {
			return m.exchange(f.runner, join(f.one, f.two, f.root, f.login.idToken))
		}, bad, []string{string(actor.ClassGrantPrevious), string(actor.ClassGrantDelegate)}},
		"upstream splice: a grant to somebody who isn't a child": {func(f flow) reply {
			friend := m.agent("friend")
			return m.exchange(friend, join(m.pass(f.planner, friend, f.root), f.root, f.login.idToken))
		}, bad, []string{string(actor.ClassGrantChild)}},
		"a delegator that isn't in the chain": {func(f flow) reply {
			stranger := m.agent("stranger")
			kid := m.child(stranger, "kid")
			g, err := actor.ParseUserGrant(f.root)
			if err != nil {
				t.Fatal(err)
			}
			forged, err := actor.SignGrant(stranger.PrivateKey, stranger.Certificates, actor.Grant{
				Issuer: agentID(t, stranger), Delegate: agentID(t, kid), Mesh: meshURL, Subject: g.Subject, Txn: g.Txn, Previous: actor.Hash(f.root),
				Cap: g.Cap, Left: 1, Purpose: g.Purpose, IssuedAt: g.IssuedAt, Expires: g.IssuedAt.Add(time.Minute), ID: actor.NewHexID(),
			})
			if err != nil {
				t.Fatal(err)
			}
			return m.exchange(kid, join(forged, f.root, f.login.idToken))
		}, bad, []string{string(actor.ClassGrantDelegate)}},
		"widened cap": {func(f flow) reply {
			wide := m.pass(f.planner, f.researcher, f.root, func(g *actor.Grant) { g.Cap = m.cap("select", "update", "delete") })
			return m.exchange(f.researcher, join(wide, f.root, f.login.idToken))
		}, bad, []string{string(actor.ClassGrantCap)}},
		"longer exp": {func(f flow) reply {
			long := m.pass(f.planner, f.researcher, f.root, func(g *actor.Grant) { g.Expires = g.Expires.Add(5 * time.Minute) })
			return m.exchange(f.researcher, join(long, f.root, f.login.idToken))
		}, bad, []string{string(actor.ClassGrantExp)}},
		"more left": {func(f flow) reply {
			more := m.pass(f.planner, f.researcher, f.root, func(g *actor.Grant) { g.Left = 5 })
			return m.exchange(f.researcher, join(more, f.root, f.login.idToken))
		}, bad, []string{string(actor.ClassGrantLeft)}},
		"another mesh": {func(f flow) reply {
			return m.exchange(f.planner, join(f.login.root(f.planner, func(g *actor.UserGrant) { g.Mesh = "https://other.example" }), f.login.idToken))
		}, bad, []string{string(actor.ClassGrantMesh)}},
		"user grant by another key": {func(f flow) reply {
			thief := *f.login
			thief.key = testca.NewKey(t)
			return m.exchange(f.planner, join(thief.root(f.planner), f.login.idToken))
		}, bad, []string{string(actor.ClassRootNonce)}},
		"user grant for another user": {func(f flow) reply {
			thief := *f.login
			thief.user.Subject = "root"
			return m.exchange(f.planner, join(thief.root(f.planner), f.login.idToken))
		}, bad, []string{string(actor.ClassRootSubject)}},
		"user grant with another sid": {func(f flow) reply {
			return m.exchange(f.planner, join(f.login.root(f.planner, func(g *actor.UserGrant) { g.Root.SID = "other" }), f.login.idToken))
		}, bad, []string{string(actor.ClassRootSession)}},
		"another ID token of the same user": {func(f flow) reply {
			return m.exchange(f.planner, join(f.root, m.login(f.login.user.Subject).idToken))
		}, bad, []string{string(actor.ClassRootHash)}},
		"no ID token": {func(f flow) reply {
			return m.exchange(f.planner, f.root)
		}, bad, []string{string(actor.ClassIDTokenMissing)}},
		"bare ID token where none may": {func(f flow) reply {
			return m.exchange(f.planner, f.login.idToken, "subject_token_type", "urn:ietf:params:oauth:token-type:id_token")
		}, bad, []string{string(actor.ClassUserGrantMissing)}},
		"grants announced as ID token": {func(f flow) reply {
			return m.exchange(f.planner, join(f.root, f.login.idToken), "subject_token_type", "urn:ietf:params:oauth:token-type:id_token")
		}, bad, []string{"request.subject-type"}},
		"delegated token as subject": {func(f flow) reply {
			return m.exchange(f.planner, join(m.ok(m.exchange(f.planner, join(f.root, f.login.idToken))), f.root, f.login.idToken))
		}, bad, []string{string(actor.ClassOrder), string(actor.ClassHeaderType)}},
		"expired grant of a middle hop": {func(f flow) reply {
			short := m.pass(f.planner, f.researcher, f.root, func(g *actor.Grant) { g.Expires = g.IssuedAt.Add(time.Minute) })
			next := m.pass(f.researcher, f.runner, short)
			m.clock.pass(2 * time.Minute)
			return m.exchange(f.runner, join(next, short, f.root, f.login.idToken))
		}, bad, []string{string(actor.ClassGrantExpired)}},
		"expired SVID of a middle hop": {func(f flow) reply {
			now := m.clock.now()
			old := m.ca.SVIDFor(f.planner.ID, f.planner.PrivateKey, testca.Validity(now.Add(-time.Hour), now.Add(time.Second)))
			g := m.pass(old, f.researcher, f.root)
			m.clock.pass(5 * time.Second) // within the skew of grants; certificates have none
			return m.exchange(f.researcher, join(g, f.root, f.login.idToken))
		}, bad, []string{string(actor.ClassGrantCertificate), string(actor.ClassGrantExpired)}},
		"grant by another trust domain's authority": {func(f flow) reply {
			fake := other.SVID(f.planner.ID)
			return m.exchange(f.researcher, join(m.pass(fake, f.researcher, f.root), f.root, f.login.idToken))
		}, bad, []string{string(actor.ClassGrantCertificate)}},
		"the mesh's name from another authority": {func(f flow) reply {
			impostor := testca.New(t, "corp.example").SVID(f.planner.ID)
			return m.exchange(f.researcher, join(m.pass(impostor, f.researcher, f.root), f.root, f.login.idToken))
		}, bad, []string{string(actor.ClassGrantCertificate)}},
		"a role as presenter's grant": {func(f flow) reply {
			return m.exchange(f.planner, join(strings.Replace(f.root, ".", "..", 1), f.login.idToken))
		}, bad, []string{string(actor.ClassParts)}},
		"unsigned ID token": {func(f flow) reply {
			p := strings.Split(f.login.idToken, ".")
			return m.exchange(f.planner, join(f.root, "eyJhbGciOiJub25lIn0."+p[1]+"."+p[2]))
		}, bad, []string{string(actor.ClassHeaderAlg)}},
		"another target": {func(f flow) reply {
			return m.exchange(f.planner, join(f.root, f.login.idToken), "resource", "spiffe://corp.example/target/payroll")
		}, "invalid_target", []string{"target.unknown"}},
		"a target outside the cap": {func(f flow) reply {
			l := m.login("dora", func(c map[string]any) { c["groups"] = "dba-team" })
			return m.exchange(f.planner, join(l.root(f.planner), l.idToken), "resource", "spiffe://corp.example/target/crm-db")
		}, "invalid_target", []string{"target.capability"}},
		"a target that the user's roles don't reach": {func(f flow) reply {
			return m.exchange(f.planner, join(f.root, f.login.idToken), "resource", "spiffe://corp.example/target/crm-db")
		}, "invalid_target", []string{"target.roles"}},
		"a target of another trust domain": {func(f flow) reply {
			return m.exchange(f.planner, join(f.root, f.login.idToken), "resource", "spiffe://evil.example/target/orders-db")
		}, "invalid_target", []string{"target.name"}},
		"a proxy as target": {func(f flow) reply {
			return m.exchange(f.planner, join(f.root, f.login.idToken), "resource", "spiffe://corp.example/deputy/proxy/orders")
		}, "invalid_target", []string{"target.name"}},
		"two targets": {func(f flow) reply {
			return m.post(f.planner, "/token", form(join(f.root, f.login.idToken)).Encode()+"&resource=spiffe%3A%2F%2Fcorp.example%2Ftarget%2Fcrm-db")
		}, bad, []string{"request.duplicate"}},
		"resource and audience": {func(f flow) reply {
			return m.exchange(f.planner, join(f.root, f.login.idToken), "audience", "orders-db")
		}, bad, []string{"request.target"}},
		"no target": {func(f flow) reply {
			return m.exchange(f.planner, join(f.root, f.login.idToken), "resource", "")
		}, bad, []string{"request.target"}},
		"widened details": {func(f flow) reply {
			return m.exchange(f.planner, join(f.root, f.login.idToken), "authorization_details",
				`[{"type":"deputy_postgres","locations":["spiffe://corp.example/target/orders-db"],"actions":["select","ddl"],"databases":["orders"]}]`)
		}, "invalid_authorization_details", []string{string(actor.ClassWider)}},
		"details that drop a constraint": {func(f flow) reply {
			return m.exchange(f.planner, join(f.root, f.login.idToken), "authorization_details",
				`[{"type":"deputy_postgres","locations":["spiffe://corp.example/target/orders-db"],"actions":["select"]}]`)
		}, "invalid_authorization_details", []string{string(actor.ClassWider)}},
		"details of another target": {func(f flow) reply {
			return m.exchange(f.planner, join(f.root, f.login.idToken), "authorization_details",
				`[{"type":"deputy_postgres","locations":["spiffe://corp.example/target/crm-db"],"actions":["select"],"databases":["orders"]}]`)
		}, "invalid_authorization_details", []string{"details.target"}},
		"unknown details": {func(f flow) reply {
			return m.exchange(f.planner, join(f.root, f.login.idToken), "authorization_details", `[{"type":"everything"}]`)
		}, "invalid_authorization_details", []string{string(actor.ClassDetails)}},
		"wide scope": {func(f flow) reply {
			return m.exchange(f.planner, join(f.root, f.login.idToken), "scope", "postgres:select postgres:ddl")
		}, "invalid_scope", []string{"request.scope"}},
		"another purpose": {func(f flow) reply {
			return m.exchange(f.planner, join(f.root, f.login.idToken), "purpose", "something else")
		}, bad, []string{string(actor.ClassTokenPurpose)}},
		"another actor": {func(f flow) reply {
			return m.exchange(f.planner, join(f.root, f.login.idToken), "actor_token", f.login.idToken, "actor_token_type", "urn:ietf:params:oauth:token-type:jwt")
		}, bad, []string{"request.actor-token"}},
		"another client_id": {func(f flow) reply {
			return m.exchange(f.planner, join(f.root, f.login.idToken), "client_id", f.researcher.ID.String())
		}, "invalid_client", []string{"request.client-id"}},
		"client secret": {func(f flow) reply {
			return m.exchange(f.planner, join(f.root, f.login.idToken), "client_secret", "x")
		}, "invalid_client", []string{"request.authorization"}},
		"another grant type": {func(f flow) reply {
			return m.exchange(f.planner, join(f.root, f.login.idToken), "grant_type", "client_credentials")
		}, "unsupported_grant_type", []string{"request.grant-type"}},
		"another kind of token asked for": {func(f flow) reply {
			return m.exchange(f.planner, join(f.root, f.login.idToken), "requested_token_type", "urn:ietf:params:oauth:token-type:refresh_token")
		}, bad, []string{"request.token-type"}},
		"duplicate subject": {func(f flow) reply {
			return m.post(f.planner, "/token", form(join(f.root, f.login.idToken)).Encode()+"&subject_token=x")
		}, bad, []string{"request.duplicate"}},
		"too large": {func(f flow) reply {
			return m.post(f.planner, "/token", form(strings.Repeat("a", 80<<10)).Encode())
		}, bad, []string{"request.size"}},
		"larger than a credential": {func(f flow) reply {
			return m.exchange(f.planner, strings.Repeat("a", 40<<10))
		}, bad, []string{string(actor.ClassSize)}},
		"strange bytes": {func(f flow) reply {
			return m.exchange(f.planner, "a.b.c\n")
		}, bad, []string{string(actor.ClassAlphabet)}},
		"parameters in the URL": {func(f flow) reply {
			return m.post(f.planner, "/token?resource=x", form(join(f.root, f.login.idToken)).Encode())
		}, bad, []string{"request.query"}},
		"not a form": {func(f flow) reply {
			resp, err := m.client(f.planner).Post("https://"+m.meshAddr+"/token", "application/json", strings.NewReader("{}"))
			if err != nil {
				t.Fatal(err)
			}
			return read(t, resp)
		}, bad, []string{"request.content-type"}},
		"too many actors": {func(f flow) reply {
			at, grants, before := f.planner, []string{}, f.login.root(f.planner, func(g *actor.UserGrant) { g.Left = 7 })
			root := before
			for i := range 6 {
				next := m.child(at, fmt.Sprintf("a%d", i))
				before = m.pass(at, next, before)
				grants = append([]string{before}, grants...)
				at = next
			}
			return m.exchange(at, join(append(grants, root, f.login.idToken)...))
		}, bad, []string{string(actor.ClassActorCount)}},
	} {
		t.Run(name, func(t *testing.T) {
			m.refused(tc.do(m.flow("alice")), tc.code, tc.classes...)
		})
	}
}

// A session is held to what opened it: the same txn can't be taken over by anything that differs.
func TestLaterExchangesMustMatchTheSession(t *testing.T) {
	m := newMesh(t)
	f := m.flow("alice")
	m.ok(m.exchange(f.planner, join(f.root, f.login.idToken)))
	open, err := actor.ParseUserGrant(f.root)
	if err != nil {
		t.Fatal(err)
	}
	same := func(g *actor.UserGrant) { g.Txn = open.Txn }
	for name, r := range map[string]func() reply{
		"another user": func() reply {
			l := m.login("mallory")
			return m.exchange(f.planner, join(l.root(f.planner, same), l.idToken))
		},
		"another sign-in of the user": func() reply {
			l := m.login("alice")
			return m.exchange(f.planner, join(l.root(f.planner, same), l.idToken))
		},
		"another first agent": func() reply {
			p := m.agent("planner")
			return m.exchange(p, join(f.login.root(p, same), f.login.idToken))
		},
		"another cap": func() reply {
			return m.exchange(f.planner, join(f.login.root(f.planner, same, func(g *actor.UserGrant) { g.Cap = m.cap("select", "update", "ddl") }), f.login.idToken))
		},
		"another purpose": func() reply {
			return m.exchange(f.planner, join(f.login.root(f.planner, same, func(g *actor.UserGrant) { g.Purpose = "fun" }), f.login.idToken))
		},
	} {
		t.Run(name, func(t *testing.T) { m.refused(r(), "invalid_request", "session.mismatch") })
	}
	m.ok(m.exchange(f.planner, join(f.root, f.login.idToken)))
}

// The same sub at two providers is two users, and neither's token is taken for the other's.
func TestEqualSubAtTwoProviders(t *testing.T) {
	var second *provider
	m := newMesh(t, func(m *mesh) {
		second = newProvider(m.t)
		m.cfg.Providers = append(m.cfg.Providers, second.config())
	})
	planner := m.agent("planner")
	here, there := m.login("alice"), m.loginAt(second, "alice")
	a, err := actor.ParseToken(m.ok(m.exchange(planner, join(here.root(planner), here.idToken))))
	if err != nil {
		t.Fatal(err)
	}
	b, err := actor.ParseToken(m.ok(m.exchange(planner, join(there.root(planner), there.idToken))))
	if err != nil {
		t.Fatal(err)
	}
	if a.Subject == b.Subject || actor.SubjectName(a.Subject) == actor.SubjectName(b.Subject) {
		t.Error("two users became one")
	}
	if len(b.Roles) != 0 {
		t.Errorf("the second provider's groups became roles %v by the first one's mapping", b.Roles)
	}
	// Mix-up: signed by one, claiming to be the other.
	liar := m.loginAt(second, "alice", func(c map[string]any) { c["iss"] = m.idp.URL })
	liar.user.Issuer = m.idp.URL
	m.refused(m.exchange(planner, join(liar.root(planner), liar.idToken)), "invalid_request", string(actor.ClassIDToken))
}

func TestAProviderThatIsNotThereRefusesItsUsers(t *testing.T) {
	m := newMesh(t, func(m *mesh) {
		m.cfg.Providers = append(m.cfg.Providers, idp.Provider{Issuer: "https://127.0.0.1:1", ClientID: "deputy", Algorithms: []string{"ES256"}})
		m.unready = true
	})
	m.eventually("the other provider's users are served", func() bool {
		return m.ready().Error() == "no keys of [https://127.0.0.1:1] are known yet" && m.exchange(m.agent("early"), "a.b.c").status != http.StatusServiceUnavailable
	})
	planner := m.agent("planner")
	alice := m.login("alice")
	m.ok(m.exchange(planner, join(alice.root(planner), alice.idToken)))
	gone := m.login("alice", func(c map[string]any) { c["iss"] = "https://127.0.0.1:1" })
	gone.user.Issuer = "https://127.0.0.1:1"
	m.refused(m.exchange(planner, join(gone.root(planner), gone.idToken)), "invalid_request", string(actor.ClassIDToken))
}

func TestOnlyAgentsMayExchange(t *testing.T) {
	m := newMesh(t)
	f := m.flow("alice")
	for _, path := range []string{"/deputy/proxy/orders", "/deputy/issuer", "/agent/planner", "/target/orders-db"} {
		r := m.exchange(m.ca.SVID(m.ca.ID(path)), join(f.root, f.login.idToken))
		if r.status != http.StatusBadRequest || r.Error != "unauthorized_client" || !strings.Contains(r.Text, "record: none") {
			t.Errorf("%s: %s", path, r)
		}
	}
	evil := testca.New(t, "evil.example")
	id, err := actor.NewAgentID(evil.TrustDomain(), "planner", actor.NewHexID())
	if err != nil {
		t.Fatal(err)
	}
	for name, svid := range map[string]*x509svid.SVID{
		"another trust domain":     evil.SVID(id.ID()),
		"our name, their CA":       testca.New(t, "corp.example").SVID(f.planner.ID),
		"an SVID that has expired": m.ca.SVID(f.planner.ID, testca.Validity(time.Now().Add(-time.Hour), time.Now().Add(-time.Minute))),
	} {
		if _, err := m.client(svid).Post("https://"+m.meshAddr+"/token", "application/x-www-form-urlencoded", strings.NewReader("")); err == nil {
			t.Errorf("%s: the connection stood", name)
		}
	}
	plain := m.client(f.planner)
	plain.Transport.(*http.Transport).TLSClientConfig.GetClientCertificate = nil
	if _, err := plain.Get("https://" + m.meshAddr + "/jwks"); err == nil {
		t.Error("a connection without a certificate stood")
	}
	old := m.client(f.planner)
	old.Transport.(*http.Transport).TLSClientConfig.MaxVersion = 0x0303
	if _, err := old.Get("https://" + m.meshAddr + "/jwks"); err == nil {
		t.Error("TLS 1.2 was spoken")
	}
}

func TestTooManyExchangesOfOneAgent(t *testing.T) {
	m := newMesh(t)
	f := m.flow("alice")
	limited := false
	for range 80 {
		r := m.post(f.planner, "/token", "grant_type=x")
		if r.status == http.StatusTooManyRequests {
			limited = true
			if r.header.Get("Retry-After") == "" {
				t.Error("no Retry-After")
			}
			break
		}
	}
	if !limited {
		t.Fatal("nothing held it back")
	}
	m.ok(m.exchange(f.researcher, join(f.one, f.root, f.login.idToken)))
}
