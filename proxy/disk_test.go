package proxy_test

import (
	"errors"
	"io"
	"os"
	"slices"
	"sync"

	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/proxy"
)

// disk is real files whose sync can be held up, or fail.
type disk struct {
	mu      sync.Mutex
	held    chan struct{} // nil: not held
	waiting chan struct{} // gets a value whenever a sync is held
	broken  bool

	mayBreak bool // set before use
}

func newDisk() *disk { return &disk{waiting: make(chan struct{}, 1024)} }

func (d *disk) use(cfg *audit.Config, _ *proxy.Config, _ *proxy.StateConfig) { cfg.FS = d }

// hold makes every later sync wait until the returned function is called.
func (d *disk) hold() (release func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	held := make(chan struct{})
	d.held = held
	return sync.OnceFunc(func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.held = nil
		close(held)
	})
}

func (d *disk) fail() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.broken = true
}

func (d *disk) sync() error {
	d.mu.Lock()
	held := d.held
	d.mu.Unlock()
	if held != nil {
		d.waiting <- struct{}{}
		<-held
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.broken {
		return errors.New("input/output error")
	}
	return nil
}

func (*disk) MkdirAll(dir string) error { return os.MkdirAll(dir, 0o700) }
func (*disk) Remove(name string) error  { return os.Remove(name) }
func (*disk) SyncDir(string) error      { return nil }

func (*disk) Lock(string) (io.Closer, error) { return io.NopCloser(nil), nil }

func (*disk) ReadDir(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	slices.Sort(names)
	return names, err
}

func (d *disk) OpenFile(name string, flag int) (audit.File, error) {
	f, err := os.OpenFile(name, flag, 0o600)
	if err != nil {
		return nil, err
	}
	return diskFile{f, d}, nil
}

type diskFile struct {
	*os.File
	disk *disk
}

func (f diskFile) Size() (int64, error) {
	i, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return i.Size(), nil
}

func (f diskFile) Datasync() error {
	if err := f.disk.sync(); err != nil {
		return err
	}
	return f.Sync()
}
