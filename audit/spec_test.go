package audit_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"math/bits"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/deputymesh/deputy/audit"
)

// This is a second verifier of frames, tree, signatures and links, written from docs/spec/audit-log.md alone: standard library,
// nothing of this package. It keeps the specification honest: both must say the same about the same bytes.

type specLog struct {
	vkey       string
	leaves     [][]byte // leaf hashes, all of them: the plainest way to a root
	checkpoint []byte
	open       map[string]bool
	chains     map[string]bool // digests of those in the segment
}

func specHash(prefix byte, parts ...[]byte) []byte {
	h := sha256.New()
	h.Write([]byte{prefix})
	for _, p := range parts {
		h.Write(p)
	}
	return h.Sum(nil)
}

// specRoot is RFC 6962 §2.1, literally.
func specRoot(leaves [][]byte) []byte {
	switch len(leaves) {
	case 0:
		return sha256.New().Sum(nil)
	case 1:
		return leaves[0]
	}
	k := 1 << (bits.Len(uint(len(leaves)-1)) - 1)
	return specHash(1, specRoot(leaves[:k]), specRoot(leaves[k:]))
}

func specCRC(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

func (l *specLog) verifyCheckpoint(cp []byte) error {
	text, signatures, ok := strings.Cut(string(cp), "\n\n")
	text += "\n"
	lines := strings.Split(text, "\n")
	if !ok || len(lines) != 4 || lines[1] != strconv.Itoa(len(l.leaves)) || lines[2] != base64.StdEncoding.EncodeToString(specRoot(l.leaves)) {
		return fmt.Errorf("checkpoint %q doesn't say %d records and their root", text, len(l.leaves))
	}
	key := strings.SplitN(l.vkey, "+", 3)
	raw, err := base64.StdEncoding.DecodeString(key[2])
	if err != nil || raw[0] != 1 || lines[0] != key[0] {
		return fmt.Errorf("checkpoint of %q, key %q: %w", lines[0], key[0], err)
	}
	sig, err := base64.StdEncoding.DecodeString(strings.TrimSuffix(strings.TrimPrefix(signatures, "— "+key[0]+" "), "\n"))
	if err != nil || len(sig) != 68 || hex.EncodeToString(sig[:4]) != key[1] || !ed25519.Verify(raw[1:], []byte(text), sig[4:]) {
		return fmt.Errorf("checkpoint of %d records: bad signature (%v)", len(l.leaves), err)
	}
	return nil
}

func (l *specLog) segment(number int, b []byte) error {
	n := binary.BigEndian.Uint64
	m := binary.BigEndian.Uint32
	if string(b[:8]) != "DPTYSEG1" || specCRC(b[:4092]) != m(b[4092:]) || n(b[8:]) != uint64(number) || n(b[16:]) != uint64(len(b)) || n(b[24:]) != uint64(len(l.leaves)) {
		return fmt.Errorf("segment %d: header", number)
	}
	peaks, length := int(m(b[32:])), int(m(b[36:]))
	if peaks != bits.OnesCount(uint(len(l.leaves))) || !bytes.Equal(b[40+32*peaks:40+32*peaks+length], l.checkpoint) {
		return fmt.Errorf("segment %d: peaks or checkpoint", number)
	}
	if peaks > 0 {
		root := b[40+32*(peaks-1) : 40+32*peaks]
		for i := peaks - 2; i >= 0; i-- {
			root = specHash(1, b[40+32*i:40+32*i+32], root)
		}
		if !bytes.Equal(root, specRoot(l.leaves)) {
			return fmt.Errorf("segment %d: the peaks' root", number)
		}
	}
	at := 4096
	for at < len(b) && !allZero(b[at:at+40]) {
		f := b[at:]
		count, body, cp := int(m(f[16:])), int(m(f[20:])), int(m(f[24:]))
		if string(f[:8]) != "DPTYFRM1" || m(f[36:]) != specCRC(f[:36]) || m(f[32:]) != 0 || n(f[8:]) != uint64(len(l.leaves)) || m(f[28:]) != specCRC(f[40:40+body+cp]) {
			return fmt.Errorf("segment %d: frame at %d", number, at)
		}
		rest := f[40 : 40+body]
		for range count {
			size := int(m(rest))
			if err := l.record(rest[4 : 4+size]); err != nil {
				return err
			}
			rest = rest[4+size:]
		}
		l.checkpoint = f[40+body : 40+body+cp]
		if err := l.verifyCheckpoint(l.checkpoint); err != nil {
			return err
		}
		used := 40 + body + cp
		padded := (used + 4095) / 4096 * 4096
		if len(rest) != 0 || !allZero(f[used:padded]) {
			return fmt.Errorf("segment %d: padding of the frame at %d", number, at)
		}
		at += padded
	}
	if !allZero(b[at:]) {
		return fmt.Errorf("segment %d: bytes behind the frames", number)
	}
	return nil
}

func (l *specLog) record(data []byte) error {
	var r struct {
		Seq      int
		V        int
		ID       string
		Type     string
		Decision string
		Chain    string
		Event    json.RawMessage
	}
	if err := json.Unmarshal(data, &r); err != nil || r.Seq != len(l.leaves) || r.V != 2 || !bytes.HasPrefix(data, []byte(`{"seq":`)) {
		return fmt.Errorf("record %d: %v: %s", len(l.leaves), err, data)
	}
	l.leaves = append(l.leaves, specHash(0, data))
	if r.Chain != "" && !l.chains[r.Chain] {
		return fmt.Errorf("record %d: no chain %s before it", r.Seq, r.Chain)
	}
	switch r.Type {
	case "chain":
		l.chains[fmt.Sprintf("sha256:%x", sha256.Sum256(r.Event))] = true
	case "decision":
		var event struct{ Effect string }
		if err := json.Unmarshal(r.Event, &event); err != nil {
			return err
		}
		if event.Effect == "allow" {
			l.open[r.ID] = true
		}
	case "forwarded", "completed", "outcome_unknown":
		if !l.open[r.Decision] {
			return fmt.Errorf("record %d: no open decision %s", r.Seq, r.Decision)
		}
		if r.Type != "forwarded" {
			delete(l.open, r.Decision)
		}
	}
	return nil
}

func specVerify(image fstest.MapFS, vkey string) (*specLog, error) {
	l := &specLog{vkey: vkey, open: make(map[string]bool)}
	for number := 0; ; number++ {
		f, ok := image[fmt.Sprintf("%016d.segment", number)]
		if !ok || allZero(f.Data[4096:]) {
			return l, nil
		}
		l.chains = make(map[string]bool)
		if err := l.segment(number, f.Data); err != nil {
			return l, err
		}
	}
}

func TestTheSpecificationIsEnough(t *testing.T) {
	image, cfg, receipts := threeSegments(t)
	l, err := specVerify(image, cfg.Key.Public())
	if err != nil {
		t.Fatal(err)
	}
	report := mustVerify(t, image, cfg, audit.VerifyOptions{})
	if int64(len(l.leaves)) != report.Records || string(l.checkpoint) != report.Checkpoint || len(l.open) != 0 {
		t.Errorf("by the specification %d records, here %d", len(l.leaves), report.Records)
	}
	// Both refuse the same change anywhere in what the log holds.
	last := receipts[len(receipts)-1].Seq
	if last < 30 {
		t.Fatalf("only %d records", last)
	}
	for _, name := range []string{firstSegment, secondSegment} {
		for at := 0; at < len(image[name].Data); at += 1021 {
			m := copyOf(image)
			m[name].Data[at] ^= 0x20
			_, spec := specVerify(m, cfg.Key.Public())
			report, err := audit.Verify(m, keysFor(cfg), audit.VerifyOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if spec == nil || report.Err() == nil {
				t.Errorf("%s, byte %d changed: by the specification %v, here %v", name, at, spec, report.Err())
			}
		}
	}
}
