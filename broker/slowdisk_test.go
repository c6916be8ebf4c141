package broker_test

import (
	"io"
	"os"
	"sync"

	"github.com/deputymesh/deputy/audit"
)

// slowDisk is a disk below an audit log that holds every sync while its gate is shut.
type slowDisk struct{ gate *gate }

func (slowDisk) MkdirAll(dir string) error      { return os.MkdirAll(dir, 0o700) }
func (slowDisk) Remove(name string) error       { return os.Remove(name) }
func (slowDisk) SyncDir(string) error           { return nil }
func (slowDisk) Lock(string) (io.Closer, error) { return io.NopCloser(nil), nil }

func (slowDisk) ReadDir(dir string) ([]string, error) {
	all, err := os.ReadDir(dir)
	var names []string
	for _, e := range all {
		names = append(names, e.Name())
	}
	return names, err
}

func (d slowDisk) OpenFile(name string, flag int) (audit.File, error) {
	f, err := os.OpenFile(name, flag, 0o600)
	if err != nil {
		return nil, err
	}
	return slowFile{f, d.gate}, nil
}

type slowFile struct {
	*os.File
	gate *gate
}

func (f slowFile) Size() (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

func (f slowFile) Datasync() error { f.gate.wait(); return nil }

// gate lets everybody pass until it is shut.
type gate struct {
	mu      sync.Mutex
	closed  chan struct{} // nil: open
	waiting chan struct{}
}

// shut closes the gate; waiting says when somebody stands before it.
func (g *gate) shut() (waiting <-chan struct{}, open func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	closed := make(chan struct{})
	g.closed, g.waiting = closed, make(chan struct{}, 64)
	return g.waiting, sync.OnceFunc(func() {
		g.mu.Lock()
		g.closed = nil
		g.mu.Unlock()
		close(closed)
	})
}

func (g *gate) wait() {
	g.mu.Lock()
	closed, waiting := g.closed, g.waiting
	g.mu.Unlock()
	if closed != nil {
		waiting <- struct{}{}
		<-closed
	}
}
