package integration_test

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/deputymesh/deputy/internal/testmesh"
)

// A log belongs to the one process that holds its lock, in the folder where it was locked: a second process doesn't start on it, a
// folder that is put in its place gets nothing, and who only reads changes nothing.
func TestALogHasOneWriter(t *testing.T) {
	m := testmesh.Start(t)
	alice := m.Login(t, "alice")
	log := m.LogDir("proxy")
	ask := func(n int) testmesh.Result {
		t.Helper()
		c := alice.Agents(t, testmesh.Nested, m.PG.Bin("psql"), "-XAtq", "-v", "VERBOSITY=verbose")
		c.Stdin = strings.Repeat("SELECT 'answered';\n", n)
		return testmesh.Exec(t, c)
	}
	ask(1)

	t.Run("a second process", func(t *testing.T) {
		r := testmesh.Exec(t, m.Proxy.Command())
		if r.Code == 0 || !strings.Contains(r.Stderr, "another process") {
			t.Errorf("it started: %s", r)
		}
		if r := ask(1); strings.TrimSpace(r.Stdout) != "answered" {
			t.Errorf("the first one: %s", r)
		}
		m.SettledRecords(t, "proxy")
		m.Verify(t)
	})
	t.Run("readers", func(t *testing.T) {
		follower := testmesh.Begin(t, testmesh.Command{Args: []string{testmesh.Deputy(t), "audit", "tail", "-n", "0", "-f", log}})
		held, err := filepath.Glob(filepath.Join(log, "*"))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range held {
			f, err := os.Open(name)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if err := syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB); err == nil && strings.HasSuffix(name, "lock") {
				t.Errorf("%s can be locked by a reader", name)
			}
		}
		if r := ask(1); strings.TrimSpace(r.Stdout) != "answered" {
			t.Errorf("with readers: %s", r)
		}
		m.Proxy.Kill()
		m.Proxy.Begin()
		eventually(t, alice)
		follower.Await("connection_opened", 2) // before the kill and after it
		follower.Signal(os.Interrupt)
		follower.Wait(patience)
	})
	t.Run("a folder in its place", func(t *testing.T) {
		away := log + ".away"
		if err := os.Rename(log, away); err != nil {
			t.Fatal(err)
		}
		uid, gid := ownerOf(t, away)
		if err := os.Mkdir(log, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(log, uid, gid); err != nil {
			t.Fatal(err)
		}
		// What is open goes on where it is. The next file would be made in the wrong place.
		r := ask(800)
		if !strings.Contains(r.Stderr, "(record: none)") {
			t.Errorf("it went on: %s", r)
		}
		if found, _ := filepath.Glob(filepath.Join(log, "*.segment")); len(found) > 0 {
			t.Errorf("the other folder got a part of the log: %v", found)
		}
		m.Proxy.Stop()
		if err := os.Remove(log); err != nil {
			t.Errorf("the other folder isn't empty: %v", err)
		}
		if err := os.Rename(away, log); err != nil {
			t.Fatal(err)
		}
		answers, decisions := strings.Count(r.Stdout, "answered"), decided(t, m, "postgres:")
		if answers == 0 || answers > decisions {
			t.Errorf("%d answers, %d decisions on record", answers, decisions)
		}
		m.Proxy.Begin()
		eventually(t, alice)
		m.SettledRecords(t, "proxy")
		m.Verify(t)
	})
}
