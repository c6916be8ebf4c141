package audit

import (
	"os"

	"golang.org/x/sys/unix"
)

// datasync makes contents and length of f durable. EINTR is the one error that is tried again: it says that
// nothing was done yet, while after any other the kernel may have dropped the dirty pages.
func datasync(f *os.File) error {
	for {
		if err := unix.Fdatasync(int(f.Fd())); err != unix.EINTR {
			return err
		}
	}
}
