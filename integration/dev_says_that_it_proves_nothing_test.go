package integration_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/deputymesh/deputy/internal/testmesh"
	"github.com/deputymesh/deputy/internal/testpg"
)

// `deputy dev` is the whole mesh in one process: it works as it does with all roles apart, says in its
// banner, records and verification that it proves nothing, and takes everything with it.
func TestDevSaysThatItProvesNothing(t *testing.T) {
	t.Parallel()
	pg := testmesh.Shop(t)
	root, err := os.MkdirTemp("/tmp", "dd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(root) })
	if err := os.Chmod(root, 0o755); err != nil {
		t.Fatal(err)
	}
	secret := func(name, value string) string {
		path := filepath.Join(root, name)
		if err := os.WriteFile(path, []byte(value), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	app := secret("app", testpg.AppPassword)
	dev := testmesh.Begin(t, testmesh.Command{Args: []string{
		testmesh.Deputy(t), "dev", "--base-port", strconv.Itoa(testmesh.FreePorts(t, 17)), "--policy", filepath.Join("..", "examples", "policy"),
		"--postgres", "orders-db=" + pg.Address() + "/shop", "--postgres-ca", pg.CAFile, "--account", "analyst=" + testpg.App + ":" + app,
	}})
	dev.Await("Ctrl-C ends everything", 1)
	dev.AwaitError("ready role=broker", 1)
	dev.AwaitError("ready role=proxy", 1)
	banner := dev.Output()
	found := regexp.MustCompile(`(?s)DEV MODE.*  alice +(\S+) .*DEPUTY_CONFIG=(\S+)`).FindStringSubmatch(banner)
	if found == nil {
		t.Fatalf("the banner:\n%s", banner)
	}
	mesh := filepath.Dir(filepath.Dir(found[2]))
	raw, err := os.ReadFile(found[2])
	if err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(mesh, "agent", "mine.yaml")
	if err := os.WriteFile(config, []byte(string(raw)+"runtime_dir: "+filepath.Join(root, "r")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	deputy := func(args ...string) testmesh.Result {
		t.Helper()
		return testmesh.Exec(t, testmesh.Command{Args: append([]string{testmesh.Deputy(t)}, args...), Env: []string{"DEPUTY_CONFIG=" + config}})
	}
	if r := deputy("login", "--script-user", "alice", "--script-password-file", secret("alice", found[1])); r.Code != 0 {
		t.Fatalf("login: %s", r)
	}
	r := deputy("run", "--as", "planner", "--", testmesh.Deputy(t), "run", "--as", "researcher", "--",
		pg.Bin("psql"), "-XAtq", "-c", "SELECT email FROM customers WHERE id = 1", "-c", "DROP TABLE customers")
	if strings.TrimSpace(r.Stdout) != "i***@example.com" || !strings.Contains(r.Stderr, "no-ddl-by-agents") {
		t.Errorf("psql: %s", r)
	}
	for _, role := range []string{"issuer", "broker", "proxy"} {
		log := filepath.Join(mesh, role, "audit")
		if r := deputy("audit", "verify", "--keys", filepath.Join(mesh, "public", "audit-keys.json"), log); r.Code != 0 || !strings.Contains(r.Stdout, "written by `deputy dev`: the grants prove nothing") {
			t.Errorf("the log of %s: %s", role, r)
		}
		// A role of a real mesh refuses the trust domain of this one.
		if r := deputy(role, "--config", filepath.Join(mesh, role, role+".yaml")); r.Code == 0 || !strings.Contains(r.Stderr, "dev.deputy.invalid") {
			t.Errorf("%s without --unsafe-dev: %s", role, r)
		}
	}
	if r := deputy("logout"); r.Code != 0 {
		t.Errorf("logout: %s", r)
	}
	dev.Signal(syscall.SIGINT)
	if r := dev.Wait(patience); r.Code != 0 {
		t.Errorf("the end of `deputy dev`: %s", r)
	}
	if _, err := os.Stat(filepath.Dir(mesh)); !os.IsNotExist(err) {
		t.Errorf("%s is still there: %v", filepath.Dir(mesh), err)
	}
}
