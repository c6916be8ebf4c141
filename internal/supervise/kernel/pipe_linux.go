package kernel

import "golang.org/x/sys/unix"

// PipeAbandoned says whether nobody holds the reading end of a pipe any more.
func PipeAbandoned(fd int) bool {
	p := []unix.PollFd{{Fd: int32(fd)}}
	n, err := unix.Poll(p, 0)
	return err == nil && n > 0 && p[0].Revents&(unix.POLLERR|unix.POLLNVAL) != 0
}
