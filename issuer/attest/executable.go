package attest

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"sync"
)

const (
	// maxExecutable bounds what is hashed for one process.
	maxExecutable = 512 << 20
	// maxHashes bounds the cache; executables are few.
	maxHashes = 1024
	// hashesAtOnce bounds how much of the machine callers can bind by starting large programs.
	hashesAtOnce = 2
)

// Executable is the file that a process runs.
type Executable struct {
	Path   string // as the kernel shows it; "… (deleted)" when it was replaced
	SHA256 [sha256.Size]byte

	id identity
}

// hashes remembers digests by device, inode, size and ctime: hashing 60 MB takes 35 ms, and a
// running file can't be written to.
type hashes struct {
	slots chan struct{}

	mu    sync.Mutex
	known map[identity][sha256.Size]byte
}

func newHashes() *hashes {
	return &hashes{slots: make(chan struct{}, hashesAtOnce), known: map[identity][sha256.Size]byte{}}
}

// executable opens /proc/PID/exe once: path, identity and digest are of that one file. The link isn't followed by
// name, so a path that was swapped since doesn't matter.
func (h *hashes) executable(pid int) (*Executable, error) {
	link := "/proc/" + strconv.Itoa(pid) + "/exe"
	f, err := os.Open(link)
	if errors.Is(err, os.ErrNotExist) {
		return nil, errors.New("it has no executable")
	}
	if err != nil {
		return nil, fmt.Errorf("reading its executable: %w", err)
	}
	defer f.Close()
	path, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(int(f.Fd())))
	if err != nil {
		return nil, fmt.Errorf("reading its executable: %w", err)
	}
	id, err := identityOf(f)
	if err != nil {
		return nil, fmt.Errorf("reading its executable: %w", err)
	}
	sum, err := h.sum(f, id)
	if err != nil {
		return nil, fmt.Errorf("reading its executable %s: %w", path, err)
	}
	return &Executable{Path: path, SHA256: sum, id: id}, nil
}

func (h *hashes) sum(f *os.File, id identity) (sum [sha256.Size]byte, err error) {
	h.mu.Lock()
	sum, ok := h.known[id]
	h.mu.Unlock()
	if ok {
		return sum, nil
	}
	if id.size > maxExecutable {
		return sum, fmt.Errorf("it is larger than %d bytes", maxExecutable)
	}
	h.slots <- struct{}{}
	defer func() { <-h.slots }()
	d := sha256.New()
	n, err := io.Copy(d, io.LimitReader(f, maxExecutable+1))
	if err != nil {
		return sum, err
	}
	after, err := identityOf(f)
	if err != nil {
		return sum, err
	}
	if after != id || n != id.size {
		return sum, errors.New("it changed while it was read")
	}
	d.Sum(sum[:0])
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.known) >= maxHashes {
		clear(h.known)
	}
	h.known[id] = sum
	return sum, nil
}
