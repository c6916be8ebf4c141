package sshd

import (
	"io"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/deputymesh/deputy/proxy/internal/preface"
)

// VerifyHost asks what is asked of a target's host key.
func VerifyHost(u *Upstream, key ssh.PublicKey) error {
	return u.verify(time.Now)("x:22", nil, key)
}

// Unblocks says whether what a connection keeps can be freed.
func Unblocks(c ssh.Conn) bool { return packets(c) != nil }

// ReadPreface reads a credential.
func ReadPreface(r io.Reader) (string, error) { return preface.Read(r, preface.SSH) }

// Destination is where a channel direct-tcpip leads to.
func Destination(host string, port uint32) (string, error) {
	to, _, err := destination("direct-tcpip", ssh.Marshal(directTCP{Host: host, Port: port}))
	return to, err
}
