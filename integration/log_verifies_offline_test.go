package integration_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/deputymesh/deputy/internal/testmesh"
	"github.com/deputymesh/deputy/internal/testverifier"
)

// With the public keys alone anybody can tell whether the logs are whole: a flipped bit, a cut end, a
// missing file, a log rolled back or signed by another key doesn't pass. A second verifier, written from the specification
// alone, says the same each time.
func TestLogVerifiesOffline(t *testing.T) {
	t.Parallel()
	m := testmesh.Start(t)
	alice := m.Login(t, "alice")
	work := func(n int) {
		t.Helper()
		sql := []string{"DROP TABLE customers"}
		for range n {
			sql = append(sql, "SELECT name, email FROM customers WHERE id = 1")
		}
		if r := alice.SQL(t, testmesh.Nested, sql...); !strings.Contains(r.Stdout, "i***@example.com") {
			t.Fatalf("psql: %s", r)
		}
		m.SettledRecords(t, "proxy")
	}
	verify := func(dir string, flags ...string) testmesh.Result {
		t.Helper()
		r := testmesh.Exec(t, testmesh.Command{Args: append(append([]string{testmesh.Deputy(t), "audit", "verify", "--keys", m.KeysFile()}, flags...), dir)})
		if len(flags) == 0 || flags[0] == "--seen" {
			agrees(t, r, m.KeysFile(), dir, flags...)
		}
		return r
	}
	work(5)
	early := copyLog(t, m.LogDir("proxy"))
	saved := t.TempDir()
	if r := verify(early, "--save", saved); r.Code != 0 {
		t.Fatalf("a log as it is: %s", r)
	}
	checkpoints, err := filepath.Glob(filepath.Join(saved, "*.checkpoint"))
	if err != nil || len(checkpoints) != 1 {
		t.Fatalf("saved checkpoints: %v, %v", checkpoints, err)
	}
	// Over more than one file: 1 MiB each.
	work(120)
	m.Proxy.Stop()
	m.Broker.Stop()
	m.Issuer.Stop()
	m.Verify(t)
	for _, role := range []string{"issuer", "broker", "proxy"} {
		if r := verify(m.LogDir(role)); r.Code != 0 {
			t.Errorf("the %s's log: %s", role, r)
		}
	}
	whole := copyLog(t, m.LogDir("proxy"))
	segments, err := filepath.Glob(filepath.Join(whole, "*.segment"))
	if err != nil || len(segments) < 2 {
		t.Fatalf("%d files, want at least two: %v", len(segments), err)
	}
	if r := verify(whole, "--seen", checkpoints[0]); r.Code != 0 || !strings.Contains(r.Stdout, "closed cleanly") {
		t.Fatalf("a log that went on since the checkpoint, and was closed: %s", r)
	}
	refusal := m.Records(t, "proxy")
	var id string
	for _, r := range refusal {
		if r.Decision == "" && r.Chain != nil {
			id = r.ID.String()
		}
	}
	if r := verify(whole, "--record", id); r.Code != 0 || !strings.Contains(r.Stdout, "hashes lead from it") {
		t.Errorf("the proof of one record: %s", r)
	}

	t.Run("on the provider's own keys", func(t *testing.T) {
		fetch := func() testmesh.Result {
			t.Helper()
			r := testmesh.Exec(t, testmesh.Command{Args: []string{testmesh.Deputy(t), "audit", "keys", "fetch", "--keys", m.KeysFile(),
				"--ca-file", filepath.Join(m.Dir, "agent", "idp-ca.pem")}})
			if r.Code != 0 {
				t.Fatalf("fetching the provider's keys: %s", r)
			}
			return r
		}
		stranger := testmesh.Exec(t, testmesh.Command{Args: []string{testmesh.Deputy(t), "audit", "keys", "fetch", "--keys", m.KeysFile()}})
		if stranger.Code == 0 || !strings.Contains(stranger.Stderr, "--ca-file") {
			t.Errorf("a provider with a certificate of its own CA: %s", stranger)
		}
		if r := verify(whole); !strings.Contains(r.Stdout, "keys that only the log holds") {
			t.Errorf("it isn't said whose keys these are: %s", r)
		}
		if r := fetch(); !strings.Contains(r.Stdout, m.Provider+": ") || strings.Contains(r.Stdout, ": 0 keys") {
			t.Errorf("fetched: %s", r)
		}
		if r := verify(whole); r.Code != 0 || strings.Contains(r.Stdout, "keys that only the log holds") {
			t.Errorf("on the provider's keys: %s", r)
		}
		if r := fetch(); !strings.Contains(r.Stdout, ": 0 keys added") {
			t.Errorf("fetched again: %s", r)
		}
	})

	last := t.TempDir()
	if r := verify(whole, "--save", last); r.Code != 0 {
		t.Fatal(r)
	}
	lastCheckpoint := filepath.Join(last, filepath.Base(checkpoints[0]))
	text := []byte("DROP TABLE customers")
	for _, c := range []struct {
		name   string
		flags  []string
		change func(t *testing.T, dir string, files []string)
	}{
		{"a letter of a statement", nil, func(t *testing.T, dir string, files []string) {
			edit(t, files[0], func(b []byte) []byte {
				at := bytes.Index(b, text)
				if at < 0 {
					t.Fatal("the statement isn't in the log")
				}
				b[at] ^= 0x20
				return b
			})
		}},
		{"one bit of the first record", nil, func(t *testing.T, dir string, files []string) {
			edit(t, files[0], func(b []byte) []byte { b[4096+200] ^= 1; return b })
		}},
		{"one bit of a later file", nil, func(t *testing.T, dir string, files []string) {
			edit(t, files[1], func(b []byte) []byte { b[4096+300] ^= 4; return b })
		}},
		{"a byte after the end", nil, func(t *testing.T, dir string, files []string) {
			edit(t, files[len(files)-1], func(b []byte) []byte { b[len(b)-1] = 1; return b })
		}},
		{"a shorter file", nil, func(t *testing.T, dir string, files []string) {
			edit(t, files[0], func(b []byte) []byte { return b[:len(b)-8192] })
		}},
		{"no first file", nil, func(t *testing.T, dir string, files []string) { remove(t, files[0]) }},
		{"no last file", []string{"--seen", lastCheckpoint}, func(t *testing.T, dir string, files []string) {
			for _, f := range files[1:] {
				remove(t, f)
			}
		}},
		{"swapped files", nil, func(t *testing.T, dir string, files []string) {
			if err := os.Rename(files[0], files[0]+"x"); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(files[1], files[0]); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(files[0]+"x", files[1]); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := copyLog(t, whole)
			files, err := filepath.Glob(filepath.Join(dir, "*.segment"))
			if err != nil {
				t.Fatal(err)
			}
			c.change(t, dir, files)
			if r := verify(dir, c.flags...); r.Code != 2 || !strings.Contains(r.Stdout, "DOES NOT HOLD") || !strings.Contains(r.Stdout, "PROBLEM") {
				t.Errorf("it was not found: %s", r)
			}
		})
	}
	t.Run("rolled back to an earlier state", func(t *testing.T) {
		if r := verify(early, "--seen", lastCheckpoint); r.Code != 2 {
			t.Errorf("an earlier state of the log: %s", r)
		}
	})
	t.Run("another mesh's keys", func(t *testing.T) {
		keys := filepath.Join(t.TempDir(), "keys.json")
		raw, err := os.ReadFile(m.KeysFile())
		if err != nil {
			t.Fatal(err)
		}
		other := bytes.Replace(raw, []byte("test.example/proxy/main+"), []byte("test.example/proxy/other+"), 1)
		if bytes.Equal(raw, other) {
			t.Fatal("the proxy's key isn't on the list")
		}
		if err := os.WriteFile(keys, other, 0o600); err != nil {
			t.Fatal(err)
		}
		r := testmesh.Exec(t, testmesh.Command{Args: []string{testmesh.Deputy(t), "audit", "verify", "--keys", keys, whole}})
		if r.Code == 0 {
			t.Errorf("a log by a key that isn't on the list: %s", r)
		}
		agrees(t, r, keys, whole)
	})
}

// agrees holds a second verifier, written from docs/spec alone, to the same exit status as ours.
func agrees(t *testing.T, ours testmesh.Result, keys, dir string, flags ...string) {
	t.Helper()
	args := append([]string{testverifier.Python, "-B", testverifier.Script(), "log", "--keys", keys}, flags...)
	if theirs := testmesh.Exec(t, testmesh.Command{Args: append(args, dir)}); theirs.Code != ours.Code {
		t.Errorf("two verifiers disagree:\n%s\n%s", ours, theirs)
	}
}

// copyLog copies a log's files to a folder of the test's own.
func copyLog(t *testing.T, dir string) string {
	t.Helper()
	to := t.TempDir()
	files, err := filepath.Glob(filepath.Join(dir, "*.segment"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no log in %s: %v", dir, err)
	}
	for _, f := range files {
		raw, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(to, filepath.Base(f)), raw, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return to
}

func edit(t *testing.T, path string, change func([]byte) []byte) {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, change(raw), 0o600); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}
