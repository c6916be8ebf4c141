package integration_test

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/deputymesh/deputy/internal/testca"
	"github.com/deputymesh/deputy/internal/testmesh"
)

// The proxy proves itself to a target by a client certificate, alone or beside a password. New files count from
// the next connection on; a certificate that the target doesn't take gives no connection.
func TestClientCertificatesReachTheTarget(t *testing.T) {
	files, err := os.MkdirTemp("", "certs")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(files) })
	ca := testca.New(t, "clients.test")
	write := func(path, text string) string {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	hba := write(filepath.Join(files, "pg_hba.conf"), strings.Join([]string{
		"hostssl all postgres 127.0.0.1/32 scram-sha-256",
		"hostssl all shop_app 127.0.0.1/32 scram-sha-256 clientcert=verify-full",
		"hostssl all certified 127.0.0.1/32 cert",
	}, "\n")+"\n")
	_, _, caFile := ca.Server(files, "unused")
	for _, f := range []string{files, caFile} {
		if err := os.Chmod(f, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	pg := testmesh.Shop(t, "hba_file = '"+hba+"'", "ssl_ca_file = '"+caFile+"'")
	pg.Exec("create role certified login", "grant select on customers, orders to certified")

	m := testmesh.Start(t, testmesh.Postgres(pg))
	dir := dirOf(m.Config("proxy"))
	for _, account := range []string{"shop_app", "certified"} {
		placePair(t, ca, dir, account)
	}
	// Each role of users gets an account of its own: one with both, one with a certificate alone.
	m.EditConfig(t, "proxy", func(c string) string {
		c = strings.Replace(c, "roles: [analyst]", "certificate_file: shop_app.pem\n          key_file: shop_app.key\n          roles: [analyst]", 1)
		return strings.Replace(c, "- name: shop_app\n          password_file: orders-db-shop_app.password\n          roles: [support]",
			"- name: certified\n          certificate_file: certified.pem\n          key_file: certified.key\n          roles: [support]", 1)
	})
	m.Proxy.Stop()
	m.Proxy.Resume()

	alice, bob := m.Login(t, "alice"), m.Login(t, "bob")
	select1 := func(s *testmesh.Session) testmesh.Result {
		return s.SQL(t, testmesh.Nested, "SELECT count(*) FROM orders")
	}
	works := func(s *testmesh.Session) {
		t.Helper()
		if r := select1(s); r.Code != 0 || strings.TrimSpace(r.Stdout) != "6" {
			t.Errorf("%s\nproxy:\n%s", r, m.Proxy.Log())
		}
	}
	fails := func(s *testmesh.Session, why string) {
		t.Helper()
		before := len(m.Proxy.Log())
		r := select1(s)
		if r.Code == 0 || !strings.Contains(r.Stderr, "the target can't be reached, or didn't accept the proxy") {
			t.Errorf("want no connection: %s", r)
		}
		if log := m.Proxy.Log()[before:]; !strings.Contains(log, why) {
			t.Errorf("the proxy's log doesn't say %q:\n%s", why, log)
		}
	}
	works(alice)
	works(bob)
	// A certificate of somebody else's CA, from one connection to the next, and back.
	placePair(t, testca.New(t, "foreign.test"), dir, "certified")
	fails(bob, "certificate")
	placePair(t, ca, dir, "shop_app") // its key for another name
	placePair(t, ca, dir, "certified")
	works(bob)
	works(alice)
	// Half of a pair: the one before goes on.
	if err := os.WriteFile(filepath.Join(dir, "certified.pem"), []byte("nothing"), 0o600); err != nil {
		t.Fatal(err)
	}
	works(bob)
	if !strings.Contains(m.Proxy.Log(), "the one before is used on") {
		t.Errorf("the proxy says nothing of the broken file:\n%s", m.Proxy.Log())
	}
	// A key that others may read, or no pair, is no start.
	m.Proxy.Stop()
	for _, broken := range []struct{ what, file, want string }{
		{"a key that others may read", "shop_app.key", "may be read by others (mode 0644); run: chmod 600"},
		{"no certificate", "certified.pem", "account certified"},
	} {
		if broken.file == "shop_app.key" {
			if err := os.Chmod(filepath.Join(dir, broken.file), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		r := testmesh.Exec(t, testmesh.Command{Args: []string{testmesh.Deputy(t), "proxy", "--config", m.Config("proxy")}})
		if r.Code == 0 || !strings.Contains(r.Stderr, broken.want) {
			t.Errorf("%s: %s", broken.what, r)
		}
		if err := os.Chmod(filepath.Join(dir, "shop_app.key"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// placePair makes a client certificate for an account and puts it, with its key, where the proxy's configuration names them.
func placePair(t *testing.T, ca *testca.CA, dir, account string) {
	t.Helper()
	made := t.TempDir()
	cert, key, _ := ca.Server(made, account)
	info, err := os.Stat(filepath.Join(dir, "proxy.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	owner := info.Sys().(*syscall.Stat_t)
	for from, to := range map[string]string{key: account + ".key", cert: account + ".pem"} {
		raw, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, to)
		if err := os.WriteFile(path, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(path, int(owner.Uid), int(owner.Gid)); err != nil {
			t.Fatal(err)
		}
	}
}
