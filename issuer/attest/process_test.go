package attest

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func sleeper(t *testing.T, path string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(path, "300")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	// exec has happened when Start returns.
	return cmd
}

func pidOfSleeper(t *testing.T, path string) int { return sleeper(t, path).Process.Pid }

func copyOf(t *testing.T, path string, more []byte) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "copy")
	if err := os.WriteFile(out, append(b, more...), 0o755); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestAProcessIsHeldUntilItDies(t *testing.T) {
	cmd := sleeper(t, "/bin/sleep")
	p, err := Open(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	dup, err := p.Dup()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Alive(); err != nil || p.Exact() || !p.Same(dup) {
		t.Errorf("alive: %v, exact: %v", err, p.Exact())
	}
	waited, closed := make(chan error, 1), make(chan error, 1)
	go func() { waited <- p.Wait() }()
	go func() { closed <- dup.Wait() }()
	time.Sleep(20 * time.Millisecond) // so that both wait, most of the time; either order must work
	dup.Close()
	if err := <-closed; err == nil {
		t.Error("Wait says that a process died whose handle was closed")
	}
	cmd.Process.Kill() // and not reaped: a zombie is dead
	if err := <-waited; err != nil {
		t.Errorf("Wait: %v", err)
	}
	if err := p.Alive(); !errors.Is(err, ErrDead) {
		t.Errorf("a zombie: %v", err)
	}
	if _, err := New().Place(p); !errors.Is(err, ErrDead) {
		t.Errorf("attesting a zombie: %v", err)
	}
	cmd.Wait()
	if _, err := Ancestry(p); !errors.Is(err, ErrDead) {
		t.Errorf("placing the dead: %v", err)
	}
	if _, err := Open(cmd.Process.Pid); !errors.Is(err, ErrDead) {
		t.Errorf("opening the dead: %v", err)
	}
	for _, pid := range []int{0, -1} {
		if _, err := Open(pid); err == nil {
			t.Errorf("opened %d", pid)
		}
	}
}

// TestAReusedPidIsAnotherProcess makes the kernel give a dead process's pid to another one.
func TestAReusedPidIsAnotherProcess(t *testing.T) {
	first := exec.Command("/bin/sleep", "300")
	if err := first.Start(); err != nil {
		t.Fatal(err)
	}
	pid := first.Process.Pid
	p, err := Open(pid)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	first.Process.Kill()
	first.Wait()
	time.Sleep(20 * time.Millisecond) // the clock of start times ticks every 10 ms
	reused := false
	for range 200 {
		if os.WriteFile("/proc/sys/kernel/ns_last_pid", []byte(strconv.Itoa(pid-1)), 0) != nil {
			break // not root: then the handle's own verdict is what can be shown
		}
		second := exec.Command("/bin/sleep", "300")
		if err := second.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() { second.Process.Kill(); second.Wait() }()
		if second.Process.Pid == pid {
			reused = true
			break
		}
		second.Process.Kill()
	}
	if os.Geteuid() == 0 && !reused {
		t.Error("the kernel didn't give the pid away again")
	}
	if err := p.Alive(); !errors.Is(err, ErrDead) {
		t.Errorf("alive: %v", err)
	}
	if attrs, err := New().Place(p); !errors.Is(err, ErrDead) {
		t.Errorf("attested the wrong process: %+v %v", attrs, err)
	}
	if chain, err := Ancestry(p); err == nil {
		t.Errorf("placed the wrong process: %v", chain)
	}
	if !reused {
		return
	}
	q, err := Open(pid)
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	if q.Same(p) {
		t.Error("two processes are the same")
	}
}

func TestAncestryGoesUpToInit(t *testing.T) {
	cmd := exec.Command("/bin/sh", "-c", "sleep 300 & echo $!; wait")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var inner int
	if _, err := fmt.Fscan(out, &inner); err != nil {
		t.Fatal(err)
	}
	p, err := Open(inner)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	defer syscall.Kill(inner, syscall.SIGKILL)
	chain, err := Ancestry(p)
	if err != nil {
		t.Fatal(err)
	}
	if len(chain) < 3 || chain[0].PID != inner || chain[1].PID != cmd.Process.Pid || chain[2].PID != os.Getpid() {
		t.Errorf("%v", chain)
	}
	// Orphaned, it has another parent, and the shell is no longer an ancestor.
	cmd.Process.Kill()
	cmd.Wait()
	chain, err = Ancestry(p)
	if err != nil || chain[1].PID == cmd.Process.Pid {
		t.Errorf("%v %v", chain, err)
	}
}

// TestAncestryUnderChurn places processes while their parents die. This process adopts the orphans, as a supervisor
// does, so whatever moment is caught, it is an ancestor.
func TestAncestryUnderChurn(t *testing.T) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	defer unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
	placed := 0
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); {
		cmd := exec.Command("/bin/sh", "-c", "( ( sleep 60 >/dev/null & echo $!; exit ) & ) ; exit")
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		var inner int
		if _, err := fmt.Fscan(out, &inner); err != nil {
			t.Fatal(err)
		}
		p, err := Open(inner)
		if err != nil {
			t.Fatal(err)
		}
		for range 5 {
			chain, err := Ancestry(p)
			if err != nil {
				continue
			}
			placed++
			if chain[0].PID != inner || !slices.ContainsFunc(chain, func(a Ancestor) bool { return a.PID == os.Getpid() }) {
				t.Errorf("%d led out: %v", inner, chain)
			}
		}
		cmd.Wait()
		p.Close()
		syscall.Kill(inner, syscall.SIGKILL)
		syscall.Wait4(inner, nil, 0, nil)
	}
	if placed == 0 {
		t.Error("nothing was ever placed")
	}
}

// pair returns both ends of a connection over a real socket.
func pair(t *testing.T) (client, server *net.UnixConn) {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); s.Close() })
	return c.(*net.UnixConn), s.(*net.UnixConn)
}

func TestThePeerIsWhoConnected(t *testing.T) {
	for _, ignore := range []bool{false, true} {
		_, server := pair(t)
		p, err := identify(server, ignore)
		if err != nil {
			t.Fatal(err)
		}
		defer p.Process.Close()
		if p.Process.PID() != os.Getpid() || p.UID != uint32(os.Geteuid()) || p.GID != uint32(os.Getegid()) || p.Process.Exact() == ignore {
			t.Errorf("peer %d uid %d exact %v", p.Process.PID(), p.UID, p.Process.Exact())
		}
		attrs, err := New().Peer(p)
		if err != nil {
			t.Fatal(err)
		}
		exe, _ := os.Executable()
		if attrs.Executable == nil || attrs.Executable.Path != exe || !attrs.OneUID() || !attrs.OneGID() || !attrs.SharedUserNamespace || attrs.Exact == ignore {
			t.Errorf("%+v", attrs)
		}
		if !(Selectors{Path: exe}).Match(attrs) || (Selectors{Path: "/bin/sh"}).Match(attrs) || (Selectors{}).Match(attrs) {
			t.Error("selectors")
		}
		attrs.Executable = nil // as for other users' processes without CAP_SYS_PTRACE
		if (Selectors{Path: exe}).Match(attrs) {
			t.Error("an unknown executable matched")
		}
	}
}

// TestADeadPeerIsNobody connects from a process that is gone when the connection is looked at.
func TestADeadPeerIsNobody(t *testing.T) {
	for _, ignore := range []bool{false, true} {
		path := filepath.Join(t.TempDir(), "s")
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		cmd := exec.Command(os.Args[0], "-test.run=^TestMain$")
		cmd.Env = append(os.Environ(), "DEPUTY_TEST_DIAL="+path)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if p, err := identify(c.(*net.UnixConn), ignore); err == nil {
			t.Errorf("identified a process that is gone as %+v", p)
		}
	}
}

func TestMain(m *testing.M) {
	if path := os.Getenv("DEPUTY_TEST_DIAL"); path != "" {
		c, err := net.Dial("unix", path)
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		io.WriteString(c, "x")
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestCredentialsBoundConnectionsPerUID(t *testing.T) {
	c := NewCredentials()
	c.ConnectionsPerUID = 2
	clone := c.Clone().(*Credentials)
	uid := uint32(os.Geteuid())
	if uid == 0 { // root isn't limited, so count for somebody else
		if !c.counts.take(1, 2, false) || !clone.counts.take(1, 2, false) || c.counts.take(1, 2, false) {
			t.Error("the limit isn't shared or isn't kept")
		}
		c.counts.give(1, false)
		if !c.counts.take(1, 2, false) {
			t.Error("what was given back can't be taken")
		}
		for range 3 {
			if !c.counts.take(0, 2, false) {
				t.Error("root is limited")
			}
		}
		return
	}
	var open []net.Conn
	for range 2 {
		_, s := pair(t)
		h, _, err := c.ServerHandshake(s)
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, h)
	}
	_, s := pair(t)
	if _, _, err := clone.ServerHandshake(s); err == nil {
		t.Error("a third connection")
	}
	open[0].Close()
	if _, _, err := c.ServerHandshake(s); err != nil {
		t.Error(err)
	}
}

func TestCredentialsBoundConnectionsOfAllTogether(t *testing.T) {
	c := NewCredentials()
	c.counts.most = 3
	for uid := range uint32(3) {
		if !c.counts.take(uid, 2, false) {
			t.Fatal(uid)
		}
	}
	if c.counts.take(0, 2, false) || c.counts.take(9, 2, false) {
		t.Error("more than all")
	}
	c.counts.give(1, false)
	if !c.counts.take(9, 2, false) {
		t.Error("what was given back can't be taken")
	}
}

// However many uids agents have, roles, users and root get in.
func TestAgentsNeverHoldAllConnections(t *testing.T) {
	c := NewCredentials()
	c.counts.most = 8
	agents := uint32(0)
	for uid := uint32(70000); uid < 70100; uid++ {
		if c.counts.take(uid, 512, true) {
			agents++
		}
	}
	if agents != 6 {
		t.Errorf("agents hold %d of 8 connections", agents)
	}
	if !c.counts.take(0, 512, false) || !c.counts.take(64102, 512, false) {
		t.Error("agents keep a role out")
	}
	c.counts.give(70000, true)
	if !c.counts.take(70099, 512, true) {
		t.Error("what an agent gave back can't be taken by another")
	}
}

func TestCredentialsAreForUnixServersOnly(t *testing.T) {
	c := NewCredentials()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, _, err := c.ServerHandshake(conn); err == nil {
		t.Error("a TCP peer was identified")
	}
	if _, _, err := c.ClientHandshake(t.Context(), "x", conn); err == nil {
		t.Error("they served a client")
	}
	if _, err := PeerFrom(t.Context()); err == nil {
		t.Error("a peer out of nowhere")
	}
}

func TestUIDsInUse(t *testing.T) {
	used, err := UIDsInUse()
	if err != nil || !used[uint32(os.Geteuid())] {
		t.Errorf("%v %v", used, err)
	}
	if os.Geteuid() != 0 {
		return
	}
	// Whoever ends what is left of a uid keeps its first process a zombie meanwhile, so that nobody else gets the uid.
	const uid = 61998
	cmd := exec.Command("/bin/true")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := unix.Waitid(unix.P_PID, cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
	if used, err := UIDsInUse(); err != nil || !used[uid] {
		t.Errorf("the uid of a zombie is free: %v", err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if used, err := UIDsInUse(); err != nil || used[uid] {
		t.Errorf("the uid of nobody is in use: %v", err)
	}
}
