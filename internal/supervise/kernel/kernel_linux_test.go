package kernel_test

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/deputymesh/deputy/internal/supervise/kernel"
)

func TestPeerIsTheProcessThatConnected(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		c, err := net.Dial("unix", path)
		if err == nil {
			defer c.Close()
			c.Read(make([]byte, 1))
		}
	}()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	p, err := kernel.PeerOf(c.(*net.UnixConn))
	if err != nil {
		t.Fatal(err)
	}
	self, err := kernel.Self()
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if p.Process != self || int(p.UID) != os.Getuid() {
		t.Errorf("peer is %+v, want %+v with uid %d", p, self, os.Getuid())
	}
}

// A process that connected and ended must not be taken for whoever has its id now.
func TestPeerThatEndedIsGone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	cmd := exec.Command("python3", "-c", "import socket,sys; s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])", path)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if p, err := kernel.PeerOf(c.(*net.UnixConn)); !errors.Is(err, kernel.ErrGone) {
		t.Errorf("got %+v, %v; want ErrGone", p, err)
	}
}

func TestDescendsFrom(t *testing.T) {
	self, err := kernel.Self()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sleep", "30")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	child, err := kernel.Find(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if ok, err := child.DescendsFrom(self); !ok || err != nil {
		t.Errorf("the child descends from the test: %v, %v", ok, err)
	}
	if ok, err := self.DescendsFrom(child); ok || err != nil {
		t.Errorf("the test descends from its child: %v, %v", ok, err)
	}
	// The same id with another start time is another process.
	other := self
	other.StartTime++
	if ok, _ := child.DescendsFrom(other); ok {
		t.Error("a process with another start time counts as an ancestor")
	}
	kids, err := self.Descendants()
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, k := range kids {
		found = found || k == child
	}
	if !found {
		t.Errorf("descendants %v lack %v", kids, child)
	}
	cmd.Process.Kill()
	cmd.Wait()
	if _, err := child.DescendsFrom(self); !errors.Is(err, kernel.ErrGone) {
		t.Errorf("an ended process: %v, want ErrGone", err)
	}
	if err := child.Check(); !errors.Is(err, kernel.ErrGone) {
		t.Errorf("check of an ended process: %v, want ErrGone", err)
	}
}

// onFirst is what happened on the process's first thread, where Go initialises packages.
var onFirst = func() (seen struct {
	pid, given int
	mark, wall error
}) {
	seen.pid = unix.Gettid()
	_, seen.mark = kernel.Mark()
	seen.wall = kernel.Wall()
	tid := make(chan int)
	kernel.OnThread(func() { tid <- unix.Gettid() })
	seen.given = <-tid
	return seen
}()

// What the kernel believes of a process it reads from its first thread, which Go gives to any goroutine.
func TestRestraintsNeverFallOnTheFirstThread(t *testing.T) {
	if onFirst.pid != os.Getpid() || onFirst.given == os.Getpid() {
		t.Errorf("initialised on thread %d of process %d, and OnThread gave %d; want the first and another", onFirst.pid, os.Getpid(), onFirst.given)
	}
	if onFirst.mark == nil || onFirst.wall == nil {
		t.Errorf("on the first thread: Mark %v, Wall %v; both must refuse", onFirst.mark, onFirst.wall)
	}
	const threads = 64
	on := make(chan int)
	for range threads {
		kernel.OnThread(func() {
			_ = unix.Nanosleep(&unix.Timespec{Nsec: 20e6}, nil) // so that Go needs as many threads as there are
			on <- unix.Gettid()
		})
	}
	for range threads {
		if tid := <-on; tid == os.Getpid() {
			t.Error("the process's first thread was given away")
		}
	}
}
