package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// initArgs are the arguments of a whole `deputy init` into dir/mesh; its inputs are made in dir.
func initArgs(t *testing.T, dir string) []string {
	t.Helper()
	if err := writeWebCertificate(dir, "test", []string{"127.0.0.1"}, sampleCertificateLife); err != nil {
		t.Fatal(err)
	}
	password := filepath.Join(dir, "shop.password")
	if err := os.WriteFile(password, []byte("shop-Pa55word\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return []string{"init", filepath.Join(dir, "mesh"), "--trust-domain", "corp.example", "--base-port", "7400",
		"--identity-provider", "https://127.0.0.1:7415", "--sample-user", "alice=analysts:" + password,
		"--postgres", "orders-db=127.0.0.1:5432/shop", "--postgres-ca", filepath.Join(dir, "ca.pem"),
		"--account", "analyst=shop_app:" + password, "--role", "analysts=analyst", "--operator", "operators=admin",
		"--agent", "planner", "--policy", "../../examples/policy"}
}

func deputyInit(args []string) (string, error) {
	root := newRootCommand()
	var out bytes.Buffer
	root.SetOut(&out)
	root.SetErr(&out)
	root.SetArgs(args)
	err := root.Execute()
	return out.String(), err
}

func TestInitMakesAMeshThatItsRolesCanStartFrom(t *testing.T) {
	dir := t.TempDir()
	if out, err := deputyInit(initArgs(t, dir)); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	mesh := func(elem ...string) string { return filepath.Join(append([]string{dir, "mesh"}, elem...)...) }
	if _, err := loadConfig(mesh("issuer", "issuer.yaml"), func(c *issuerConfig) error { return c.check(false) }); err != nil {
		t.Error(err)
	}
	if _, err := loadConfig(mesh("broker", "broker.yaml"), func(c *brokerConfig) error { return c.check(false) }); err != nil {
		t.Error(err)
	}
	if _, err := loadConfig(mesh("proxy", "proxy.yaml"), func(c *proxyConfig) error { return c.check(false) }); err != nil {
		t.Error(err)
	}
	if _, err := loadConfig(mesh("agent", "agent.yaml"), (*agentConfig).check); err != nil {
		t.Error(err)
	}
	if _, err := loadConfig(mesh("sample-signin", "sample-signin.yaml"), (*sampleSignInConfig).check); err != nil {
		t.Error(err)
	}
}

// No key may be read by others, and no role gets a key that isn't its own.
func TestInitKeepsKeysApart(t *testing.T) {
	dir := t.TempDir()
	if out, err := deputyInit(initArgs(t, dir)); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	root := filepath.Join(dir, "mesh")
	secrets := map[string]string{} // content -> file
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		raw, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		secret := bytes.Contains(raw, []byte("PRIVATE")) || strings.HasSuffix(path, ".password")
		if !secret {
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %04o, want 0600", path, info.Mode().Perm())
		}
		if other, twice := secrets[string(raw)]; twice {
			t.Errorf("%s and %s hold the same secret", other, path)
		}
		secrets[string(raw)] = path
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(secrets) != 13 {
		t.Errorf("found %d secrets, want 13: %v", len(secrets), secrets)
	}
	for _, role := range []string{"issuer", "broker", "proxy"} {
		info, err := os.Stat(filepath.Join(root, role))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o700 {
			t.Errorf("folder of the %s has mode %04o, want 0700", role, info.Mode().Perm())
		}
	}
}

func TestInitRefuses(t *testing.T) {
	good := initArgs(t, t.TempDir())
	change := func(flag, value string) []string {
		args := append([]string(nil), good...)
		for i, a := range args {
			if a == flag {
				args[i+1] = value
			}
		}
		if !slices.Contains(args, flag) {
			args = append(args, flag, value)
		}
		args[1] = filepath.Join(t.TempDir(), "mesh")
		return args
	}
	for _, c := range []struct{ flag, value, want string }{
		{"--trust-domain", "Corp.Example", "lower-case"},
		{"--trust-domain", devTrustDomain, "deputy dev"},
		{"--base-port", "99999", "--base-port"},
		{"--postgres", "orders-db", "NAME=HOST:PORT/DATABASE"},
		{"--postgres-ca", "/does/not/exist.pem", "no such file"},
		{"--account", "analyst", "ROLE=DBUSER:PASSWORDFILE"},
		{"--role", "analysts", "GROUP=ROLE"},
		{"--policy", t.TempDir(), "policy"},
		{"--identity-provider", "https://login.example", "loopback"},
		{"--sample-user", "alice", "NAME=GROUP:PASSWORDFILE"},
		{"--identity-provider", "https://127.0.0.1:7415/a b", "--identity-provider"},
		{"--client-id", "a: b", "--client-id"},
		{"--algorithm", "none", `"none" is not accepted`},
		{"--postgres-ca", "init_test.go", "no PEM certificate"},
		{"--postgres", "orders-db=127.0.0.1:99999/shop", "no port"},
		{"--postgres", "other-db=127.0.0.1:5432/shop", "doesn't name the target other-db"},
		{"--account", "clerk=shop_app:" + good[len(good)-1], "nobody could ever use this account"},
		{"--account", "analyst=shop_app:/does/not/exist", "no such file"},
		{"--role", "analysts=other", "--role GROUP=analyst"},
		{"--operator", "operators=king", `want "admin"`},
		{"--agent", "Plan ner", "a name such as planner"},
		{"--starter-uid", "75000", "those belong to agents"},
		{"--starter-uid", "-3", "a uid is expected"},
		{"--uid", "king=5", "ROLE=UID"},
	} {
		args := change(c.flag, c.value)
		if out, err := deputyInit(args); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %s: %v, want %q\n%s", c.flag, c.value, err, c.want, out)
		}
		if _, err := os.Stat(args[1]); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s %s left something behind: %v", c.flag, c.value, err)
		}
	}
	if _, err := deputyInit(good); err != nil {
		t.Fatal(err)
	}
	if _, err := deputyInit(good); err == nil || !strings.Contains(err.Error(), "nothing is overwritten") {
		t.Errorf("a second init into the same folder: %v", err)
	}
}

func TestInitFailingLateLeavesTheFolderEmpty(t *testing.T) {
	dir := t.TempDir()
	args := initArgs(t, dir)
	args[1] = filepath.Join(dir, "there-already")
	if err := os.Mkdir(args[1], 0o700); err != nil {
		t.Fatal(err)
	}
	// Only the issuer's own check refuses this, after everything was written.
	if _, err := deputyInit(append(args, "--starter-uid", "75000")); err == nil {
		t.Fatal("a starter among the agents' uids was accepted")
	}
	if left, err := os.ReadDir(args[1]); err != nil || len(left) != 0 {
		t.Fatalf("left behind: %v, %v", left, err)
	}
	if _, err := deputyInit(args); err != nil {
		t.Fatalf("the next try: %v", err)
	}
}

func TestInitRegistersEveryStarterOfEveryAgent(t *testing.T) {
	dir := t.TempDir()
	args := append(initArgs(t, dir), "--agent", "clerk", "--starter-uid", "1000", "--starter-uid", "1001")
	if _, err := deputyInit(args); err != nil {
		t.Fatal(err)
	}
	cfg, err := loadConfig(filepath.Join(dir, "mesh", "issuer", "issuer.yaml"), func(c *issuerConfig) error { return c.check(false) })
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, a := range cfg.Agents {
		got = append(got, fmt.Sprintf("%s %d", a.Name, *a.Unix.UID))
	}
	if want := "planner 1000,planner 1001,clerk 1000,clerk 1001"; strings.Join(got, ",") != want {
		t.Fatalf("registered %v, want %s", got, want)
	}
}
