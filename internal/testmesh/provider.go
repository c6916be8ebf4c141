package testmesh

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/deputymesh/deputy/internal/testca"
)

// startForeignProvider starts npm's oidc-provider and returns the file with the CA of its certificate.
func (m *Mesh) startForeignProvider() string {
	m.t.Helper()
	modules := filepath.Join(cacheDir(), "node", "node_modules")
	node := filepath.Join(modules, ".bin", "node")
	for _, needed := range []string{node, filepath.Join(modules, "oidc-provider")} {
		if _, err := os.Stat(needed); err != nil {
			m.t.Fatalf("the identity provider for tests is not installed; run scripts/setup test (%v)", err)
		}
	}
	dir := filepath.Join(m.Root, "provider")
	if err := os.Mkdir(dir, 0o700); err != nil {
		m.t.Fatal(err)
	}
	cert, key, ca := testca.New(m.t, "provider.test").Server(dir, "127.0.0.1")
	script := filepath.Join(moduleRoot(), "integration", "testdata", "oidc-provider.mjs")
	port := strings.TrimPrefix(m.Provider, "https://127.0.0.1:")
	m.SignIn = &Process{t: m.t, name: "oidc-provider", uid: uint32(os.Geteuid()),
		args: []string{node, script, port, cert, key, ClientID, modules}}
	m.SignIn.launch()
	return ca
}

// cacheDir is where scripts/setup installs what tests need.
func cacheDir() string {
	if dir := os.Getenv("DEPUTY_CACHE"); dir != "" {
		return dir
	}
	if dir := os.Getenv("XDG_CACHE_HOME"); dir != "" {
		return filepath.Join(dir, "deputy")
	}
	return filepath.Join(os.Getenv("HOME"), ".cache", "deputy")
}

// Tool puts a program that scripts/setup built into m.Root, where every uid may run it, and gives its path.
func (m *Mesh) Tool(t testing.TB, name string) string {
	t.Helper()
	from, to := filepath.Join(cacheDir(), "bin", name), filepath.Join(m.Root, name)
	if _, err := os.Stat(from); err != nil {
		t.Fatalf("%s is not installed; run scripts/setup test (%v)", name, err)
	}
	if r := Exec(t, Command{Args: []string{"install", "-m", "0755", from, to}}); r.Code != 0 {
		t.Fatalf("%s", r)
	}
	return to
}

// NodeModules puts the npm packages that tests need, Node itself among them, into node_modules in m.Root, where every uid may
// read them.
func (m *Mesh) NodeModules(t testing.TB) {
	t.Helper()
	from := filepath.Join(cacheDir(), "node", "node_modules")
	if _, err := os.Stat(filepath.Join(from, "pg")); err != nil {
		t.Fatalf("the Node clients for tests are not installed; run scripts/setup test (%v)", err)
	}
	to := filepath.Join(m.Root, "node_modules")
	// Links, where it is the same file system.
	if r := Exec(t, Command{Args: []string{"cp", "-al", from, to}}); r.Code == 0 {
		return
	}
	_ = os.RemoveAll(to)
	if r := Exec(t, Command{Args: []string{"cp", "-a", from, to}}); r.Code != 0 {
		t.Fatalf("copying the Node clients: %s", r)
	}
}
