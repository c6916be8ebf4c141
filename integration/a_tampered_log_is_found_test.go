package integration_test

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"hash/crc32"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/internal/testmesh"
)

// Somebody with the disk, the format and time, but without the log's key, changes the proxy's log, checksums and all: the
// verifier finds it. Somebody who has the key as well, or puts an older copy back, is found by whoever kept a checkpoint, and a
// proxy that is told of it doesn't start on it.
func TestATamperedLogIsFound(t *testing.T) {
	m := testmesh.Start(t)
	alice := m.Login(t, "alice")
	work := func(n int, word string) {
		t.Helper()
		c := alice.Agents(t, testmesh.Nested, m.PG.Bin("psql"), "-XAtq")
		c.Stdin = strings.Repeat("SELECT name, '"+word+"' AS "+word+" FROM customers WHERE id = 1;\n", n)
		if r := testmesh.Exec(t, c); r.Code != 0 || strings.Count(r.Stdout, word) != n {
			t.Fatalf("psql: %s", r)
		}
	}
	verify := func(dir string, flags ...string) testmesh.Result {
		t.Helper()
		return testmesh.Exec(t, testmesh.Command{Args: append(append([]string{testmesh.Deputy(t), "audit", "verify", "--keys", m.KeysFile()}, flags...), dir)})
	}
	checkpoint := func(dir string) string {
		t.Helper()
		saved := t.TempDir()
		if r := verify(dir, "--save", saved); r.Code != 0 {
			t.Fatalf("a log as it is: %s", r)
		}
		return filepath.Join(saved, "test.example_proxy_main.checkpoint")
	}
	log := m.LogDir("proxy")
	stopped := func() string {
		t.Helper()
		m.Proxy.Stop()
		return copyLog(t, log)
	}

	work(3, "early")
	early := stopped()
	m.Proxy.Begin()
	eventually(t, alice)
	work(250, "later")
	whole := stopped()
	seen := checkpoint(whole)
	// The same log, gone on from its older copy with other contents, by the same key.
	putLog(t, early, log)
	m.Proxy.Begin()
	eventually(t, alice)
	work(250, "forked")
	fork := stopped()
	m.Broker.Stop()
	broker := copyLog(t, m.LogDir("broker"))
	m.Broker.Begin()
	if names := segmentsOf(t, whole); len(names) < 2 || len(segmentsOf(t, fork)) < 2 {
		t.Fatalf("%d files, want at least two", len(names))
	}

	// What a verifier finds by itself.
	for name, change := range map[string]func(first, last *segment){
		"a byte, with its checksum": func(first, _ *segment) {
			f := first.frames()[3]
			at := bytes.Index(first.data[f.off:], []byte(`"scrubbed":"`))
			if at < 0 {
				t.Fatal("no statement there")
			}
			first.data[f.off+at+14] ^= 0x20
			for _, f := range first.frames() {
				first.seal(f)
			}
		},
		"two records swapped": func(first, _ *segment) {
			f := first.frameWith(2)
			a, b := first.records(f)[0], first.records(f)[1]
			swapped := append(append([]byte(nil), first.data[b.from:b.to]...), first.data[a.from:a.to]...)
			copy(first.data[a.from:], swapped)
			first.seal(f)
		},
		"two frames swapped": func(first, _ *segment) {
			a, b := first.twins()
			x, y := bytes.Clone(first.data[a.off:a.off+a.size]), bytes.Clone(first.data[b.off:b.off+b.size])
			copy(first.data[a.off:], y)
			copy(first.data[b.off:], x)
		},
		"a frame taken out": func(first, _ *segment) {
			f := first.frames()[4]
			copy(first.data[f.off:], first.data[f.off+f.size:])
		},
		"a frame wiped":                  func(first, _ *segment) { f := first.frames()[4]; clear(first.data[f.off : f.off+f.size]) },
		"an older frame of the same log": func(first, last *segment) { last.append(first, first.frames()[2]) },
		"a frame of another log":         func(_, last *segment) { s := open(t, broker, 0); last.append(s, s.frames()[0]) },
		"a frame of the fork in the tail": func(_, last *segment) {
			s := open(t, fork, len(segmentsOf(t, fork))-1)
			f := s.frames()
			last.append(s, f[len(f)-1])
		},
		"the fork's frames in the middle": func(first, _ *segment) {
			s := open(t, fork, 0)
			f := s.frames()
			from := f[len(f)/2].off
			copy(first.data[from:], s.data[from:])
		},
		"the fork's second file":    func(_, last *segment) { last.data = open(t, fork, 1).data },
		"a header of another place": func(first, last *segment) { copy(last.data[:4096], first.data[:4096]) },
		"a file of no length":       func(_, last *segment) { last.data = nil },
		"a first file of no length": func(first, _ *segment) { first.data = nil },
		"half a file":               func(first, _ *segment) { first.data = first.data[:len(first.data)/2] },
	} {
		t.Run(name, func(t *testing.T) {
			dir := copyLog(t, whole)
			names := segmentsOf(t, dir)
			first, last := open(t, dir, 0), open(t, dir, len(names)-1)
			change(first, last)
			first.save(t)
			last.save(t)
			r := verify(dir)
			if name == "a file of no length" { // the last one may be a file that was just made
				r = verify(dir, "--seen", seen)
			}
			if r.Code != 2 || !strings.Contains(r.Stdout, "PROBLEM") {
				t.Errorf("it was not found: %s", r)
			}
		})
	}
	t.Run("pruned, which isn't tampering", func(t *testing.T) {
		dir := copyLog(t, whole)
		remove(t, segmentsOf(t, dir)[0])
		if r := verify(dir); r.Code != 2 || !strings.Contains(r.Stdout, "starts_late") {
			t.Errorf("without --pruned: %s", r)
		}
		// What remains is whole. That the credentials of sessions that go on stood in the part that is gone is said, see the specification.
		r := verify(dir, "--pruned", "--seen", seen)
		for line := range strings.Lines(r.Stdout) {
			if strings.Contains(line, "PROBLEM") && !strings.Contains(line, "stands before it") {
				t.Errorf("with --pruned: %s", line)
			}
		}
	})
	t.Run("a byte anywhere", func(t *testing.T) {
		raw, err := os.ReadFile(m.KeysFile())
		if err != nil {
			t.Fatal(err)
		}
		keys, err := audit.ParseKeys(raw)
		if err != nil {
			t.Fatal(err)
		}
		kept, err := os.ReadFile(seen)
		if err != nil {
			t.Fatal(err)
		}
		random := mathrand.New(mathrand.NewPCG(1, 2))
		// Only of the start, where a credential is: reading the whole log a hundred times takes too long.
		dir := copyLog(t, early)
		s := open(t, dir, 0)
		f := s.frames()
		end := f[len(f)-1].off + f[len(f)-1].size
		cp := []byte(strings.TrimSpace(string(s.checkpoint(f[len(f)-1]))) + "\n")
		if bytes.Equal(cp, kept) {
			t.Fatal("the early log is the whole one")
		}
		for range 120 {
			at := random.IntN(end)
			bit := byte(1) << random.IntN(8)
			s.data[at] ^= bit
			s.save(t)
			report, err := audit.Verify(os.DirFS(dir), keys, audit.VerifyOptions{Seen: [][]byte{cp}})
			if err == nil && report.Err() == nil {
				t.Errorf("bit %d of byte %d was changed, and it was not found", bit, at)
			}
			s.data[at] ^= bit
		}
	})

	// What looks whole, save to whoever kept a checkpoint.
	for name, c := range map[string]struct {
		dir string
		cut func(last *segment)
	}{
		"put back to an older copy": {early, nil},
		"gone on from an older one": {fork, nil},
		"cut at the end of a frame": {whole, func(last *segment) { f := last.frames(); clear(last.data[f[len(f)-1].off:]) }},
		"cut in the last frame":     {whole, func(last *segment) { f := last.frames(); clear(last.data[f[len(f)-1].off+100:]) }},
	} {
		t.Run(name, func(t *testing.T) {
			dir := copyLog(t, c.dir)
			if c.cut != nil {
				last := open(t, dir, len(segmentsOf(t, dir))-1)
				c.cut(last)
				last.save(t)
			}
			// The limit that the specification and the threat model name. 3: it ends in an unfinished frame.
			if r := verify(dir); r.Code != 0 && r.Code != 3 {
				t.Errorf("without a checkpoint that somebody kept: %s", r)
			}
			if r := verify(dir, "--seen", seen); r.Code != 2 || !strings.Contains(r.Stdout, "rolled_back") {
				t.Errorf("it was not found: %s", r)
			}
			putLog(t, dir, log)
			if c.cut != nil {
				return
			}
			told := filepath.Join(m.Dir, "proxy", "seen.checkpoint")
			copyFile(t, seen, told)
			m.EditConfig(t, "proxy", func(c string) string {
				if strings.Contains(c, "seen:") {
					return c
				}
				return strings.Replace(c, "\naudit:\n", "\naudit:\n  seen: seen.checkpoint\n", 1)
			})
			r := testmesh.Exec(t, m.Proxy.Command())
			if r.Code == 0 || !strings.Contains(r.Stderr, "rolled back") {
				t.Errorf("a proxy that knows the checkpoint started: %s", r)
			}
		})
	}
	t.Run("another key of the same name", func(t *testing.T) {
		putLog(t, whole, log)
		key := filepath.Join(m.Dir, "proxy", "audit.key")
		old, err := os.ReadFile(key)
		if err != nil {
			t.Fatal(err)
		}
		other, err := audit.GenerateKey(rand.Reader, "test.example/proxy/main")
		if err != nil {
			t.Fatal(err)
		}
		edit(t, key, func([]byte) []byte { return []byte(other.Private() + "\n") })
		if r := testmesh.Exec(t, m.Proxy.Command()); r.Code == 0 || !strings.Contains(r.Stderr, "was the log key replaced?") {
			t.Errorf("a proxy whose key was swapped started on the log of another: %s", r)
		}
		parsed, err := audit.ParseKey(string(old))
		if err != nil {
			t.Fatal(err)
		}
		m.EditConfig(t, "proxy", func(c string) string {
			return strings.Replace(c, "\naudit:\n", "\naudit:\n  old_keys: [\""+parsed.Public()+"\"]\n", 1)
		})
		m.Proxy.Begin()
		m.Proxy.Stop()
		if r := verify(log); r.Code != 2 || !strings.Contains(r.Stdout, "signature") {
			t.Errorf("signed by a key that isn't on the list: %s", r)
		}
		edit(t, m.KeysFile(), func(raw []byte) []byte {
			keys, err := audit.ParseKeys(raw)
			if err != nil {
				t.Fatal(err)
			}
			keys.Logs = append(keys.Logs, other.Public())
			out, err := keys.MarshalJSON()
			if err != nil {
				t.Fatal(err)
			}
			return out
		})
		if r := verify(log, "--seen", seen); r.Code != 0 {
			t.Errorf("an exchange of keys that is on the list: %s", r)
		}
	})
}

// segment is a file of a log, as an attacker sees it.
type segment struct {
	path string
	data []byte
}

type part struct{ off, size int } // a frame

type stretch struct{ from, to int } // a record with its length

func segmentsOf(t *testing.T, dir string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*.segment"))
	if err != nil || len(names) == 0 {
		t.Fatalf("no log in %s: %v", dir, err)
	}
	// One that was only being prepared holds nothing.
	for len(names) > 1 {
		raw, err := os.ReadFile(names[len(names)-1])
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Count(raw, []byte{0}) < len(raw) {
			break
		}
		names = names[:len(names)-1]
	}
	return names
}

func open(t *testing.T, dir string, n int) *segment {
	t.Helper()
	path := segmentsOf(t, dir)[n]
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return &segment{path, raw}
}

func (s *segment) save(t *testing.T) {
	t.Helper()
	if err := os.WriteFile(s.path, s.data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func (s *segment) lengths(f part) (body, checkpoint int) {
	h := s.data[f.off:]
	return int(binary.BigEndian.Uint32(h[20:])), int(binary.BigEndian.Uint32(h[24:]))
}

// frames finds the frames as the specification says.
func (s *segment) frames() []part {
	var out []part
	for at := 4096; at+40 <= len(s.data) && bytes.Equal(s.data[at:at+8], []byte("DPTYFRM1")); {
		body, cp := s.lengths(part{off: at})
		f := part{at, (40 + body + cp + 4095) / 4096 * 4096}
		out = append(out, f)
		at += f.size
	}
	return out
}

// seal makes the checksums of a frame right.
func (s *segment) seal(f part) {
	table := crc32.MakeTable(crc32.Castagnoli)
	body, cp := s.lengths(f)
	h := s.data[f.off:]
	binary.BigEndian.PutUint32(h[28:], crc32.Checksum(h[40:40+body+cp], table))
	binary.BigEndian.PutUint32(h[36:], crc32.Checksum(h[:36], table))
}

func (s *segment) records(f part) []stretch {
	body, _ := s.lengths(f)
	var out []stretch
	for at := f.off + 40; at < f.off+40+body; {
		n := int(binary.BigEndian.Uint32(s.data[at:]))
		out = append(out, stretch{at, at + 4 + n})
		at += 4 + n
	}
	return out
}

func (s *segment) checkpoint(f part) []byte {
	body, cp := s.lengths(f)
	return s.data[f.off+40+body : f.off+40+body+cp]
}

// frameWith is a frame of at least n records.
func (s *segment) frameWith(n int) part {
	for _, f := range s.frames() {
		if len(s.records(f)) >= n {
			return f
		}
	}
	panic("no frame of several records")
}

// twins are two neighbours of one size.
func (s *segment) twins() (part, part) {
	f := s.frames()
	for i := 3; i+1 < len(f); i++ {
		if f[i].size == f[i+1].size {
			return f[i], f[i+1]
		}
	}
	panic("no two frames of one size")
}

// append puts a frame of another file behind the last one.
func (s *segment) append(from *segment, f part) {
	all := s.frames()
	last := all[len(all)-1]
	copy(s.data[last.off+last.size:], from.data[f.off:f.off+f.size])
}

// putLog puts a copy where a role's log is; owner and mode are those of the folder.
func putLog(t *testing.T, from, to string) {
	t.Helper()
	old, err := filepath.Glob(filepath.Join(to, "*.segment"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range old {
		remove(t, f)
	}
	files, err := filepath.Glob(filepath.Join(from, "*.segment"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no log in %s: %v", from, err)
	}
	for _, f := range files {
		copyFile(t, f, filepath.Join(to, filepath.Base(f)))
	}
}

// copyFile makes a copy that belongs to whom the folder belongs.
func copyFile(t *testing.T, from, to string) {
	t.Helper()
	raw, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	uid, gid := ownerOf(t, filepath.Dir(to))
	if err := os.Chown(to, uid, gid); err != nil {
		t.Fatal(err)
	}
}
