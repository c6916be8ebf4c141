package integration_test

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/internal/testmesh"
)

// Once the broker says that a revocation is in force at every proxy, nothing under it is served any more: not by a connection that
// is open, not by one that is being opened, not by a token that was just got, however it is written. The proxies' logs judge.
func TestRevokedIsDead(t *testing.T) {
	other := newProvider(t)
	mine := newProvider(t)
	f := forgeAt(t, testmesh.Start(t, append(believed(mine, other), testmesh.SecondProxy())...), mine)
	f.vouch(other)
	trees := f.trees(t, 2)
	x := trees[0]
	oscar := f.idp.signIn(t, "oscar", func(c map[string]any) { c["groups"] = []string{"operators"} })

	t.Run("while it is used", func(t *testing.T) {
		// Somebody else whom the first agent serves: it goes on, whoever is revoked.
		erin := f.idp.signIn(t, "erin")
		hers := f.flow(erin, f.root(erin, x.planner), testmesh.Target, x.planner)
		defer func() { f.mustServe(hers, f.Address("target")) }()
		for _, kind := range []string{"user", "task", "agent", "grant", "edge", "session"} {
			t.Run(kind, func(t *testing.T) { f.revokeUnderLoad(t, kind, x, oscar) })
		}
	})

	// The name of a statement is its iss and jti: another signature of the same is the same statement.
	t.Run("written another way", func(t *testing.T) {
		dora := f.idp.signIn(t, "dora-malleable")
		root := f.root(dora, x.planner)
		l := f.flow(dora, root, testmesh.Target, x.planner, x.a)
		f.mustServe(l, f.Address("target"))
		again := flow{l.leaf, append([]string{malleated(t, l.parts[0])}, l.parts[1:]...)}
		f.mustServe(again, f.Address("target")) // as good a signature, so a hash of it would be another name
		f.revoke(t, oscar, map[string]string{"kind": "grant", "iss": f.meshURL(), "value": parsedToken(t, l.parts[0]).ID})
		for name, c := range map[string]flow{"as it was": l, "with (r, n−s)": again} {
			if in, why := f.letIn(c.leaf, f.Address("target"), c.credential()); in || !strings.Contains(why, "revoked") {
				t.Errorf("%s: let in is %v, %s", name, in, why)
			}
		}
		g := parsedGrant(t, l.parts[1])
		f.revoke(t, oscar, map[string]string{"kind": "grant", "iss": g.Issuer.String(), "value": g.ID})
		ug := malleated(t, root)
		for name, subject := range map[string]string{
			"as it was": l.subject(), "with (r, n−s)": join(malleated(t, l.parts[1]), root, dora.idToken),
			"under another signature of its parent": join(f.pass(x.planner, x.a, ug, func(n *actor.Grant) { n.ID = g.ID }), ug, dora.idToken),
		} {
			if a := f.exchange(x.a, subject); a.status == http.StatusOK || !strings.Contains(a.Text, "revoked") {
				t.Errorf("a revoked grant %s: %s", name, a)
			}
		}
		// What its delegator signs afresh is another statement, and lives.
		f.ok(f.exchange(x.a, join(f.pass(x.planner, x.a, root), root, dora.idToken)))
	})

	t.Run("in the middle of a chain", func(t *testing.T) {
		for _, kind := range []string{"middle grant", "middle edge", "middle agent"} {
			y := trees[1]
			dora := f.idp.signIn(t, "dora-"+strings.ReplaceAll(kind, " ", "-"))
			middle := f.childOf(t, y.planner)
			l := f.flow(dora, f.root(dora, y.planner), testmesh.Target, y.planner, middle, f.childOf(t, middle))
			sibling := f.flow(dora, l.parts[3], testmesh.Target, y.planner, y.b)
			f.mustServe(l, f.Address("target"))
			g := parsedGrant(t, l.parts[2])
			body := map[string]map[string]string{
				"middle grant": {"kind": "grant", "iss": g.Issuer.String(), "value": g.ID},
				"middle edge":  {"kind": "edge", "value": y.planner.ID.String(), "delegate": middle.ID.String()},
				"middle agent": {"kind": "agent", "value": middle.ID.String()},
			}[kind]
			f.revoke(t, oscar, body)
			if in, why := f.letIn(l.leaf, f.Address("target"), l.credential()); in || !strings.Contains(why, "revoked") {
				t.Errorf("%s: let in is %v, %s", kind, in, why)
			}
			if a := f.exchange(l.leaf, l.subject()); a.status == http.StatusOK {
				t.Errorf("%s: exchanged", kind)
			}
			f.mustServe(sibling, f.Address("target"))
		}
	})

	t.Run("with the same name at two providers", func(t *testing.T) {
		here, there := mine.signIn(t, "twin"), other.signIn(t, "twin")
		y := trees[1]
		a, b := f.flow(here, f.root(here, y.planner), testmesh.Target, y.planner), f.flow(there, f.root(there, y.planner), testmesh.Target, y.planner)
		for name, l := range map[string]*signIn{
			"the other's key":      {key: there.key, user: here.user, sid: here.sid, idToken: here.idToken},
			"the other's ID token": {key: here.key, user: here.user, sid: there.sid, idToken: there.idToken},
			"the other's name":     {key: here.key, user: there.user, sid: here.sid, idToken: here.idToken},
		} {
			notGood(t, f.exchange(y.planner, join(f.root(l, y.planner), l.idToken)))
			_ = name
		}
		for i, parts := range [][]string{{a.parts[0], b.parts[1], b.parts[2]}, {a.parts[0], a.parts[1], b.parts[2]}, {b.parts[0], a.parts[1], a.parts[2]}} {
			if in, why := f.letIn(y.planner, f.Address("target"), join(parts...)); in || !strings.HasPrefix(why, "28000 ") {
				t.Errorf("mixture %d: let in is %v, %s", i, in, why)
			}
		}
		// iss swapped: each provider signs for itself alone.
		for _, p := range []struct{ signs, claims *ownProvider }{{mine, other}, {other, mine}} {
			l := p.signs.signIn(t, "twin", func(c map[string]any) { c["iss"] = p.claims.URL })
			notGood(t, f.exchange(y.planner, join(f.root(l, y.planner), l.idToken)))
		}
		f.revoke(t, oscar, map[string]string{"kind": "user", "iss": mine.URL, "sub": "twin"})
		if in, why := f.letIn(y.planner, f.Address("target"), a.credential()); in {
			t.Errorf("a revoked user: %s", why)
		}
		f.mustServe(b, f.Address("target"))
	})
	f.Verify(t)
}

// revokeUnderLoad uses connections and new ones at two proxies as fast as it can, revokes, and holds the logs against the moment
// when the broker had heard of every proxy.
func (f *forge) revokeUnderLoad(t *testing.T, kind string, x tree, oscar *signIn) {
	dora := f.idp.signIn(t, "dora-"+kind)
	root := f.root(dora, x.planner)
	leaf := x.runner
	if kind == "agent" || kind == "edge" { // gone for good
		leaf = f.childOf(t, x.a)
	}
	flows := map[string]flow{
		"target": f.flow(dora, root, testmesh.Target, x.planner, x.a, leaf), "other-target": f.flow(dora, root, testmesh.OtherTarget, x.planner, x.a, leaf),
	}
	// The same hops for both: one revocation ends both.
	crm := flows["other-target"]
	crm.parts = append([]string{""}, flows["target"].parts[1:]...)
	crm.parts[0] = f.ok(f.exchange(leaf, crm.subject(), "resource", targetID(testmesh.OtherTarget).String()))
	flows["other-target"] = crm

	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	var users sync.WaitGroup
	var commands atomic.Int64
	var applied atomic.Bool
	late := make(chan string, 100)
	for listener, l := range flows {
		address := f.Address(listener)
		for range 2 {
			users.Go(func() { // one connection, many commands
				conn, err := f.connect(l.leaf, address, l.credential())
				if err != nil {
					return
				}
				defer conn.Close(context.Background())
				for ctx.Err() == nil {
					dead := applied.Load()
					got, err := served(conn, "SELECT 'served'")
					if err != nil {
						return
					}
					if commands.Add(1); dead && got != "" {
						late <- "an open connection at " + listener
						return
					}
				}
			})
		}
		users.Go(func() { // many connections
			for ctx.Err() == nil {
				dead := applied.Load()
				if in, _ := f.letIn(l.leaf, address, l.credential()); in && dead {
					late <- "a new connection at " + listener
					return
				}
			}
		})
	}
	users.Go(func() { // fresh tokens
		l := flows["target"]
		for ctx.Err() == nil {
			dead := applied.Load()
			resp, err := f.client(leaf).Post("https://"+f.Address("token")+"/token", "application/x-www-form-urlencoded", strings.NewReader(form(l.subject()).Encode()))
			if err != nil {
				return
			}
			if a := readAnswer(t, resp); a.Token != "" && dead {
				late <- "a token"
				return
			}
		}
	})
	for limit := time.Now().Add(patience); commands.Load() < 50; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatal("nobody is served before the revocation")
		}
	}
	g := parsedGrant(t, flows["target"].parts[1])
	f.revoke(t, oscar, map[string]map[string]string{
		"user":    {"kind": "user", "iss": dora.user.Issuer, "sub": dora.user.Subject},
		"session": {"kind": "session", "value": dora.sid},
		"task":    {"kind": "task", "value": g.Txn},
		"agent":   {"kind": "agent", "value": leaf.ID.String()},
		"grant":   {"kind": "grant", "iss": g.Issuer.String(), "value": g.ID},
		"edge":    {"kind": "edge", "value": x.a.ID.String(), "delegate": leaf.ID.String()},
	}[kind])
	applied.Store(true)
	moment := time.Now()
	time.Sleep(300 * time.Millisecond) // what is served afterwards is the claim
	stop()
	users.Wait()
	close(late)
	for what := range late {
		t.Errorf("served after the revocation was in force: %s", what)
	}
	for _, role := range []string{"proxy", "second"} {
		before, after := 0, 0
		for _, r := range f.SettledRecords(t, role) {
			if d, ok := r.Event.(*audit.Decision); ok && r.Txn == g.Txn && d.Effect == audit.Allow {
				if before++; r.Time.After(moment) {
					after++
				}
			}
		}
		if before == 0 || after > 0 {
			t.Errorf("at %s %d commands were allowed, %d of them after the revocation was in force", role, before, after)
		}
	}
}

// childOf is another child, made by the mesh's own authority.
func (f *forge) childOf(t *testing.T, parent *x509svid.SVID) *x509svid.SVID {
	return f.ca().SVID(must(agentOf(t, parent).Child("doomed", actor.NewHexID())).ID())
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func parsedToken(t *testing.T, s string) actor.Token {
	t.Helper()
	tok, err := actor.ParseToken(s)
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

// revoke is an operator's call; it returns when every proxy has it in force.
func (f *forge) revoke(t *testing.T, by *signIn, what map[string]string) {
	t.Helper()
	what["reason"] = "the test says so"
	body, err := json.Marshal(what)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	proof, err := actor.SignOperatorRequest(by.key, actor.OperatorRequest{
		Issuer: by.user.Issuer, Mesh: f.meshURL(), Act: "revoke", Body: sha256.Sum256(body), IssuedAt: now, Expires: now.Add(time.Minute), ID: actor.NewHexID(),
	})
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(f.readFile(t, "agent", "web-ca.pem"))
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequest(http.MethodPost, "https://"+f.Address("web")+"/operator/v1/revocations", strings.NewReader(string(body)))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+by.idToken)
	req.Header.Set("Deputy-Operator-Proof", proof)
	resp, err := (&http.Client{Transport: transport, Timeout: patience}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	var a struct {
		Applied []struct{ Proxy string } `json:"applied"`
		Pending []string                 `json:"pending"`
	}
	if err := json.Unmarshal(raw, &a); err != nil || resp.StatusCode != http.StatusOK || len(a.Applied) == 0 || len(a.Pending) > 0 {
		t.Fatalf("revoking %v: HTTP %d %s (%v)", what, resp.StatusCode, fmt.Sprintf("%.500s", raw), err)
	}
}
