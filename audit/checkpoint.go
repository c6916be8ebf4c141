package audit

import (
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// maxCheckpoint bounds a signed checkpoint in bytes.
const maxCheckpoint = 1024

// Checkpoint is a signed statement: the log called Origin had Size records and this root.
type Checkpoint struct {
	Origin string
	Size   int64
	Root   tlog.Hash
}

// sign makes the C2SP signed note of a checkpoint.
func (k *Key) sign(size int64, root tlog.Hash) ([]byte, error) {
	text := k.Origin() + "\n" + strconv.FormatInt(size, 10) + "\n" + base64.StdEncoding.EncodeToString(root[:]) + "\n"
	return note.Sign(&note.Note{Text: text}, k.signer)
}

// parseCheckpoint reads the text of a checkpoint without looking at signatures.
func parseCheckpoint(msg []byte) (Checkpoint, error) {
	if len(msg) > maxCheckpoint {
		return Checkpoint{}, fmt.Errorf("checkpoint of %d bytes; at most %d are read", len(msg), maxCheckpoint)
	}
	text, _, ok := strings.Cut(string(msg), "\n\n")
	lines := strings.Split(text, "\n")
	if !ok || len(lines) != 3 || lines[0] == "" {
		return Checkpoint{}, errors.New("not a checkpoint: want origin, size and root on a line each, then signatures")
	}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	if err != nil || size < 0 || strconv.FormatInt(size, 10) != lines[1] {
		return Checkpoint{}, errors.New("checkpoint: the size isn't a plain decimal number")
	}
	root, err := base64.StdEncoding.Strict().DecodeString(lines[2])
	if err != nil || len(root) != tlog.HashSize {
		return Checkpoint{}, errors.New("checkpoint: the root isn't the base64 of 32 bytes")
	}
	return Checkpoint{Origin: lines[0], Size: size, Root: tlog.Hash(root)}, nil
}

// openCheckpoint reads a checkpoint and demands a good signature by one of known.
func openCheckpoint(msg []byte, known note.Verifiers) (Checkpoint, error) {
	cp, err := parseCheckpoint(msg)
	if err != nil {
		return Checkpoint{}, err
	}
	n, err := note.Open(msg, known)
	if err != nil {
		return Checkpoint{}, fmt.Errorf("checkpoint of %d records: %w", cp.Size, err)
	}
	if strings.Count(n.Text, "\n") != 3 {
		return Checkpoint{}, fmt.Errorf("checkpoint of %d records: lines behind its root", cp.Size)
	}
	// note.Open takes stray bits, so one signature could be written in several ways.
	for _, s := range slices.Concat(n.Sigs, n.UnverifiedSigs) {
		if _, err := base64.StdEncoding.Strict().DecodeString(s.Base64); err != nil {
			return Checkpoint{}, fmt.Errorf("checkpoint of %d records: signature by %q: %w", cp.Size, s.Name, err)
		}
	}
	for _, s := range n.Sigs {
		if s.Name == cp.Origin {
			return cp, nil
		}
	}
	return Checkpoint{}, fmt.Errorf("checkpoint of %d records: no signature by a key named %q", cp.Size, cp.Origin)
}
