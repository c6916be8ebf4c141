package supervise

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"github.com/deputymesh/deputy/internal/supervise/kernel"
)

// admitHolders admits a loopback connection by the processes that hold its other end: the kernel doesn't name the caller as it
// does on a Unix socket, and the password lies in a file that every process of the same uid can read.
func (s *Supervisor) admitHolders(ctx context.Context, conn net.Conn) error {
	remote, err := netip.ParseAddrPort(conn.RemoteAddr().String())
	if err != nil {
		return err
	}
	local, err := netip.ParseAddrPort(conn.LocalAddr().String())
	if err != nil {
		return err
	}
	owner, err := findOwner(remote, local)
	if err != nil {
		return fmt.Errorf("asking who owns the connection: %w", err)
	}
	if owner.uid != os.Getuid() {
		return fmt.Errorf("the connection belongs to uid %d, the agent runs under %d", owner.uid, os.Getuid())
	}
	self, err := kernel.Self()
	if err != nil {
		return err
	}
	below, err := self.Descendants()
	if err != nil {
		return err
	}
	held := false
	for _, p := range below {
		if !holds(p.PID, owner.inode) {
			continue
		}
		if err := s.admitHolder(ctx, p); err != nil {
			return err
		}
		held = true
	}
	if !held {
		return errors.New("no process of this agent is seen to hold the connection")
	}
	return nil
}

func (s *Supervisor) admitHolder(ctx context.Context, p kernel.Process) error {
	h, err := kernel.Hold(p.PID)
	if err != nil {
		return err
	}
	defer h.Close()
	if h.Process != p {
		return kernel.ErrGone
	}
	return s.admit(ctx, h)
}

// holds says whether a process has a socket open. One whose descriptors can't be read holds nothing.
func holds(pid int, inode uint64) bool {
	dir := "/proc/" + strconv.Itoa(pid) + "/fd"
	f, err := os.Open(dir)
	if err != nil {
		return false
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return false
	}
	want := fmt.Sprintf("socket:[%d]", inode)
	for _, n := range names {
		if to, err := os.Readlink(dir + "/" + n); err == nil && to == want {
			return true
		}
	}
	return false
}

type socketOwner struct {
	uid   int
	inode uint64
}

var errNotListed = errors.New("the kernel doesn't list it; who connected may be in another network namespace, or gone")

// findOwner looks among the IPv4 sockets and among the IPv6 sockets that speak IPv4, which Java's are.
func findOwner(local, remote netip.AddrPort) (socketOwner, error) {
	for _, table := range []struct{ file, prefix string }{{"/proc/net/tcp", ""}, {"/proc/net/tcp6", mappedPrefix()}} {
		f, err := os.Open(table.file)
		if errors.Is(err, os.ErrNotExist) {
			continue // a kernel without IPv6
		}
		if err != nil {
			return socketOwner{}, err
		}
		owner, err := ownerOf(f, table.prefix+procAddr(local)+" "+table.prefix+procAddr(remote))
		f.Close()
		if !errors.Is(err, errNotListed) {
			return owner, err
		}
	}
	return socketOwner{}, errNotListed
}

// ownerOf finds the socket with both addresses, its own first.
func ownerOf(table io.Reader, addresses string) (socketOwner, error) {
	lines := bufio.NewScanner(table)
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) < 10 || f[1]+" "+f[2] != addresses {
			continue
		}
		uid, err := strconv.Atoi(f[7])
		if err != nil {
			return socketOwner{}, err
		}
		inode, err := strconv.ParseUint(f[9], 10, 64)
		return socketOwner{uid, inode}, err
	}
	if err := lines.Err(); err != nil {
		return socketOwner{}, err
	}
	return socketOwner{}, errNotListed
}

// mappedPrefix is the first twelve bytes of an IPv4-mapped IPv6 address in /proc/net/tcp6.
func mappedPrefix() string {
	return fmt.Sprintf("%016X%08X", 0, binary.NativeEndian.Uint32([]byte{0, 0, 0xff, 0xff}))
}

// procAddr is an IPv4 address and port as /proc/net/tcp prints them: the address as the machine's own
// number.
func procAddr(a netip.AddrPort) string {
	b := a.Addr().Unmap().As4()
	return fmt.Sprintf("%08X:%04X", binary.NativeEndian.Uint32(b[:]), a.Port())
}
