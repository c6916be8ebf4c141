package sshd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"golang.org/x/crypto/ssh"

	"github.com/deputymesh/deputy/actor"
)

// The preface carries the credential before SSH begins, since OpenSSH's client can't send a password of that size. It is
// specified in docs/spec/ssh-preface.md: a client that offers prefaceProtocol by ALPN sends
//
//	prefaceProtocol (12 bytes), length (4 bytes, big-endian), credential
//
// and reads
//
//	prefaceProtocol (12 bytes), status (1 byte), length (4 bytes, big-endian), text
//
// whose text is the session's id, a line feed and the engine's host key as authorized_keys writes it for status 0, and the refusal in
// words for status 1. After status 0 comes SSH, after status 1 the end.
const prefaceProtocol = "deputy-ssh/1"

const (
	prefaceWelcome = 0
	prefaceRefused = 1
)

// readPreface reads the credential.
func readPreface(r io.Reader) (string, error) {
	var head [len(prefaceProtocol) + 4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return "", err
	}
	if string(head[:len(prefaceProtocol)]) != prefaceProtocol {
		return "", errors.New("the preface doesn't begin with its name")
	}
	n := binary.BigEndian.Uint32(head[len(prefaceProtocol):])
	if n == 0 || n > actor.MaxSize {
		return "", fmt.Errorf("a credential of %d bytes, want 1 to %d", n, actor.MaxSize)
	}
	credential := make([]byte, n)
	if _, err := io.ReadFull(r, credential); err != nil {
		return "", err
	}
	return string(credential), nil
}

func writePreface(w io.Writer, status byte, text string) error {
	b := make([]byte, 0, len(prefaceProtocol)+5+len(text))
	b = append(append(b, prefaceProtocol...), status)
	b = binary.BigEndian.AppendUint32(b, uint32(len(text)))
	_, err := w.Write(append(b, text...))
	return err
}

func welcome(session string, host ssh.PublicKey) string {
	return session + "\n" + string(ssh.MarshalAuthorizedKey(host))
}
