package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// lend connects to a Unix socket and becomes a program that finds the connection as descriptor 9.
//
// Usage: lend SOCKET PROGRAM [ARGUMENT...]
func lend(ctx context.Context, args []string) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", args[0])
	if err != nil {
		return err
	}
	file, err := conn.(*net.UnixConn).File()
	if err != nil {
		return err
	}
	if fd := int(file.Fd()); fd != 9 {
		err = unix.Dup3(fd, 9, 0)
	} else { // it is there already, but would be closed
		_, err = unix.FcntlInt(9, unix.F_SETFD, 0)
	}
	if err != nil {
		return err
	}
	// As the shell found it.
	if err := unix.SetNonblock(9, false); err != nil {
		return err
	}
	return syscall.Exec(args[1], args[1:], os.Environ())
}

// borrow calls an agent's supervisor over a connection that somebody else opened, found as a descriptor (9 if none is named).
func borrow(ctx context.Context, args []string) error {
	fd := 9
	if len(args) > 0 {
		var err error
		if fd, err = strconv.Atoi(args[0]); err != nil {
			return err
		}
	}
	conn, err := over(fd)
	if err != nil {
		return err
	}
	defer conn.Close()
	callAgent(ctx, conn)
	fmt.Println("over")
	return nil
}

// over speaks gRPC over one connection that is there already.
func over(fd int) (*grpc.ClientConn, error) {
	file := os.NewFile(uintptr(fd), "borrowed")
	if file == nil {
		return nil, fmt.Errorf("there is no descriptor %d", fd)
	}
	used := false
	return grpc.NewClient("passthrough:borrowed", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) {
			if used {
				return nil, errors.New("there is one connection only")
			}
			used = true
			return net.FileConn(file)
		}))
}
