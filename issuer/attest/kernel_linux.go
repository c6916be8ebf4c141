package attest

import (
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// peerOf asks the kernel who connected. exact says that the pidfd came from the socket itself.
func peerOf(conn *net.UnixConn, ignorePeerPidfd bool) (cred unix.Ucred, pidfd *os.File, exact bool, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return cred, nil, false, err
	}
	fd := -1
	var opErr error
	err = raw.Control(func(s uintptr) {
		var c *unix.Ucred
		if c, opErr = unix.GetsockoptUcred(int(s), unix.SOL_SOCKET, unix.SO_PEERCRED); opErr != nil {
			return
		}
		cred = *c
		if !ignorePeerPidfd {
			// ENOPROTOOPT: a kernel before 6.5. Any other failure (ESRCH, ENODATA: the peer is gone) is final.
			var e error
			if fd, e = unix.GetsockoptInt(int(s), unix.SOL_SOCKET, unix.SO_PEERPIDFD); e == nil {
				exact = true
			} else if fd = -1; !errors.Is(e, unix.ENOPROTOOPT) {
				opErr = fmt.Errorf("SO_PEERPIDFD: %w", e)
			}
		}
	})
	if err = errors.Join(err, opErr); err != nil {
		if fd >= 0 {
			unix.Close(fd)
		}
		return cred, nil, false, err
	}
	if cred.Pid <= 0 {
		if fd >= 0 {
			unix.Close(fd)
		}
		return cred, nil, false, errors.New("the peer lives in a PID namespace that isn't visible from here")
	}
	if exact {
		pidfd, err = pidfdFile(fd)
		return cred, pidfd, true, err
	}
	pidfd, err = openPidfd(int(cred.Pid))
	return cred, pidfd, false, err
}

func openPidfd(pid int) (*os.File, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil, ErrDead
	}
	if err != nil {
		return nil, fmt.Errorf("pidfd_open: %w", err)
	}
	return pidfdFile(fd)
}

// pidfdFile puts a pidfd under the runtime's poller, so that waiting for a process costs no thread and ends
// when the file is closed.
func pidfdFile(fd int) (*os.File, error) {
	unix.CloseOnExec(fd)
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("pidfd: %w", err)
	}
	return os.NewFile(uintptr(fd), "pidfd"), nil
}

// descriptors is how many this process may open; 0 when unknown.
func descriptors() uint64 {
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) != nil {
		return 0
	}
	return limit.Cur
}

// dead says whether the process of a pidfd has ended (a zombie counts).
func dead(fd uintptr) (bool, error) {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		return n > 0, err
	}
}

func dupFile(f *os.File) (*os.File, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd := -1
	var opErr error
	if err := raw.Control(func(s uintptr) { fd, opErr = unix.FcntlInt(s, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		return nil, err
	}
	if opErr != nil {
		return nil, opErr
	}
	return pidfdFile(fd)
}

// identity is what tells one state of one file from every other.
type identity struct {
	dev, ino     uint64
	size         int64
	csec, cnanos int64
}

func identityOf(f *os.File) (identity, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return identity{}, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return identity{}, errors.New("it is no regular file")
	}
	return identity{st.Dev, st.Ino, st.Size, st.Ctim.Sec, st.Ctim.Nsec}, nil
}

func identityAt(path string) (identity, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return identity{}, err
	}
	return identity{st.Dev, st.Ino, st.Size, st.Ctim.Sec, st.Ctim.Nsec}, nil
}
