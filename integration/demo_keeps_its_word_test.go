package integration_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/deputymesh/deputy/internal/testmesh"
)

// The demo, with race-enabled programs: it ends well, masks, refuses by name, names the chain, verifies, and
// leaves nothing behind.
func TestDemoKeepsItsWord(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, p := range []string{"scripts", "examples/demo/shop.sql", "examples/policy"} {
		testmesh.Copy(t, p, filepath.Join(dir, p))
	}
	for _, p := range []string{"deputy", "team"} {
		if err := os.MkdirAll(filepath.Join(dir, "bin"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(testmesh.Program(t, p), filepath.Join(dir, "bin", p)); err != nil {
			t.Fatal(err)
		}
	}
	before := demoFolders(t)
	r := testmesh.Exec(t, testmesh.Command{Args: []string{filepath.Join(dir, "scripts", "demo")}, Within: 3 * patience})
	if r.Code != 0 {
		t.Fatalf("the demo: %s", r)
	}
	grade := "asserted"
	if testmesh.Isolated() {
		grade = "attested"
	}
	for _, part := range []string{
		"Signed in as alice", "planner (" + grade + ") works for sample-alice", "t***@example.net", "****0105",
		`policy "no-ddl-by-agents" forbids postgres:ddl on table "public"."customers"`, "└─ planner", "└─ researcher", "[" + grade, "DROP TABLE customers",
		"issuer/audit: VERIFIED", "broker/audit: VERIFIED", "proxy/audit: VERIFIED", "Done in",
	} {
		if !strings.Contains(r.Stdout, part) {
			t.Errorf("the demo doesn't show %q", part)
		}
	}
	if leak := personal.FindString(strings.ReplaceAll(r.Stdout, "****", "")); leak != "" {
		t.Errorf("the demo shows %q", leak)
	}
	if t.Failed() {
		t.Log(r)
	}
	if after := demoFolders(t); len(after) > len(before) {
		t.Errorf("left behind: %v", after)
	}
}

func demoFolders(t *testing.T) []string {
	t.Helper()
	found, err := filepath.Glob("/tmp/deputy-demo.*")
	if err != nil {
		t.Fatal(err)
	}
	// Another user's demo may run beside this one.
	return slices.DeleteFunc(found, func(path string) bool {
		info, err := os.Lstat(path)
		return err != nil || int(info.Sys().(*syscall.Stat_t).Uid) != os.Geteuid()
	})
}
