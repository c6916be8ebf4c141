package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/issuer/ca"
	"github.com/deputymesh/deputy/issuer/spawn"
)

// issuerFolder is what `deputy init` leaves for an issuer: keys, certificate and a configuration that whoever runs the
// tests matches.
func issuerFolder(t *testing.T) (config string, cfg *issuerConfig) {
	t.Helper()
	dir := t.TempDir()
	td := spiffeid.RequireTrustDomainFromString("test.example")
	key, cert, err := ca.Generate(td, time.Now(), 24*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if err := writePrivateKey(filepath.Join(dir, "ca.key"), key); err != nil {
		t.Fatal(err)
	}
	if err := writeCertificates(filepath.Join(dir, "ca.crt"), cert); err != nil {
		t.Fatal(err)
	}
	jwtKey, err := newKey()
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(writePrivateKey(filepath.Join(dir, "jwt.key"), jwtKey), writePublicKey(filepath.Join(dir, "jwt.pub"), &jwtKey.PublicKey)); err != nil {
		t.Fatal(err)
	}
	logKey, err := audit.GenerateKey(rand.Reader, "test.example/issuer")
	if err != nil {
		t.Fatal(err)
	}
	if err := writeNew(filepath.Join(dir, "log.key"), []byte(logKey.Private()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	self := uint32(os.Geteuid())
	cfg = &issuerConfig{
		TrustDomain: "test.example", Socket: "run/issuer.sock", DataDir: "data",
		CA: issuerCAConfig{Cert: "ca.crt", Key: "ca.key"}, JWT: &issuerJWTConfig{Key: "jwt.key", Bundle: "jwt.pub", Mesh: "https://broker.test.example"}, SVIDTTL: time.Hour,
		AgentUIDs: &uidRangeConfig{First: 61000, Last: 61999},
		Limits:    &spawnLimitsConfig{Depth: 4, SpawnRate: 2.5},
		Audit:     auditConfig{Dir: "log", Key: "log.key"},
		Entries: []workloadEntryConfig{{
			SPIFFEID: "spiffe://test.example/deputy/proxy/orders", Unix: unixSelectorConfig{UID: &self},
			DNSNames: []string{"orders-db"}, IPs: []string{"127.0.0.1", "::1"},
		}},
		Agents: []agentEntryConfig{{Name: "planner", Unix: unixSelectorConfig{UID: &self}}},
	}
	raw, err := yaml.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	config = filepath.Join(dir, "issuer.yaml")
	if err := os.WriteFile(config, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	return config, cfg
}

func TestIssuerConfigurationSurvivesItsFile(t *testing.T) {
	config, cfg := issuerFolder(t)
	got, err := loadConfig(config, func(c *issuerConfig) error { return c.check(false) })
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(cfg, got); d != "" {
		t.Errorf("(-written +read):\n%s", d)
	}
	if l := got.limits().WithDefaults(); l.Depth != 4 || l.Children != 64 || l.SpawnRate != 2.5 {
		t.Errorf("limits %+v", l)
	}
}

func TestIssuerConfigurationErrorsSayWhereAndWhat(t *testing.T) {
	for name, tc := range map[string]struct{ old, new, where, want string }{
		"trust domain":     {"trust_domain: test.example", "trust_domain: Test.Example", ":1:", "lower-case"},
		"dev":              {"trust_domain: test.example", "trust_domain: dev.deputy.invalid", ":1:", "--unsafe-dev"},
		"unknown key":      {"data_dir: data", "data_dri: data", ":3:1:", "data_dri"},
		"no socket":        {"socket: run/issuer.sock", "socket: \"\"", ":2:", "Unix socket"},
		"no key":           {"key: ca.key", "key: \"\"", "$.ca.key", "CA key"},
		"no JWT key":       {"key: jwt.key", "key: \"\"", "$.jwt.key", "JWT-SVIDs"},
		"no JWT bundle":    {"bundle: jwt.pub", "bundle: \"\"", "$.jwt.bundle", "public keys"},
		"no mesh":          {"mesh: https", "mesh: http", "$.jwt.mesh", "https://"},
		"ttl":              {"svid_ttl: 1h0m0s", "svid_ttl: 10s", "$.svid_ttl", "1m"},
		"long ttl":         {"svid_ttl: 1h0m0s", "svid_ttl: 4h", "$.svid_ttl", "3h"},
		"range of root":    {"first: 61000", "first: 0", "$.agent_uids.first", "1000"},
		"range backwards":  {"last: 61999", "last: 60999", "$.agent_uids.last", "61000"},
		"depth":            {"depth: 4", "depth: 99", "$.limits.depth", "8"},
		"rate":             {"spawn_rate: 2.5", "spawn_rate: -1", "$.limits.spawn_rate", "per second"},
		"foreign ID":       {"spiffe://test.example/deputy", "spiffe://other.example/deputy", "$.entries[0].spiffe_id", "trust domain"},
		"agent as entry":   {"/deputy/proxy/orders", "/agent/orders/x", "$.entries[0].spiffe_id", "/agent/"},
		"host name":        {"- orders-db", "- Orders_DB", "$.entries[0].dns_names[0]", "lower case"},
		"address":          {"127.0.0.1", "127.0.0.256", "$.entries[0].ips[0]", "127.0.0.1"},
		"agent's name":     {"name: planner", "name: Planner", "$.agents[0].name", "planner"},
		"uid of the range": {fmt.Sprintf("uid: %d", os.Geteuid()), "uid: 61500", "$.entries[0].unix.uid", "outside agent_uids"},
		"no selector":      {fmt.Sprintf("uid: %d", os.Geteuid()), "path: \"\"", "$.entries[0].unix", "at least one"},
		"path":             {fmt.Sprintf("uid: %d", os.Geteuid()), "path: bin/x", "$.entries[0].unix.path", "absolute"},
		"digest":           {fmt.Sprintf("uid: %d", os.Geteuid()), "sha256: ABCD", "$.entries[0].unix.sha256", "sha256sum"},
		"no log":           {"dir: log", "dir: \"\"", "$.audit.dir", "log"},
	} {
		t.Run(name, func(t *testing.T) {
			config, _ := issuerFolder(t)
			raw, err := os.ReadFile(config)
			if err != nil {
				t.Fatal(err)
			}
			changed := strings.Replace(string(raw), tc.old, tc.new, 1)
			if changed == string(raw) {
				t.Fatalf("%q isn't in\n%s", tc.old, raw)
			}
			if err := os.WriteFile(config, []byte(changed), 0o600); err != nil {
				t.Fatal(err)
			}
			cmd := newIssuerCommand()
			cmd.SetArgs([]string{"--config", config})
			cmd.SilenceErrors, cmd.SilenceUsage = true, true
			err = cmd.ExecuteContext(t.Context())
			if err == nil {
				t.Fatal("it started")
			}
			for _, want := range []string{"issuer.yaml", tc.where, tc.want} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q doesn't say %q", err, want)
				}
			}
		})
	}
}

func TestAccountsOfTheHostKeepTheirUIDs(t *testing.T) {
	agents := spawn.UIDRange{First: 61000, Last: 61999}
	passwd := "root:x:0:0::/root:/bin/sh\n#\nbroken\nann:x:%d:100::/:/bin/sh\n"
	for uid, want := range map[int]string{60999: "", 61000: "ann", 61999: "ann", 62000: ""} {
		if got, err := accountIn(strings.NewReader(fmt.Sprintf(passwd, uid)), agents); err != nil || got != want {
			t.Errorf("uid %d: %q %v", uid, got, err)
		}
	}
	for line, want := range map[string]string{
		"ann:100000:65536": "", "ann:60000:1000": "", "ann:60000:1001": "ann", "ann:61500:1": "ann", "ann:0:4294967295": "ann",
		"ann:62000:5": "", "ann:61500:0": "", "ann:x:5": "", "": "",
	} {
		if got, err := subordinateIn(strings.NewReader(line), agents); err != nil || got != want {
			t.Errorf("%q: %q %v", line, got, err)
		}
	}
}

func TestIssuerServesUntilItIsTold(t *testing.T) {
	config, cfg := issuerFolder(t)
	socket := beside(config, cfg.Socket)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- runIssuer(ctx, cfg, config, false) }()
	wait, stopWaiting := context.WithTimeout(ctx, 20*time.Second)
	defer stopWaiting()
	source, err := workloadapi.NewX509Source(wait, workloadapi.WithClientOptions(workloadapi.WithAddr("unix://"+socket)))
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	svid, err := source.GetX509SVID()
	if err != nil || svid.ID.Path() != "/deputy/proxy/orders" || len(svid.Certificates[0].IPAddresses) != 2 {
		t.Errorf("%v %v", svid, err)
	}
	for path, mode := range map[string]os.FileMode{socket: 0o666, filepath.Dir(socket): 0o755, beside(config, "data"): 0o700, beside(config, "data/issuer.db"): 0o600} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v %v, want %#o", path, info.Mode(), err, mode)
		}
	}
	// A second one on the same files is refused, by the log's lock; one on the same socket, by the socket.
	if err := runIssuer(ctx, cfg, config, false); !errors.Is(err, audit.ErrLocked) {
		t.Errorf("a second issuer: %v", err)
	}
	if _, err := listenForWorkloads(ctx, socket); err == nil || !strings.Contains(err.Error(), "already") {
		t.Errorf("the same socket: %v", err)
	}

	// SIGHUP: the file has one more authority now, and everybody gets it.
	td := spiffeid.RequireTrustDomainFromString("test.example")
	_, next, err := ca.Generate(td, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	old, err := readAuthorities(beside(config, "ca.crt"), td)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(beside(config, "ca.crt")); err != nil {
		t.Fatal(err)
	}
	if err := writeCertificates(beside(config, "ca.crt"), old[0], next); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	for {
		b, err := source.GetX509BundleForTrustDomain(td)
		if err != nil {
			t.Fatal(err)
		}
		if b.HasX509Authority(next) {
			break
		}
		select {
		case <-source.Updated():
		case <-wait.Done():
			t.Fatal("the new authority didn't come")
		}
	}
	source.Close()
	cancel()
	if err := <-done; err != nil {
		t.Errorf("stopping: %v", err)
	}
	if _, err := os.Stat(socket); err == nil {
		t.Error("the socket is still there")
	}
}

func TestIssuerRefusesFilesThatOthersReach(t *testing.T) {
	for name, tc := range map[string]struct {
		spoil func(t *testing.T, config string)
		want  string
	}{
		"the CA key":  {func(t *testing.T, c string) { chmod(t, beside(c, "ca.key"), 0o644) }, "0644"},
		"the log key": {func(t *testing.T, c string) { chmod(t, beside(c, "log.key"), 0o640) }, "0640"},
		"the socket's folder": {func(t *testing.T, c string) {
			if err := os.Mkdir(beside(c, "run"), 0o755); err != nil {
				t.Fatal(err)
			}
			chmod(t, beside(c, "run"), 0o777)
		}, "writable"},
		"a file at the socket's place": {func(t *testing.T, c string) {
			if err := os.Mkdir(beside(c, "run"), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(beside(c, "run/issuer.sock"), nil, 0o644); err != nil {
				t.Fatal(err)
			}
		}, "no socket"},
		"another CA's key": {func(t *testing.T, c string) {
			key, err := newKey()
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Remove(beside(c, "ca.key")); err != nil {
				t.Fatal(err)
			}
			if err := writePrivateKey(beside(c, "ca.key"), key); err != nil {
				t.Fatal(err)
			}
		}, "doesn't belong"},
	} {
		t.Run(name, func(t *testing.T) {
			config, cfg := issuerFolder(t)
			tc.spoil(t, config)
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			err := runIssuer(ctx, cfg, config, false)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want the word %q", err, tc.want)
			}
		})
	}
}

func chmod(t *testing.T, path string, mode os.FileMode) {
	t.Helper()
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func TestAStaleSocketIsReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "issuer.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	l, err = listenForWorkloads(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
}

func TestIssuerKnowsWhetherItSeesOtherUsersPrograms(t *testing.T) {
	for status, want := range map[string]bool{
		"Name:\tdeputy\nCapEff:\t0000000000000000\n": false,
		"Name:\tdeputy\nCapEff:\t0000000000080000\n": true,
		"Name:\tdeputy\nCapEff:\t00000000a80425fb\n": false,
		"Name:\tdeputy\nCapEff:\t000001ffffffffff\n": true,
	} {
		if got := capPtrace(status); got != want {
			t.Errorf("%q: %v, want %v", status, got, want)
		}
	}
}
