package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"syscall"

	spawnv1 "github.com/deputymesh/deputy/proto/deputy/spawn/v1"
)

// mask connects to the issuer (A_ISSUER), leaves the connection to a child, and becomes the registered program (A_DEPUTY), which
// then waits for a configuration from FIFO for ever. The kernel names this process as the peer, and that program as what it runs,
// while the child speaks.
func mask(ctx context.Context, args []string) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", os.Getenv("A_ISSUER"))
	if err != nil {
		return err
	}
	file, err := conn.(*net.UnixConn).File()
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	child := exec.Command(self, "speak", fmt.Sprint(os.Getpid()))
	child.Stdout, child.Stderr, child.ExtraFiles = os.Stdout, os.Stderr, []*os.File{file}
	if err := child.Start(); err != nil {
		return err
	}
	return syscall.Exec(os.Getenv("A_DEPUTY"), []string{"deputy", "whoami", "--config", args[0]}, os.Environ())
}

// speak asks the issuer for a first-level agent over the connection that it was left, once its parent (PID) wears the mask, and
// then ends that parent.
func speak(ctx context.Context, args []string) error {
	var parent int
	if _, err := fmt.Sscan(args[0], &parent); err != nil {
		return err
	}
	for {
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", parent))
		if err != nil {
			return err
		}
		if string(raw[:6]) == "deputy" {
			break
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	defer syscall.Kill(parent, syscall.SIGKILL)
	conn, err := over(3)
	if err != nil {
		return err
	}
	defer conn.Close()
	report("register", func() (string, error) {
		r, err := spawnv1.NewSpawnClient(conn).Register(ctx, &spawnv1.RegisterRequest{Name: "planner"})
		return r.GetSpiffeId(), err
	})
	fmt.Println("over")
	return nil
}
