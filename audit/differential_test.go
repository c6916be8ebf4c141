package audit_test

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/internal/testverifier"
)

// agreement holds both verifiers to the same status for one log after the other.
type agreement struct {
	t      *testing.T
	second *testverifier.Verifier
	dir    string
	keys   *audit.Keys
	file   string // of keys
	counts [4]int
}

func newAgreement(t *testing.T, keys *audit.Keys) *agreement {
	t.Helper()
	a := &agreement{t: t, second: testverifier.Start(t), dir: t.TempDir(), keys: keys}
	a.file = filepath.Join(t.TempDir(), "audit-keys.json")
	raw, err := json.Marshal(keys)
	if err == nil {
		err = os.WriteFile(a.file, raw, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func (a *agreement) write(m fstest.MapFS) {
	a.t.Helper()
	old, err := filepath.Glob(filepath.Join(a.dir, "*"))
	if err != nil {
		a.t.Fatal(err)
	}
	for _, f := range old {
		if err := os.Remove(f); err != nil {
			a.t.Fatal(err)
		}
	}
	for name, f := range m {
		if err := os.WriteFile(filepath.Join(a.dir, name), f.Data, 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
}

// check returns the status that both gave.
func (a *agreement) check(what string, m fstest.MapFS, opts audit.VerifyOptions) int {
	a.t.Helper()
	a.write(m)
	lo := testverifier.LogOptions{Pruned: opts.Pruned}
	for i, s := range opts.Seen {
		name := filepath.Join(filepath.Dir(a.file), fmt.Sprintf("%d.checkpoint", i))
		if err := os.WriteFile(name, s, 0o600); err != nil {
			a.t.Fatal(err)
		}
		lo.Seen = append(lo.Seen, name)
	}
	report, err := audit.Verify(fs.FS(m), a.keys, opts)
	ours, theirs := statusOf(report, err), a.second.Log(a.t, a.dir, a.file, lo)
	if ours != theirs.Status {
		detail := fmt.Sprint(err)
		if report != nil {
			detail = fmt.Sprintf("%v torn %v", report.Problems, report.Torn)
		}
		a.t.Errorf("%s: ours %d, theirs %d\nours: %.600s\ntheirs: %.600s", what, ours, theirs.Status, detail, theirs.Detail)
	}
	a.counts[ours]++
	return ours
}

// Whatever somebody does to a log without its key, two verifiers, one of them written from the specification alone, find
// the same.
func TestTwoVerifiersFindTheSameTampering(t *testing.T) {
	t.Parallel()
	_, line := bookKey(bookOrigin, "log key")
	whole := newTale(t, nil).whole()
	a := newAgreement(t, whole.w.keys(line))
	base := whole.files()
	if a.check("as it is", base, audit.VerifyOptions{}) != 0 {
		t.Fatal("the untouched log doesn't verify")
	}
	open := newTale(t, nil)
	open.first()
	single := open.files()
	m := &mutations{rand.New(rand.NewPCG(20261120, 4)), a}

	// A byte in every structure: each field of the header and of every frame's header, records, checkpoints, zeros.
	for name, f := range base {
		m.flips(name, base, offsetsOf(f.Data))
	}
	m.flips(zerothSegment, single, offsetsOf(single[zerothSegment].Data))
	m.mended(base, 60)
	m.moves(base)
	m.moves(single)
	for _, size := range []int{0, 1, 4095, 4096, 8192, 12288, 40960, bookSegment - 4096, bookSegment - 1, bookSegment + 4096} {
		for name := range base {
			c := copyOf(base)
			c[name].Data = append(c[name].Data, make([]byte, 8192)...)[:size]
			a.check(fmt.Sprintf("%s of %d bytes", name, size), c, audit.VerifyOptions{})
			a.check("the same, pruned", c, audit.VerifyOptions{Pruned: true})
		}
	}
	for name := range base {
		c := copyOf(base)
		delete(c, name)
		a.check("without "+name, c, audit.VerifyOptions{})
		a.check("pruned, without "+name, c, audit.VerifyOptions{Pruned: true})
		for n, seen := range whole.seen {
			a.check(fmt.Sprintf("checkpoint %d seen, without %s", n, name), c, audit.VerifyOptions{Pruned: n%2 == 0, Seen: [][]byte{seen}})
		}
	}
	t.Logf("%d logs hold, %d don't, %d have a torn tail", a.counts[0], a.counts[2], a.counts[3])
	if a.counts[2] < 300 || a.counts[3] < 10 || a.counts[1] != 0 {
		t.Errorf("%v: the tampering doesn't ask enough", a.counts)
	}
}

// The same for records that were damaged before they were hashed and signed, so that the schema is asked behind a good root.
func TestTwoVerifiersReadDamagedRecordsTheSame(t *testing.T) {
	t.Parallel()
	_, line := bookKey(bookOrigin, "log key")
	base := newTale(t, nil)
	a := newAgreement(t, base.w.keys(line))
	m := &mutations{rand.New(rand.NewPCG(20261120, 5)), a}
	for i := range 500 {
		// A tale of its own, but with the credential verified once for all.
		s := &tale{logbook: newLogbook(), w: base.w, evidence: base.evidence}
		s.says(base.chainText)
		var what string
		s.rewrite = map[int]func(string) string{m.IntN(21): func(r string) string {
			out := m.text(r)
			what = fmt.Sprintf("round %d: %.300s\nfrom %.300s", i, out, r)
			return out
		}}
		s.whole()
		a.check(what, s.files(), audit.VerifyOptions{})
	}
	t.Logf("%d logs hold, %d don't", a.counts[0], a.counts[2])
	if a.counts[0] < 15 || a.counts[2] < 300 {
		t.Errorf("%v: the damage doesn't ask enough", a.counts)
	}
}

// text changes a record's JSON.
func (m *mutations) text(s string) string {
	pick := func(list ...string) string { return list[m.IntN(len(list))] }
	members := regexp.MustCompile(`"[a-z_0-9]+":`).FindAllStringIndex(s, -1)
	at := members[m.IntN(len(members))]
	name, rest := s[at[0]:at[1]], s[at[1]:]
	end := regexp.MustCompile(`^("[^"]*"|[0-9]+|true|false|\[[^][{}]*\])`).FindString(rest)
	other := pick(`""`, `"x"`, `0`, `-1`, `1.0`, `9223372036854775808`, `null`, `true`, `false`, `[]`, `[""]`, `{}`, `"sha256:`+strings.Repeat("0", 64)+`"`, `"2026-11-20T12:02:00Z"`,
		`"2026-11-20T12:02:00.5Z"`, `"2026-11-20T12:02:00+00:00"`, `"ok"`, `"allow"`, `"refuse"`, `"accepted"`, `"user"`, `"agent"`, `"attested"`, `"verified"`, `"broker"`, `"`+bookID(9)+`"`, `"`+bookSource+`"`, `"https://h"`)
	switch m.IntN(8) {
	case 0: // without the member
		return strings.Replace(s[:at[0]]+strings.TrimPrefix(rest[len(end):], ","), ",}", "}", 1)
	case 1: // twice
		return s[:at[0]] + name + other + "," + s[at[0]:]
	case 2: // by another name
		return s[:at[0]] + pick(`"x":`, strings.ToUpper(name), `"class":`, `"chain":`, `"\u0069d":`) + rest
	case 3: // one more
		return s[:at[0]] + pick(`"dev":`, `"decision":`, `"txn":`, `"us":`, `"reason":`, `"class":`, `"policy_digest":`, `"since":`, `"rows":`, `"acr":`) + other + "," + s[at[0]:]
	case 4:
		i := m.IntN(len(s))
		return s[:i] + pick(" ", "\t", "\\", "\"", "{", "}", "0", "e1", "\x00", "\xff", "\u2028", ",") + s[i:]
	default:
		if end == "" {
			return s[:at[1]] + other + "," + name + rest
		}
		return s[:at[1]] + other + rest[len(end):]
	}
}

type mutations struct {
	*rand.Rand
	a *agreement
}

// offsetsOf samples every structure of a segment.
func offsetsOf(data []byte) []int {
	out := []int{0, 8, 15, 16, 22, 24, 31, 32, 35, 36, 39, 40, 72, 200, 400, 3000, 4091, 4092, 4095}
	for n := range 20 {
		at := nthFrame(data, n)
		if at < 0 {
			break
		}
		body, cp := int(binary.BigEndian.Uint32(data[at+20:])), int(binary.BigEndian.Uint32(data[at+24:]))
		end := at + 40 + body + cp
		for _, d := range []int{0, 7, 8, 15, 16, 19, 20, 23, 24, 27, 28, 31, 32, 35, 36, 39, 40, 43, 44, 60, 40 + body/2, 40 + body - 1, 40 + body, 40 + body + 30, 40 + body + cp - 90, 40 + body + cp - 2} {
			out = append(out, at+d)
		}
		out = append(out, end, (end+4095)/4096*4096-1)
	}
	return append(out, len(data)-1)
}

func nthFrame(data []byte, n int) int {
	for at := 4096; at+40 < len(data); at += 4096 {
		if string(data[at:at+8]) == "DPTYFRM1" {
			if n == 0 {
				return at
			}
			n--
		}
	}
	return -1
}

func (m *mutations) flips(name string, base fstest.MapFS, offsets []int) {
	for _, at := range offsets {
		if at >= len(base[name].Data) {
			continue
		}
		c := copyOf(base)
		c[name].Data[at] ^= 1 << m.IntN(8)
		if what := fmt.Sprintf("%s, byte %d", name, at); m.a.check(what, c, audit.VerifyOptions{}) == 0 {
			m.a.t.Errorf("%s: nobody found it", what)
		}
	}
}

// mended changes a byte and makes the checksums right again.
func (m *mutations) mended(base fstest.MapFS, rounds int) {
	names := []string{zerothSegment, secondSegment}
	for range rounds {
		c := copyOf(base)
		name := names[m.IntN(len(names))]
		data := c[name].Data
		at := nthFrame(data, m.IntN(5))
		if at < 0 || m.IntN(6) == 0 {
			i := m.IntN(600)
			data[i] ^= 1 << m.IntN(8)
			mendHeader(data)
			m.a.check(fmt.Sprintf("%s, byte %d of the header, mended", name, i), c, audit.VerifyOptions{Pruned: m.IntN(2) == 0})
			continue
		}
		used := 40 + int(binary.BigEndian.Uint32(data[at+20:])) + int(binary.BigEndian.Uint32(data[at+24:]))
		i := []int{8 + m.IntN(20), 40 + m.IntN(used-40), used - 1 - m.IntN(100)}[m.IntN(3)]
		data[at+i] ^= 1 << m.IntN(8)
		if i < 28 && i >= 20 { // lengths: the checksum of what they say may run off the file
			continue
		}
		mend(data[at:])
		m.a.check(fmt.Sprintf("%s, byte %d of the frame at %d, mended", name, i, at), c, audit.VerifyOptions{})
	}
}

// moves swaps, repeats, wipes and drops frames, segments and the records in a frame.
func (m *mutations) moves(base fstest.MapFS) {
	for name := range base {
		for n := 0; nthFrame(base[name].Data, n+1) > 0; n++ {
			first, second := nthFrame(base[name].Data, n), nthFrame(base[name].Data, n+1)
			for _, move := range []struct {
				what string
				do   func(data []byte)
			}{
				{"dropped", func(d []byte) { copy(d[first:], d[second:]) }},
				{"wiped", func(d []byte) { clear(d[first:second]) }},
				{"wiped from there on", func(d []byte) { clear(d[first:]) }},
				{"its first block wiped", func(d []byte) { clear(d[first : first+4096]) }},
				{"repeated", func(d []byte) { copy(d[second:], append([]byte(nil), d[first:len(d)-(second-first)]...)) }},
				{"put behind the next one", func(d []byte) {
					one := append([]byte(nil), d[first:second]...)
					copy(d[first:], d[second:second+4096])
					copy(d[first+4096:], one)
				}},
				{"its first two records swapped", func(d []byte) {
					l1 := int(binary.BigEndian.Uint32(d[first+40:]))
					if int(binary.BigEndian.Uint32(d[first+16:])) < 2 {
						clear(d[first+40 : first+80])
						return
					}
					l2 := int(binary.BigEndian.Uint32(d[first+44+l1:]))
					one, two := append([]byte(nil), d[first+40:first+44+l1]...), append([]byte(nil), d[first+44+l1:first+48+l1+l2]...)
					copy(d[first+40:], append(two, one...))
					mend(d[first:])
				}},
			} {
				c := copyOf(base)
				move.do(c[name].Data)
				m.a.check(fmt.Sprintf("%s: frame %d %s", name, n, move.what), c, audit.VerifyOptions{})
			}
		}
	}
	if len(base) == 2 {
		c := copyOf(base)
		c[zerothSegment], c[secondSegment] = c[secondSegment], c[zerothSegment]
		m.a.check("segments swapped", c, audit.VerifyOptions{})
		c = copyOf(base)
		c[thirdSegment] = c[secondSegment]
		m.a.check("a segment twice", c, audit.VerifyOptions{})
		c = copyOf(base)
		c[thirdSegment] = &fstest.MapFile{Data: make([]byte, 4096)}
		m.a.check("a short blank segment", c, audit.VerifyOptions{})
	}
}
