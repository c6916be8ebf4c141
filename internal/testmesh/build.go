package testmesh

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

// binaries are built once for a test process, with the race detector, into a folder that every uid
// may enter.
var binaries struct {
	once sync.Once
	dir  string
	err  error
}

// programs are what Build builds; a program is called by the last element of its folder.
var programs = []string{"./cmd/deputy", "./examples/team", "./integration/testdata/agentprobe", "github.com/modelcontextprotocol/go-sdk/conformance/everything-server"}

// builtVariable names a folder with the programs, for a run of the tests under a uid that can't build.
const builtVariable = "DEPUTY_TEST_PROGRAMS"

// Build builds the programs under test and returns their folder.
func Build(t testing.TB) string {
	t.Helper()
	binaries.once.Do(func() {
		if binaries.dir = os.Getenv(builtVariable); binaries.dir != "" {
			return
		}
		binaries.dir, binaries.err = build()
	})
	if binaries.err != nil {
		t.Fatal(binaries.err)
	}
	return binaries.dir
}

// Deputy is the path of the built deputy.
func Deputy(t testing.TB) string {
	t.Helper()
	return filepath.Join(Build(t), "deputy")
}

func build() (string, error) {
	dir, err := os.MkdirTemp("", "deputy-test-bin-")
	if err != nil {
		return "", err
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return "", err
	}
	cmd := exec.Command("go", append([]string{"build", "-race", "-o", dir + "/"}, programs...)...)
	cmd.Dir = moduleRoot()
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building the programs under test: %w\n%s", err, out)
	}
	return dir, nil
}

// moduleRoot is the folder of go.mod, upward from the test's folder.
func moduleRoot() string {
	dir, err := os.Getwd()
	if err != nil {
		panic(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			panic("testmesh: no go.mod above the test's folder")
		}
		dir = parent
	}
}
