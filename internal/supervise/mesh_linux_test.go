package supervise_test

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/deputymesh/deputy/internal/testmesh"
)

// These tests run the built program: an issuer, a sign-in server, a signed-in user and real agents. They
// need no broker and no proxy: what they hold is who is inside which agent, and what lives and dies
// together. As root every test runs isolated and not.

func TestMain(m *testing.M) {
	code := m.Run()
	world.stop()
	if world.deputy != "" {
		os.RemoveAll(filepath.Dir(world.deputy))
	}
	os.Exit(code)
}

// world is the one mesh of these tests, started by the first that asks.
var world struct {
	once   sync.Once
	dir    string
	deputy string
	config string
	issuer *testmesh.Live
	stop   func()

	startIssuer func()
	socket      string
}

func init() { world.stop = func() {} }

type keeper struct {
	testing.TB
	cleanups []func()
}

// Cleanup outlives the test that started the world.
func (k *keeper) Cleanup(f func()) { k.cleanups = append(k.cleanups, f) }

func mesh(t *testing.T) {
	t.Helper()
	world.once.Do(func() { startWorld(t) })
	if world.config == "" {
		t.Fatal("the mesh did not start")
	}
}

func startWorld(t *testing.T) {
	k := &keeper{TB: t}
	var err error
	// Short, for socket paths, and open to agents' uids.
	if world.dir, err = os.MkdirTemp("/tmp", "dsv"); err != nil {
		t.Fatal(err)
	}
	world.stop = func() {
		testmesh.Exec(k, testmesh.Command{Args: []string{world.deputy, "logout", "--config", world.config}})
		for i := len(k.cleanups) - 1; i >= 0; i-- {
			k.cleanups[i]()
		}
		os.RemoveAll(world.dir)
	}
	if err := os.Chmod(world.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	world.deputy = filepath.Join(testmesh.Build(t), "deputy")
	password := filepath.Join(world.dir, "password")
	if err := os.WriteFile(password, []byte("a-long-password\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	base := freePorts(t)
	args := []string{world.deputy, "init", filepath.Join(world.dir, "m"), "--trust-domain", "corp.test", "--base-port", strconv.Itoa(base),
		"--identity-provider", fmt.Sprintf("https://127.0.0.1:%d", base+15), "--postgres", "orders-db=127.0.0.1:1/shop", "--postgres-ca", "/dev/null",
		"--account", "analyst=app:" + password, "--role", "analysts=analyst", "--sample-user", "alice=analysts:" + password,
		"--agent", "planner", "--agent", "other", "--policy", "../../examples/policy", "--agent-uids", "81000-81499"}
	// The target's CA is never used here, but must be one.
	ca := filepath.Join(world.dir, "ca")
	if err := os.Mkdir(ca, 0o755); err != nil {
		t.Fatal(err)
	}
	if r := testmesh.Exec(k, testmesh.Command{Args: []string{world.deputy, "sample-certificate", "--dir", ca, "localhost"}}); r.Code != 0 {
		t.Fatal(r)
	}
	for i, a := range args {
		if a == "/dev/null" {
			args[i] = filepath.Join(ca, "ca.pem")
		}
	}
	if r := testmesh.Exec(k, testmesh.Command{Args: args}); r.Code != 0 {
		t.Fatal(r)
	}
	m := filepath.Join(world.dir, "m")
	config := filepath.Join(m, "agent", "agent.yaml")
	f, err := os.OpenFile(config, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(f, "runtime_dir: %s\n", filepath.Join(world.dir, "r"))
	f.Close()
	world.startIssuer = func() {
		world.issuer = testmesh.Begin(k, testmesh.Command{Args: []string{world.deputy, "issuer", "--config", filepath.Join(m, "issuer", "issuer.yaml")}})
	}
	world.startIssuer()
	testmesh.Begin(k, testmesh.Command{Args: []string{world.deputy, "sample-signin", "--config", filepath.Join(m, "sample-signin", "sample-signin.yaml")}})
	world.socket = filepath.Join(m, "run", "issuer.sock")
	await(t, "unix", world.socket)
	await(t, "tcp", fmt.Sprintf("127.0.0.1:%d", base+15))
	// The test's own process is the login session.
	login := testmesh.Exec(k, testmesh.Command{Args: []string{world.deputy, "login", "--config", config, "--script-user", "alice", "--script-password-file", password}})
	if login.Code != 0 || !strings.Contains(login.Stdout, "Signed in as alice") {
		t.Fatal(login)
	}
	world.config = config
}

func freePorts(t *testing.T) int {
	t.Helper()
	for base := 21000 + os.Getpid()%8000; base < 60000; base += 17 {
		ok := true
		for _, n := range []int{0, 1, 2, 3, 15} {
			l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", base+n))
			if err != nil {
				ok = false
				break
			}
			l.Close()
		}
		if ok {
			return base
		}
	}
	t.Fatal("no free ports")
	return 0
}

func await(t *testing.T, network, address string) {
	t.Helper()
	for range 400 {
		c, err := net.Dial(network, address)
		if err == nil {
			c.Close()
			return
		}
		waitABit()
	}
	t.Fatalf("nobody listens on %s", address)
}

// modes runs a test not isolated and, as root, isolated.
func modes(t *testing.T, f func(t *testing.T, flag string)) {
	mesh(t)
	t.Run("asserted", func(t *testing.T) { f(t, "--no-isolate") })
	if os.Geteuid() == 0 {
		t.Run("isolated", func(t *testing.T) { f(t, "--isolate") })
	}
}

// run is the command line of a first-level agent.
func run(flag string, more ...string) []string {
	return append([]string{world.deputy, "run", "--config", world.config, "--as", "planner", flag, "--"}, more...)
}

// inner is the command line of a nested agent.
func inner(name, flag string, more ...string) []string {
	return append([]string{world.deputy, "run", "--as", name, flag, "--"}, more...)
}

func sh(script string) []string { return []string{"sh", "-c", script} }

// quote makes one word of a command line for a shell.
func quote(args []string) string {
	out := make([]string, len(args))
	for i, a := range args {
		out[i] = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
	}
	return strings.Join(out, " ")
}
