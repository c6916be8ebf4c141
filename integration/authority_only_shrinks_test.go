package integration_test

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/internal/testmesh"
)

// No hop gets more than the one before it had: not by saying so, not by leaving something out, not by going on longer or
// deeper. The broker refuses it, and so does the proxy where a broker didn't.
func TestAuthorityOnlyShrinks(t *testing.T) {
	f := newForge(t)
	trees := f.trees(t, 1)
	x := trees[0]
	dora := f.idp.signIn(t, "dora")
	tokenKey := f.privateKey(t, "broker", "token.key")
	narrow := actor.Details{actor.PostgresDetail{
		Locations: []spiffeid.ID{targetID(testmesh.Target)}, Actions: []string{"select"}, Databases: []string{testmesh.Database},
		Tables: []string{"public.orders"}, MaxRows: 3,
	}}
	root := f.root(dora, x.planner, func(g *actor.UserGrant) { g.Cap, g.Left = narrow, 2 })
	good := f.flow(dora, root, testmesh.Target, x.planner, x.a)
	conn, err := f.connect(x.a, f.Address("target"), good.credential())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	if got, err := served(conn, "SELECT count(*) FROM orders"); err != nil || got == "" {
		t.Fatalf("what was granted: %q %v", got, err)
	}
	if got, err := served(conn, "SELECT name FROM customers WHERE id = 1"); err == nil || got != "" {
		t.Errorf("what was not granted: %q", got)
	}

	detail := func(change func(*actor.PostgresDetail)) func(*actor.Grant) {
		return func(g *actor.Grant) {
			d := narrow[0].(actor.PostgresDetail)
			change(&d)
			g.Cap = actor.Details{d}
		}
	}
	token := good.parts[0]
	check := func(t *testing.T, bad, class string) {
		t.Helper()
		a := f.exchange(x.a, join(bad, root, dora.idToken))
		if a.status == http.StatusOK || !strings.Contains(a.Text, class) {
			t.Errorf("at the broker, want %s: %s", class, a)
		}
		// A broker that looks at nothing countersigns it, as wide as the grant says.
		signed := f.countersign(t, token, tokenKey, func(tok *actor.Token) {
			tok.Head = actor.Hash(bad)
			if g, err := actor.ParseGrant(bad); err == nil {
				tok.Details = g.Cap.ForTarget(targetID(testmesh.Target))
				if len(tok.Details) == 0 {
					tok.Details = narrow
				}
			}
		})
		in, why := f.letIn(x.a, f.Address("target"), join(signed, bad, root, dora.idToken))
		if in || !strings.HasPrefix(why, "28000 ") || !strings.Contains(why, class) {
			t.Errorf("at the proxy, want %s: let in is %v, %s", class, in, why)
		}
	}
	for name, c := range map[string]struct {
		change func(*actor.Grant)
		class  string
	}{
		"another verb":              {detail(func(d *actor.PostgresDetail) { d.Actions = []string{"select", "delete"} }), "grant.cap"},
		"another database":          {detail(func(d *actor.PostgresDetail) { d.Databases = []string{testmesh.Database, "postgres"} }), "grant.cap"},
		"databases left out":        {detail(func(d *actor.PostgresDetail) { d.Databases = nil }), "grant.cap"},
		"tables left out":           {detail(func(d *actor.PostgresDetail) { d.Tables = nil }), "grant.cap"},
		"another table":             {detail(func(d *actor.PostgresDetail) { d.Tables = []string{"public.orders", "public.customers"} }), "grant.cap"},
		"all tables of the schema":  {detail(func(d *actor.PostgresDetail) { d.Tables = []string{"public.*"} }), "grant.cap"},
		"rows left out":             {detail(func(d *actor.PostgresDetail) { d.MaxRows = 0 }), "grant.cap"},
		"more rows":                 {detail(func(d *actor.PostgresDetail) { d.MaxRows = 4 }), "grant.cap"},
		"another target":            {detail(func(d *actor.PostgresDetail) { d.Locations = append(d.Locations, targetID(testmesh.OtherTarget)) }), "grant.cap"},
		"a second, wider detail":    {func(g *actor.Grant) { g.Cap = append(actor.Details{narrow[0]}, reach("select")...) }, "grant.cap"},
		"as many delegations left":  {func(g *actor.Grant) { g.Left = 2 }, "grant.left"},
		"more delegations left":     {func(g *actor.Grant) { g.Left = 7 }, "grant.left"},
		"a longer life":             {func(g *actor.Grant) { g.Expires = g.Expires.Add(time.Minute) }, "grant.exp"},
		"another task":              {func(g *actor.Grant) { g.Txn = actor.NewHexID() }, "grant.txn"},
		"another user":              {func(g *actor.Grant) { g.Subject.Subject = "emil" }, "grant.subject"},
		"another mesh":              {func(g *actor.Grant) { g.Mesh = "https://127.0.0.1:1" }, "grant.mesh"},
		"a signature from tomorrow": {func(g *actor.Grant) { g.IssuedAt = time.Now().Add(5 * time.Minute) }, "grant.not-yet"},
		"another parent's hash":     {func(g *actor.Grant) { g.Previous = actor.Hash("x") }, "grant.prh"},
	} {
		t.Run(name, func(t *testing.T) { check(t, f.pass(x.planner, x.a, root, c.change), c.class) })
	}
	grantKey := keyOf(t, x.planner)
	for name, c := range map[string]struct {
		change func(*rawJWS)
		class  string
	}{
		"a life beyond the SVID": {func(j *rawJWS) {
			j.claims = cut(j.claims, `"exp":`, `,`, fmt.Sprint(x.planner.Certificates[0].NotAfter.Unix()+60))
		}, "grant.outlives-svid"},
		"an unknown type":             {claims(`"type":"deputy_postgres"`, `"type":"deputy_everything"`), "details.value"},
		"an unknown constraint":       {claims(`"max_rows":3`, `"max_rows":3,"max_bytes":1`), "json.unknown"},
		"an action that is none":      {claims(`"actions":["select"]`, `"actions":["*"]`), "details.value"},
		"a verb in capitals":          {claims(`"actions":["select"]`, `"actions":["SELECT"]`), "details.value"},
		"no capability":               {func(j *rawJWS) { j.claims = cut(j.claims, `"cap":[`, `],"left"`, "") }, "details.value"},
		"an empty list of tables":     {claims(`"tables":["public.orders"]`, `"tables":[]`), "details.value"},
		"rows below one":              {claims(`"max_rows":3`, `"max_rows":0`), "details.value"},
		"a negative number left":      {claims(`"left":1`, `"left":-1`), "claim.value"},
		"no word about what is left":  {claims(`"left":1,`, ``), "json.missing"},
		"no word about the task":      {func(j *rawJWS) { j.claims = cut(j.claims, `"txn":"`, `",`, "\x00") }, "json.missing"},
		"an audience, as tokens have": {addClaim(`"aud":"x"`), "json.unknown"},
	} {
		t.Run(name, func(t *testing.T) {
			j := apart(t, good.parts[1], grantKey)
			c.change(&j)
			check(t, j.String(), c.class)
		})
	}

	t.Run("hops that have run out", func(t *testing.T) {
		past := func(g *actor.UserGrant) {
			g.IssuedAt, g.Expires = time.Now().Add(-10*time.Minute), time.Now().Add(-time.Minute)
		}
		old := f.root(dora, x.planner, past)
		before := func(g *actor.Grant) { g.IssuedAt = time.Now().Add(-10 * time.Minute) }
		g := f.pass(x.planner, x.a, old, before)
		notGood(t, f.exchange(x.a, join(g, old, dora.idToken)))
		old = f.root(dora, x.planner)
		middle := f.pass(x.planner, x.a, old, func(g *actor.Grant) {
			g.IssuedAt, g.Expires = time.Now().Add(-10*time.Minute), time.Now().Add(-time.Minute)
		})
		last := f.pass(x.a, x.runner, middle, before)
		a := f.exchange(x.runner, join(last, middle, old, dora.idToken))
		if a.status == http.StatusOK || !strings.Contains(a.Text, "grant.expired") {
			t.Errorf("an expired hop in the middle: %s", a)
		}
		stale := f.flow(dora, f.root(dora, x.planner), testmesh.Target, x.planner, x.a, x.runner)
		tok := f.countersign(t, stale.parts[0], tokenKey, func(tok *actor.Token) { tok.Head = actor.Hash(last); tok.Txn = parsedGrant(t, last).Txn })
		if in, why := f.letIn(x.runner, f.Address("target"), join(tok, last, middle, old, dora.idToken)); in || !strings.Contains(why, "grant.expired") {
			t.Errorf("an expired hop in the middle, at the proxy: let in is %v, %s", in, why)
		}
		// The SVID of the hop in the middle ended, and certificates have no skew.
		dead := f.ca().SVIDFor(x.planner.ID, x.planner.PrivateKey, validFor(-time.Hour, 2*time.Second))
		ug := f.root(dora, x.planner)
		g = f.pass(dead, x.a, ug)
		l := f.flow(dora, ug, testmesh.Target, x.planner, x.a)
		tok = f.countersign(t, l.parts[0], tokenKey, func(tok *actor.Token) { tok.Head, tok.Expires = actor.Hash(g), parsedGrant(t, g).Expires })
		time.Sleep(time.Until(dead.Certificates[0].NotAfter) + 100*time.Millisecond) // its end is the claim
		a = f.exchange(x.a, join(g, ug, dora.idToken))
		if a.status == http.StatusOK || !strings.Contains(a.Text, "grant.certificate") {
			t.Errorf("a grant by an SVID that ended: %s", a)
		}
		if in, why := f.letIn(x.a, f.Address("target"), join(tok, g, ug, dora.idToken)); in || !strings.Contains(why, "grant.certificate") {
			t.Errorf("a grant by an SVID that ended, at the proxy: let in is %v, %s", in, why)
		}
	})
	t.Run("a chain that is too deep, or comes back to itself", func(t *testing.T) {
		// The mesh's own authority makes the agents: no real tree is that deep.
		at, ug := x.planner, f.root(dora, x.planner, func(g *actor.UserGrant) { g.Left = actor.MaxLeft })
		parts := []string{ug}
		for range actor.DefaultMaxActors {
			id, err := agentOf(t, at).Child("deeper", actor.NewHexID())
			if err != nil {
				t.Fatal(err)
			}
			next := f.ca().SVID(id.ID())
			parts = append([]string{f.pass(at, next, parts[0])}, parts...)
			at = next
		}
		a := f.exchange(at, join(append(parts, dora.idToken)...))
		if a.status == http.StatusOK || !strings.Contains(a.Text, "actor.count") {
			t.Errorf("six agents: %s", a)
		}
		a = f.exchange(x.planner, join(f.pass(x.a, x.planner, good.parts[1]), good.parts[1], root, dora.idToken))
		if a.status == http.StatusOK || !anyIn(a.Text, []string{"actor.repeated", "grant.child"}) {
			t.Errorf("back to the first agent: %s", a)
		}
		if got := f.exchange(x.a, strings.Repeat("e", 40<<10)); got.status == http.StatusOK {
			t.Errorf("a subject of 40 KiB: %s", got)
		}
		if in, why := f.letIn(x.a, f.Address("target"), strings.Repeat("e", 40<<10)); in || !strings.Contains(why, "credential.size") {
			t.Errorf("a credential of 40 KiB: %v %s", in, why)
		}
	})
	f.Verify(t)
}

func parsedGrant(t *testing.T, s string) actor.Grant {
	t.Helper()
	g, err := actor.ParseGrant(s)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// cut replaces what stands between two marks; with NUL the marks go, too.
func cut(text, from, to, by string) string {
	before, rest, ok := strings.Cut(text, from)
	_, after, ok2 := strings.Cut(rest, to)
	if !ok || !ok2 {
		panic("nothing to cut between " + from + " and " + to)
	}
	if by == "\x00" {
		return before + after
	}
	return before + from + by + to + after
}
