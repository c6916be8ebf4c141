package supervise

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func pair(t testing.TB) (*wire, *wire) {
	t.Helper()
	near, far, err := socketPair()
	if err != nil {
		t.Fatal(err)
	}
	other, err := connFromFile(far)
	if err != nil {
		t.Fatal(err)
	}
	a, b := newWire(near), newWire(other)
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

func TestWireCarriesMessagesAndDescriptors(t *testing.T) {
	a, b := pair(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	want := toLauncher{ID: 7, Start: &startRequest{Ticket: []byte{1, 2}, Argv: []string{"a", strings.Repeat("b", 1<<20)}, Env: []string{"X=ü"}, Targets: []string{}}}
	go func() {
		a.write(want, w)
		w.Close()
		a.write(toLauncher{ID: 8, Kill: true})
	}()
	var got toLauncher
	files, err := b.read(&got, 4)
	if err != nil || len(files) != 1 {
		t.Fatalf("%v, %d descriptors", err, len(files))
	}
	if got.ID != 7 || got.Start.Argv[1] != want.Start.Argv[1] || got.Start.Env[0] != "X=ü" || got.Start.Targets == nil {
		t.Errorf("got %+v", got.ID)
	}
	files[0].WriteString("through")
	files[0].Close()
	buf := make([]byte, 16)
	if n, _ := r.Read(buf); string(buf[:n]) != "through" {
		t.Errorf("the descriptor gave %q", buf[:n])
	}
	got = toLauncher{}
	if files, err := b.read(&got, 4); err != nil || len(files) != 0 || !got.Kill {
		t.Errorf("the second message: %+v, %v", got, err)
	}
}

func TestWireRefuses(t *testing.T) {
	raw := func(body string) []byte {
		return append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...)
	}
	for name, send := range map[string][]byte{
		"a huge length":     {0x7f, 0xff, 0xff, 0xff},
		"an unknown member": raw(`{"id":1,"uid":0}`),
		"no JSON":           raw(`x`),
		"two messages":      raw(`{"id":1}{"id":2}`),
		"half a message":    {0, 0, 0, 9, '{'},
		"half a length":     {0, 0},
	} {
		a, b := pair(t)
		a.conn.Write(send)
		a.conn.CloseWrite()
		var m toLauncher
		if _, err := b.read(&m, 0); err == nil {
			t.Errorf("%s was taken: %+v", name, m)
		}
	}
	a, b := pair(t)
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	before := openFiles(t)
	files := []*os.File{null, null, null, null, null, null, null, null}
	if err := a.write(toLauncher{ID: 1}, files...); err != nil {
		t.Fatal(err)
	}
	var m toLauncher
	if _, err := b.read(&m, 4); err == nil {
		t.Error("more descriptors than allowed were taken")
	}
	if after := openFiles(t); after > before {
		t.Errorf("%d descriptors leaked", after-before)
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	e, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(e)
}

func FuzzWire(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x08{\"id\":1}"))
	f.Add([]byte("\x00\x00\x00\x40{\"id\":1,\"start\":{\"argv\":[\"a\"],\"env\":null,\"targets\":[]}}      "))
	f.Fuzz(func(t *testing.T, in []byte) {
		a, b := pair(t)
		b.conn.SetDeadline(time.Now().Add(time.Second))
		go func() { a.conn.Write(in); a.conn.CloseWrite() }()
		for {
			var m toLauncher
			files, err := b.read(&m, 4)
			closeAll(files)
			if err != nil {
				return
			}
		}
	})
}

// Only a pseudo-terminal of the asker's own may change hands: everything else could be a file of root's.
func TestOnlyAPseudoTerminalIsGivenAway(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Log("without root no file can be given away, so nothing can go wrong; the checks hold all the same")
	}
	path := t.TempDir() + "/file"
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for _, file := range []*os.File{f, null} {
		var before, after unix.Stat_t
		unix.Fstat(int(file.Fd()), &before)
		giveTerminal(file, before.Uid, 81499)
		unix.Fstat(int(file.Fd()), &after)
		if before.Uid != after.Uid {
			unix.Fchown(int(file.Fd()), int(before.Uid), -1)
			t.Errorf("%s was given away", file.Name())
		}
	}
}

func TestOwnerOfALoopbackConnection(t *testing.T) {
	table := "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n" +
		"   0: " + procAddr(netip.MustParseAddrPort("127.0.0.1:5000")) + " " + procAddr(netip.MustParseAddrPort("127.0.0.1:6000")) + " 01 00000000:00000000 00:00000000 00000000  1234        0 77 1\n"
	client, server := procAddr(netip.MustParseAddrPort("127.0.0.1:5000")), procAddr(netip.MustParseAddrPort("127.0.0.1:6000"))
	if owner, err := ownerOf(strings.NewReader(table), client+" "+server); err != nil || owner != (socketOwner{1234, 77}) {
		t.Errorf("got %v, %v", owner, err)
	}
	if owner, err := ownerOf(strings.NewReader(table), server+" "+client); !errors.Is(err, errNotListed) {
		t.Errorf("the server's end was taken for the client's: %v, %v", owner, err)
	}
}

// A dual-stack client, as Java's are, stands among the IPv6 sockets.
func TestOwnerOfAConnectionThatSpeaksIPv4OverAnIPv6Socket(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	mapped := &unix.SockaddrInet6{Port: l.Addr().(*net.TCPAddr).Port, Addr: netip.MustParseAddr("::ffff:127.0.0.1").As16()}
	if err := unix.Connect(fd, mapped); err != nil {
		t.Fatal(err)
	}
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	owner, err := findOwner(netip.MustParseAddrPort(conn.RemoteAddr().String()), netip.MustParseAddrPort(conn.LocalAddr().String()))
	if err != nil || owner.uid != os.Getuid() || !holds(os.Getpid(), owner.inode) {
		t.Errorf("%+v, %v", owner, err)
	}
}

func TestSocketPathsThatTheKernelCutsAreRefused(t *testing.T) {
	if l, err := listenUnix("/tmp/" + strings.Repeat("x", 110)); err == nil {
		l.Close()
		t.Error("a path of 115 bytes was taken")
	} else if !strings.Contains(err.Error(), "shorter runtime_dir") {
		t.Errorf("got %v", err)
	}
}
