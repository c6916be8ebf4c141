package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// pry tries to get into other processes, each given as NAME=PID, and prints one line per attempt as attack does.
func pry(_ context.Context, args []string) error {
	for _, a := range args {
		name, number, _ := strings.Cut(a, "=")
		pid, err := strconv.Atoi(number)
		if err != nil {
			return err
		}
		if unix.Kill(pid, 0) == unix.ESRCH {
			return fmt.Errorf("%s: no process %d", name, pid)
		}
		pryOpen(name, pid)
	}
	fmt.Println("over")
	return nil
}

func pryOpen(name string, pid int) {
	proc := "/proc/" + strconv.Itoa(pid) + "/"
	for _, file := range []string{"environ", "mem", "maps", "auxv", "syscall"} {
		report(name+" "+file, func() (string, error) {
			f, err := os.Open(proc + file)
			if err != nil {
				return "", err
			}
			defer f.Close()
			// The first byte of mem is never mapped.
			n, err := f.Read(make([]byte, 16))
			if file == "mem" {
				return "open", nil
			}
			return fmt.Sprint(n, " bytes"), err
		})
	}
	report(name+" memory", func() (string, error) {
		var b [16]byte
		local := []unix.Iovec{{Base: &b[0], Len: uint64(len(b))}}
		// Nothing is mapped there, but EFAULT comes only after the kernel has let the caller pass.
		_, err := unix.ProcessVMReadv(pid, local, []unix.RemoteIovec{{Base: 4096, Len: len(b)}}, 0)
		if errors.Is(err, unix.EFAULT) {
			return "let pass", nil
		}
		return "read", err
	})
	report(name+" trace", func() (string, error) {
		_, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_SEIZE, uintptr(pid), 0, 0, 0, 0)
		if errno != 0 {
			return "", errno
		}
		_ = unix.PtraceDetach(pid) // it can fail, since the process runs
		return "seized", nil
	})
	report(name+" descriptor", func() (string, error) {
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			return "", err
		}
		defer unix.Close(fd)
		got, err := unix.PidfdGetfd(fd, 0, 0)
		if err == nil {
			unix.Close(got)
		}
		return "copied", err
	})
}
