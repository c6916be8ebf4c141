package testmesh

import (
	"flag"
	"fmt"
	"os"
	"sync"
	"testing"
)

// shared is the mesh that tests share which leave it as they found it.
var shared struct {
	once sync.Once
	life *lifetime
	mesh *Mesh
}

// Shared is one mesh with every default, started at the first call and ended by [Main]. A test that
// revokes, kills or breaks something starts its own.
func Shared(t testing.TB) *Mesh {
	t.Helper()
	shared.once.Do(func() {
		shared.life = &lifetime{TB: t}
		shared.mesh = Start(shared.life)
	})
	if shared.mesh == nil {
		t.Fatal("the shared mesh didn't start; see the first test that wanted it")
	}
	shared.life.now(t)
	return shared.mesh
}

// Main runs the tests, then ends the shared mesh and removes the binaries. Use it as TestMain.
func Main(m *testing.M) {
	flag.Parse()
	// Tests that run beside each other wait more than they work.
	if err := flag.Set("test.parallel", "4"); err != nil {
		panic(err)
	}
	code := m.Run()
	if shared.life != nil && !shared.life.end() {
		code = max(code, 1)
	}
	if binaries.dir != "" && os.Getenv(builtVariable) == "" {
		_ = os.RemoveAll(binaries.dir)
	}
	os.Exit(code)
}

// lifetime is a testing.TB that outlives single tests: what is cleaned up waits for end, and failures
// belong to the test that is running.
type lifetime struct {
	testing.TB // the running test

	mu       sync.Mutex
	cleanups []func()
	ending   bool
	failed   bool
}

func (l *lifetime) now(t testing.TB) { l.TB = t }

func (l *lifetime) Cleanup(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cleanups = append(l.cleanups, f)
}

func (l *lifetime) Helper() {}

func (l *lifetime) Errorf(format string, args ...any) {
	if !l.ending {
		l.TB.Errorf(format, args...)
		return
	}
	l.failed = true
	fmt.Fprintf(os.Stderr, "ending the shared mesh: "+format+"\n", args...)
}

func (l *lifetime) Logf(format string, args ...any) {
	if !l.ending {
		l.TB.Logf(format, args...)
	}
}

// end cleans up, in the usual order, and says whether all was well.
func (l *lifetime) end() bool {
	l.ending = true
	for i := len(l.cleanups) - 1; i >= 0; i-- {
		l.cleanups[i]()
	}
	return !l.failed
}
