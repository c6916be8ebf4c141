// Package preface carries a credential before a protocol that has no place for one of that size: SSH, whose clients can't send such a password,
// and what no engine speaks. It is specified in docs/spec/preface.md.
package preface

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/deputymesh/deputy/actor"
)

// Names of the preface by what follows it, as ALPN and frames have them: all are of the same length.
const (
	SSH = "deputy-ssh/1"
	TCP = "deputy-tcp/1"
)

// Statuses of an answer.
const (
	Welcome = 0
	Refused = 1
)

// Read reads the credential.
func Read(r io.Reader, name string) (string, error) {
	var head [len(SSH) + 4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return "", err
	}
	if string(head[:len(SSH)]) != name {
		return "", errors.New("the preface doesn't begin with its name")
	}
	n := binary.BigEndian.Uint32(head[len(SSH):])
	if n == 0 || n > actor.MaxSize {
		return "", fmt.Errorf("a credential of %d bytes, want 1 to %d", n, actor.MaxSize)
	}
	credential := make([]byte, n)
	if _, err := io.ReadFull(r, credential); err != nil {
		return "", err
	}
	return string(credential), nil
}

// Write answers, with the text of a welcome or a refusal.
func Write(w io.Writer, name string, status byte, text string) error {
	b := make([]byte, 0, len(SSH)+5+len(text))
	b = append(append(b, name...), status)
	b = binary.BigEndian.AppendUint32(b, uint32(len(text)))
	_, err := w.Write(append(b, text...))
	return err
}
