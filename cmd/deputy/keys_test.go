package main

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Every secret of every role is refused when others may read it.
func TestRolesRefuseSecretsThatOthersMayRead(t *testing.T) {
	for _, c := range []struct{ role, secret string }{
		{"issuer", "ca.key"}, {"issuer", "audit.key"},
		{"broker", "token.key"}, {"broker", "server.key"}, {"broker", "svid.key"}, {"broker", "audit.key"},
		{"proxy", "svid.key"}, {"proxy", "audit.key"}, {"proxy", "orders-db-shop_app.password"},
		{"sample-signin", "server.key"},
	} {
		dir := t.TempDir()
		if _, err := deputyInit(initArgs(t, dir)); err != nil {
			t.Fatal(err)
		}
		mesh := filepath.Join(dir, "mesh")
		if err := os.Chmod(filepath.Join(mesh, c.role, c.secret), 0o644); err != nil {
			t.Fatal(err)
		}
		out, err := deputyInit([]string{c.role, "--config", filepath.Join(mesh, c.role, c.role+".yaml")})
		if err == nil || !strings.Contains(err.Error(), c.secret+" may be read by others (mode 0644); run: chmod 600 ") {
			t.Errorf("%s %s: %v\n%s", c.role, c.secret, err, out)
		}
	}
}

func TestSigningWithAPublicKeySaysSo(t *testing.T) {
	dir := t.TempDir()
	if _, err := deputyInit(initArgs(t, dir)); err != nil {
		t.Fatal(err)
	}
	_, err := deputyInit([]string{"policy", "sign", "--key", filepath.Join(dir, "mesh", "public", "policy.pub"), "../../examples/policy"})
	if err == nil || !strings.Contains(err.Error(), `"PRIVATE KEY" is expected; the file holds "PUBLIC KEY"`) {
		t.Error(err)
	}
}

func TestASocketPathThatIsTooLongSaysSo(t *testing.T) {
	path := filepath.Join(t.TempDir(), strings.Repeat("d", 100), "issuer.sock")
	if l, err := listenForWorkloads(t.Context(), path); err == nil || !strings.Contains(err.Error(), "choose a shorter one") {
		t.Errorf("%v, %v", l, err)
	}
}

func TestATakenPortSaysWhatToDo(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, err = net.Listen("tcp", l.Addr().String())
	if err = portTaken(err); err == nil || !strings.Contains(err.Error(), "another program has this port") {
		t.Error(err)
	}
}
