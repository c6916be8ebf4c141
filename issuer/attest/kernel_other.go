//go:build !linux

package attest

import (
	"errors"
	"net"
	"os"
)

var errNotLinux = errors.New("attestation needs Linux (pidfds and /proc); run the issuer there")

type ucred struct {
	Pid      int32
	Uid, Gid uint32
}

func peerOf(*net.UnixConn, bool) (ucred, *os.File, bool, error) {
	return ucred{}, nil, false, errNotLinux
}
func openPidfd(int) (*os.File, error)       { return nil, errNotLinux }
func descriptors() uint64                   { return 0 }
func dead(uintptr) (bool, error)            { return true, errNotLinux }
func dupFile(*os.File) (*os.File, error)    { return nil, errNotLinux }
func identityOf(*os.File) (identity, error) { return identity{}, errNotLinux }
func identityAt(string) (identity, error)   { return identity{}, errNotLinux }

type identity struct {
	dev, ino     uint64
	size         int64
	csec, cnanos int64
}
