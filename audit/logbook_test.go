package audit_test

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/bits"
	"testing/fstest"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// logbook writes a log by hand, as docs/spec/audit-log.md says and without the writer, so that it can also write what the
// writer never would, under a good signature. Its keys and its clock are fixed.
type logbook struct {
	origin  string
	key     note.Signer
	extra   []note.Signer // sign, too
	size    int           // of a segment
	rewrite map[int]func(string) string

	names    []string
	segments map[string][]byte
	at       int // in the last segment
	leaves   []tlog.Hash
	last     []byte // newest checkpoint
	seen     map[int][]byte
	records  int
}

const (
	bookOrigin  = "corp.example/proxy/orders"
	bookSource  = "spiffe://corp.example/deputy/proxy/orders"
	bookSegment = 64 << 10
)

var bookClock = time.Date(2026, 11, 20, 12, 2, 0, 0, time.UTC) // environment.json's now

// bookKey is the log key of a seed: the signer and the line for the list of keys.
func bookKey(origin, seed string) (note.Signer, string) {
	sum := sha256.Sum256([]byte(seed))
	private := ed25519.NewKeyFromSeed(sum[:])
	public, err := note.NewEd25519VerifierKey(origin, private.Public().(ed25519.PublicKey))
	if err != nil {
		panic(err)
	}
	data := base64.StdEncoding.EncodeToString(append([]byte{1}, sum[:]...))
	verifier, err := note.NewVerifier(public)
	if err != nil {
		panic(err)
	}
	signer, err := note.NewSigner(fmt.Sprintf("PRIVATE+KEY+%s+%08x+%s", origin, verifier.KeyHash(), data))
	if err != nil {
		panic(err)
	}
	return signer, public
}

func newLogbook() *logbook {
	key, _ := bookKey(bookOrigin, "log key")
	return &logbook{origin: bookOrigin, key: key, size: bookSegment, segments: map[string][]byte{}, seen: map[int][]byte{}}
}

func (b *logbook) segment() {
	data := make([]byte, b.size)
	copy(data, "DPTYSEG1")
	n := uint64(len(b.leaves))
	binary.BigEndian.PutUint64(data[8:], uint64(len(b.names)))
	binary.BigEndian.PutUint64(data[16:], uint64(b.size))
	binary.BigEndian.PutUint64(data[24:], n)
	binary.BigEndian.PutUint32(data[32:], uint32(bits.OnesCount64(n)))
	binary.BigEndian.PutUint32(data[36:], uint32(len(b.last)))
	at := 40
	for rest := b.leaves; len(rest) > 0; {
		k := 1 << (bits.Len(uint(len(rest))) - 1)
		peak := treeHash(rest[:k])
		at += copy(data[at:], peak[:])
		rest = rest[k:]
	}
	copy(data[at:], b.last)
	mendHeader(data)
	name := fmt.Sprintf("%016d.segment", len(b.names))
	b.names, b.segments[name], b.at = append(b.names, name), data, 4096
}

// treeHash is MTH of RFC 6962 §2.1.
func treeHash(leaves []tlog.Hash) tlog.Hash {
	if len(leaves) == 1 {
		return leaves[0]
	}
	k := 1
	for 2*k < len(leaves) {
		k *= 2
	}
	return tlog.NodeHash(treeHash(leaves[:k]), treeHash(leaves[k:]))
}

// record is one record's text; more is what stands between source and event. Its seq is filled in by frame.
func (b *logbook) record(kind, more, event string) string {
	n := b.records
	b.records++
	if more != "" {
		more += ","
	}
	return fmt.Sprintf(`"v":2,"id":%q,"type":%q,"time":%q,"source":%q,%s"event":%s}`, bookID(n), kind,
		bookClock.Add(time.Duration(n)*time.Millisecond).Format(time.RFC3339Nano), bookSource, more, event)
}

func bookID(n int) string { return fmt.Sprintf("0193498d-2f40-7000-8000-%012x", n) }

// frame writes a frame of records, made by record.
func (b *logbook) frame(records ...string) {
	first := len(b.leaves)
	var body []byte
	for _, r := range records {
		seq := len(b.leaves)
		text := fmt.Sprintf(`{"seq":%d,%s`, seq, r)
		if change := b.rewrite[seq]; change != nil {
			text = change(text)
		}
		body = binary.BigEndian.AppendUint32(body, uint32(len(text)))
		body = append(body, text...)
		b.leaves = append(b.leaves, tlog.RecordHash([]byte(text)))
	}
	b.last = b.sign(len(b.leaves), treeHash(b.leaves))
	b.seen[len(b.leaves)] = b.last
	b.raw(first, len(records), body, b.last)
}

func (b *logbook) sign(n int, root tlog.Hash) []byte {
	text := fmt.Sprintf("%s\n%d\n%s\n", b.origin, n, base64.StdEncoding.EncodeToString(root[:]))
	msg, err := note.Sign(&note.Note{Text: text}, append([]note.Signer{b.key}, b.extra...)...)
	if err != nil {
		panic(err)
	}
	return msg
}

// raw writes a frame as it is given.
func (b *logbook) raw(first, count int, body, checkpoint []byte) {
	data := b.segments[b.names[len(b.names)-1]][b.at:]
	copy(data, "DPTYFRM1")
	binary.BigEndian.PutUint64(data[8:], uint64(first))
	binary.BigEndian.PutUint32(data[16:], uint32(count))
	binary.BigEndian.PutUint32(data[20:], uint32(len(body)))
	binary.BigEndian.PutUint32(data[24:], uint32(len(checkpoint)))
	used := 40 + copy(data[40:], append(body, checkpoint...))
	mend(data)
	b.at += (used + 4095) / 4096 * 4096
}

// mendHeader makes the checksum of a segment's header right again.
func mendHeader(segment []byte) {
	binary.BigEndian.PutUint32(segment[4092:], crc32.Checksum(segment[:4092], crc32.MakeTable(crc32.Castagnoli)))
}

func (b *logbook) files() fstest.MapFS {
	m := fstest.MapFS{}
	for name, data := range b.segments {
		m[name] = &fstest.MapFile{Data: data, Mode: 0o600}
	}
	return m
}
