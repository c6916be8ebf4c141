package integration_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/internal/testmesh"
)

// A newly signed policy set decides the next statement of every live session; an older one, one that is
// wrong and one that somebody else signed leave the set in force as it is.
func TestPolicySwapsAtOnce(t *testing.T) {
	m := testmesh.Start(t)
	alice, oscar := m.Login(t, "alice"), m.Login(t, "oscar")
	live := testmesh.Begin(t, alice.Agents(t, testmesh.Nested, m.PG.Bin("psql"), "-XAtq", "-v", "VERBOSITY=verbose"))
	rounds := 0
	ask := func() (answer, refusal string) {
		t.Helper()
		out, err := len(live.Output()), len(live.Errors())
		rounds++
		live.Type("SELECT name, email FROM customers WHERE id = 1;\n\\echo asked\n\\warn asked\n")
		live.Await("asked", rounds)
		live.AwaitError("asked", rounds)
		return strings.TrimSuffix(live.Output()[out:], "asked\n"), strings.TrimSuffix(live.Errors()[err:], "asked\n")
	}
	if got, why := ask(); got != "Ines Albrecht|i***@example.com\n" {
		t.Fatalf("at first: %q %q", got, why)
	}

	folder := filepath.Join(t.TempDir(), "policy")
	if err := os.CopyFS(folder, os.DirFS(filepath.Join("testdata", "policy"))); err != nil {
		t.Fatal(err)
	}
	key := filepath.Join(m.Dir, "operator", "policy.key")
	sign := func(version, rule string) string {
		t.Helper()
		edit(t, filepath.Join(folder, "policy.yaml"), func(b []byte) []byte {
			lines := strings.Split(string(b), "\n")
			for i, l := range lines {
				if strings.HasPrefix(l, "version:") {
					lines[i] = "version: " + version
				}
			}
			return []byte(strings.Join(lines, "\n"))
		})
		if err := os.WriteFile(filepath.Join(folder, "new.cedar"), []byte(rule), 0o600); err != nil {
			t.Fatal(err)
		}
		out := filepath.Join(t.TempDir(), "policy.jwt")
		if r := testmesh.Exec(t, testmesh.Command{Args: []string{testmesh.Deputy(t), "policy", "sign", "--key", key, "--out", out, folder}}); r.Code != 0 {
			t.Fatalf("policy sign: %s", r)
		}
		return out
	}
	publish := func(who *testmesh.Session, file string) testmesh.Result {
		t.Helper()
		return who.Deputy(t, "policy", "publish", file)
	}

	const freeze = `@id("customers-are-frozen")
forbid (principal, action, resource == Deputy::Table::"orders-db/shop/public.customers");
`
	frozen := sign("2", freeze)
	if r := publish(alice, frozen); r.Code == 0 || !strings.Contains(r.Stderr, "insufficient_scope") {
		t.Errorf("a user who is no operator published: %s", r)
	}
	if got, why := ask(); got == "" {
		t.Fatalf("a set that nobody may publish came into force: %s", why)
	}
	if r := publish(oscar, frozen); r.Code != 0 || !strings.Contains(r.Stdout, "in force") {
		t.Fatalf("publish: %s", r)
	}
	got, why := ask()
	if got != "" || !strings.Contains(why, `policy "customers-are-frozen" forbids`) {
		t.Errorf("after version 2: %q %q", got, why)
	}
	if d, ok := m.Record(t, "proxy", testmesh.RecordIn(t, why)).Event.(*audit.Decision); !ok || d.PolicyVersion != 2 {
		t.Errorf("the record of the refusal: %+v", d)
	}

	old := sign("1", "")
	if r := publish(oscar, old); r.Code == 0 || !strings.Contains(r.Stderr, "greater version") {
		t.Errorf("an older version: %s", r)
	}
	another := filepath.Join(initMesh(t), "operator", "policy.key")
	mine := key
	key = another
	forged := sign("3", "")
	key = mine
	if r := publish(oscar, forged); r.Code == 0 {
		t.Errorf("a set that another key signed: %s", r)
	}
	if got, why := ask(); got != "" {
		t.Errorf("neither may come into force: %q %q", got, why)
	}
	if r := publish(oscar, sign("4", "")); r.Code != 0 {
		t.Fatalf("publish: %s", r)
	}
	if got, why := ask(); got != "Ines Albrecht|i***@example.com\n" {
		t.Errorf("after version 4: %q %q", got, why)
	}

	// The proxy keeps the last good set, and goes back for nobody.
	m.Broker.Kill()
	m.Proxy.Kill()
	m.Proxy.Resume()
	m.Broker.Begin()
	m.Proxy.AwaitReady()
	eventually(t, alice)
	loaded := map[int64]bool{}
	for _, r := range m.Records(t, "proxy") {
		if e, ok := r.Event.(*audit.PolicyLoaded); ok && e.Result == audit.Accepted {
			loaded[e.Version] = true
		}
	}
	if !loaded[1] || !loaded[2] || !loaded[4] || loaded[3] {
		t.Errorf("versions that came into force: %v", loaded)
	}
	m.Verify(t)
}
