package sftp_test

import (
	"bytes"
	"encoding/binary"
	"math/rand"
	"testing"

	"github.com/deputymesh/deputy/proxy/sshd/sftp"
)

func requests() [][]byte {
	id, all := uint32(1), uint32(15)
	attrs := []any{all, uint64(1), uint32(2), uint32(3), uint32(4), uint32(5), uint32(6)}
	return [][]byte{
		packet(fxpOpen, append([]any{id, "/a", forRead | create}, attrs...)...), packet(fxpClose, id, "h"), packet(fxpRead, id, "h", uint64(1), uint32(2)),
		packet(fxpWrite, id, "h", uint64(1), "data"), packet(fxpFsetstat, append([]any{id, "h"}, attrs...)...), packet(fxpMkdir, id, "/a", noAttrs),
		packet(fxpStat, id, "/a"), packet(fxpSymlink, id, "/a", "/b"), packet(fxpExtended, id, posixRename, "/a", "/b"), packet(fxpExtended, id, limits),
		packet(fxpExtended, id, fsync, "h"), packet(fxpExtended, append([]any{id, lsetstat, "/a"}, attrs...)...), packet(fxpExtended, id, "x", "y"),
		packet(fxpSetstat, id, "/a", uint32(1<<31), uint32(1), "name", "value"), packet(fxpReaddir, id, "h"), packet(fxpExtended, id, statvfs, "/a"),
	}
}

func replies() [][]byte {
	id := uint32(1)
	return [][]byte{
		packet(fxpStatus, id, uint32(3), "no", "en"), packet(fxpHandle, id, "h"), packet(fxpData, id, "d"), packet(fxpName, id, uint32(1), "a", "long", noAttrs),
		packet(fxpAttrs, id, uint32(4), uint32(0o644)), packet(fxpExtendedReply, id, uint64(1), uint64(2), uint64(3), uint64(4)), packet(fxpStatus, id, uint32(0)),
	}
}

// checkRequest: what is taken of an agent's packet is written in one form, which reads as itself. Only unknown extensions and attributes
// are left out.
func checkRequest(t *testing.T, b []byte) {
	once, err := sftp.Again(b)
	if err != nil {
		return
	}
	if len(once) < 9 || int(binary.BigEndian.Uint32(once)) != len(once)-4 || len(once) > len(b) || !bytes.Equal(once[4:9], b[4:9]) {
		t.Errorf("%x is taken as %x", b, once)
	}
	twice, err := sftp.Again(once)
	if err != nil || !bytes.Equal(once, twice) {
		t.Errorf("%x is taken as %x, and that as %x: %v", b, once, twice, err)
	}
}

func checkReply(t *testing.T, to, b []byte) {
	once, err := sftp.AgainReply(to, b)
	if err != nil {
		return
	}
	if int(binary.BigEndian.Uint32(once)) != len(once)-4 || !bytes.Equal(once[4:9], b[4:9]) {
		t.Errorf("%x is taken as %x", b, once)
	}
	twice, err := sftp.AgainReply(to, once)
	if err != nil || !bytes.Equal(once, twice) {
		t.Errorf("%x is taken as %x, and that as %x: %v", b, once, twice, err)
	}
}

func FuzzRequest(f *testing.F) {
	for _, p := range requests() {
		f.Add(p)
	}
	f.Fuzz(checkRequest)
}

func FuzzReply(f *testing.F) {
	for i, p := range replies() {
		f.Add(requests()[i], p)
	}
	f.Fuzz(checkReply)
}

// A short walk of the fuzzers, each time from elsewhere.
func TestPacketsThatWereTamperedWith(t *testing.T) {
	seed := rand.Int63()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewSource(seed))
	spoil := func(p []byte) []byte {
		p = bytes.Clone(p)
		for range 1 + rnd.Intn(3) {
			switch i := rnd.Intn(len(p)); rnd.Intn(4) {
			case 0:
				p[i] = byte(rnd.Int())
			case 1:
				p[i] ^= 1 << rnd.Intn(8)
			case 2:
				p = append(p[:i], append([]byte{byte(rnd.Int())}, p[i:]...)...)
				binary.BigEndian.PutUint32(p, uint32(len(p)-4))
			default:
				if len(p) > 9 {
					p = p[:max(i, 9)]
					binary.BigEndian.PutUint32(p, uint32(len(p)-4))
				}
			}
		}
		return p
	}
	for range 20_000 {
		checkRequest(t, spoil(requests()[rnd.Intn(len(requests()))]))
		checkReply(t, requests()[rnd.Intn(len(requests()))], spoil(replies()[rnd.Intn(len(replies()))]))
	}
}
