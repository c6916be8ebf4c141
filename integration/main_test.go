// Package integration_test holds black-box tests of the built, race-enabled programs: each file's name is
// the claim that it proves.
package integration_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/deputymesh/deputy/internal/testmesh"
)

// patience is for what takes well under a second on a machine that has time.
const patience = time.Minute

func TestMain(m *testing.M) { testmesh.Main(m) }

// awaitNoProcess waits until no process has the word in its command line.
func awaitNoProcess(t *testing.T, word string) {
	t.Helper()
	var found string
	for limit := time.Now().Add(patience / 4); time.Now().Before(limit); time.Sleep(20 * time.Millisecond) {
		found = ""
		files, err := filepath.Glob("/proc/[0-9]*/cmdline")
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			if raw, err := os.ReadFile(f); err == nil && strings.Contains(string(raw), word) {
				found = f + ": " + strings.ReplaceAll(string(raw), "\x00", " ")
			}
		}
		if found == "" {
			return
		}
	}
	t.Errorf("still there: %s", found)
}

func dirOf(path string) string { return filepath.Dir(path) }
