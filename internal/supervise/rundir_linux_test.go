package supervise_test

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/internal/supervise"
)

// Isolated agents run under uids of their own: they must be able to pass through to their own folder, whatever had to be
// made on the way, and nobody may list or write what isn't theirs.
func TestTheWayToTheRuntimeFolderIsOpenToAgents(t *testing.T) {
	top := t.TempDir()
	dir := filepath.Join(top, "not", "there", "yet")
	for _, shared := range []bool{false, true} { // as login does, then as a launcher does
		if err := supervise.PrepareRuntimeDir(dir, shared); err != nil {
			t.Fatal(err)
		}
	}
	for p, want := range map[string]os.FileMode{
		filepath.Join(top, "not"): 0o755, filepath.Join(top, "not", "there"): 0o755, dir: 0o711, filepath.Join(dir, "a"): 0o711,
	} {
		st, err := os.Stat(p)
		if err != nil {
			t.Fatal(err)
		}
		if st.Mode().Perm() != want {
			t.Errorf("%s has mode %04o, want %04o", p, st.Mode().Perm(), want)
		}
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := supervise.PrepareRuntimeDir(dir, true); err == nil {
		t.Error("a runtime folder that everybody can write to was accepted")
	}
}

// Runs that start at the same time, as programs that fan out do: none takes another's new folder for one that was left behind.
func TestRunsThatStartTogetherKeepTheirFolders(t *testing.T) {
	dir := t.TempDir()
	if err := supervise.PrepareRuntimeDir(dir, false); err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for w := range 8 {
		all.Go(func() {
			for i := range 50 {
				id, err := actor.ParseAgentID(spiffeid.RequireFromString(fmt.Sprintf("spiffe://test.invalid/agent/planner/%08x%08x%016x", w, i, 7)))
				if err != nil {
					t.Error(err)
					return
				}
				path, remove, err := supervise.NewRunDir(dir, id)
				if err != nil {
					t.Error(err)
					return
				}
				for _, p := range []string{path, path + ".lock"} {
					if _, err := os.Stat(p); err != nil {
						t.Errorf("it was taken away: %v", err)
					}
				}
				if err := remove(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
}
