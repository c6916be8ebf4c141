package audit_test

import (
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"syscall"
	"testing/fstest"
	"time"

	"github.com/deputymesh/deputy/audit"
)

var errPower = errors.New("the power is gone")

// disk is a disk in memory that keeps apart what is durable from what is only written.
type disk struct {
	mu       sync.Mutex
	files    map[string]*diskFile // as the running system sees them
	names    map[string]bool      // names that survive a crash
	off      bool                 // power
	space    int64                // bytes left for growth; < 0 is no limit
	syncs    int                  // fdatasyncs of segments in use so far
	failSync func(n int) fault    // asked at the n-th of these
	locked   bool
}

type fault int

const (
	fine       fault = iota
	syncFails        // nothing became durable, and says so
	syncDone         // everything became durable, and it says that it failed
	powerFails       // before anything became durable
)

type diskFile struct {
	d       *disk
	data    []byte
	durable []byte
	pending []diskWrite
}

type diskWrite struct {
	off  int64
	data []byte
}

func newDisk() *disk {
	return &disk{files: make(map[string]*diskFile), names: make(map[string]bool), space: -1}
}

const sector = 512

// crash returns the disk after the power came back. Of what wasn't synced each sector survives as survives says.
func (d *disk) crash(survives func() bool) *disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	after := newDisk()
	for name, f := range d.files {
		if !d.names[name] {
			continue
		}
		data := append([]byte(nil), f.durable...)
		for _, w := range f.pending {
			for at := 0; at < len(w.data); at += sector {
				if !survives() {
					continue
				}
				part := w.data[at:min(at+sector, len(w.data))]
				end := int(w.off) + at + len(part)
				for len(data) < end {
					data = append(data, 0)
				}
				copy(data[int(w.off)+at:], part)
			}
		}
		after.files[name] = &diskFile{d: after, data: data, durable: append([]byte(nil), data...)}
		after.names[name] = true
	}
	return after
}

// image is the disk as a file system for readers.
func (d *disk) image() fstest.MapFS {
	d.mu.Lock()
	defer d.mu.Unlock()
	m := fstest.MapFS{}
	for name, f := range d.files {
		m[filepath.Base(name)] = &fstest.MapFile{Data: append([]byte(nil), f.data...), Mode: 0o600, ModTime: time.Unix(0, 0)}
	}
	return m
}

func (d *disk) MkdirAll(string) error { return nil }

func (d *disk) OpenFile(name string, flag int) (audit.File, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.off {
		return nil, errPower
	}
	f, ok := d.files[name]
	switch {
	case !ok && flag&os.O_CREATE == 0:
		return nil, fs.ErrNotExist
	case ok && flag&os.O_EXCL != 0:
		return nil, fs.ErrExist
	case !ok:
		f = &diskFile{d: d}
		d.files[name] = f
	}
	return f, nil
}

func (d *disk) ReadDir(dir string) ([]string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var names []string
	for name := range d.files {
		if strings.HasPrefix(name, dir+"/") {
			names = append(names, filepath.Base(name))
		}
	}
	sort.Strings(names)
	return names, nil
}

func (d *disk) Remove(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.off {
		return errPower
	}
	if f := d.files[name]; f != nil && d.space >= 0 {
		d.space += int64(len(f.data))
	}
	delete(d.files, name)
	return nil
}

func (d *disk) SyncDir(string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.off {
		return errPower
	}
	d.names = make(map[string]bool)
	for name := range d.files {
		d.names[name] = true
	}
	return nil
}

func (d *disk) Lock(string) (io.Closer, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.locked {
		return nil, audit.ErrLocked
	}
	d.locked = true
	return unlocker{d}, nil
}

type unlocker struct{ d *disk }

func (u unlocker) Close() error {
	u.d.mu.Lock()
	defer u.d.mu.Unlock()
	u.d.locked = false
	return nil
}

func (f *diskFile) Size() (int64, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	return int64(len(f.data)), nil
}

func (f *diskFile) ReadAt(p []byte, off int64) (int, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if off >= int64(len(f.data)) {
		return 0, io.EOF
	}
	n := copy(p, f.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *diskFile) WriteAt(p []byte, off int64) (int, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if f.d.off {
		return 0, errPower
	}
	end := off + int64(len(p))
	if grow := end - int64(len(f.data)); grow > 0 {
		if f.d.space >= 0 {
			if f.d.space < grow {
				return 0, syscall.ENOSPC
			}
			f.d.space -= grow
		}
		f.data = append(f.data, make([]byte, grow)...)
	}
	copy(f.data[off:], p)
	f.pending = append(f.pending, diskWrite{off, append([]byte(nil), p...)})
	return len(p), nil
}

func (f *diskFile) Datasync() error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if f.d.off {
		return errPower
	}
	what := fine
	if f.durable != nil && f.d.failSync != nil { // the first sync of a segment is its preparation
		f.d.syncs++
		what = f.d.failSync(f.d.syncs)
	}
	switch what {
	case powerFails:
		f.d.off = true
		return errPower
	case syncFails:
		return syscall.EIO
	}
	for _, w := range f.pending {
		if end := int(w.off) + len(w.data); end > len(f.durable) {
			f.durable = append(f.durable, make([]byte, end-len(f.durable))...)
		}
		copy(f.durable[w.off:], w.data)
	}
	f.pending = nil
	if what == syncDone {
		return syscall.EIO
	}
	return nil
}

func (f *diskFile) Close() error { return nil }

func coin(r *rand.Rand, p float64) func() bool { return func() bool { return r.Float64() < p } }
