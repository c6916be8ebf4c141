package sshd_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/deputymesh/deputy/proxy"
	"github.com/deputymesh/deputy/proxy/sshd"
)

func (w *world) sftp(batch string, args ...string) result {
	w.t.Helper()
	return w.run(batch, "sftp", append([]string{"-b", "-", "-F", w.config()}, append(args, "web")...)...)
}

func TestSFTPCopiesBothWays(t *testing.T) {
	w := newWorld(t, ops)
	here, back := filepath.Join(w.dir, "here"), filepath.Join(w.dir, "back")
	text := strings.Repeat("a line of text\n", 200_000)
	if err := os.WriteFile(here, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, thereAndBack := range map[string]func(there string) result{
		"scp": func(there string) result {
			w.must(w.run("", "scp", "-F", w.config(), here, "web:"+there))
			return w.run("", "scp", "-F", w.config(), "web:"+there, back)
		},
		"scp -p": func(there string) result {
			w.must(w.run("", "scp", "-p", "-F", w.config(), here, "web:"+there))
			return w.run("", "scp", "-p", "-F", w.config(), "web:"+there, back)
		},
		"sftp": func(there string) result {
			return w.sftp("put " + here + " " + there + "\nget " + there + " " + back + "\n")
		},
	} {
		t.Run(name, func(t *testing.T) {
			_ = os.Remove(back)
			there := w.host.Files + "/" + strings.ReplaceAll(name, " ", "")
			w.must(thereAndBack(there))
			if read(t, there) != text || read(t, back) != text {
				t.Error("a copy differs")
			}
			put := w.ledger.await(t, "completed", `sftp-open "`+there+`" for writing`)
			if put.out.Status != "ok" || put.out.Sent != int64(len(text)) || put.out.Bytes != 0 {
				t.Errorf("the outcome of writing: %+v", put.out)
			}
			got := w.ledger.await(t, "completed", `sftp-open "`+there+`" for reading`)
			if got.out.Status != "ok" || got.out.Bytes != int64(len(text)) || got.out.Sent != 0 {
				t.Errorf("the outcome of reading: %+v", got.out)
			}
		})
	}
}

func TestSFTPCopiesTrees(t *testing.T) {
	w := newWorld(t, ops)
	from := filepath.Join(w.dir, "tree")
	for i := range 12 {
		dir := filepath.Join(from, fmt.Sprint(i%3), "sub")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), []byte(strings.Repeat(fmt.Sprint(i), 10_000)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	back := filepath.Join(w.dir, "back")
	w.must(w.run("", "scp", "-r", "-F", w.config(), from, "web:"+w.host.Files+"/one"))
	w.must(w.run("", "scp", "-r", "-F", w.config(), "web:"+w.host.Files+"/one", back))
	w.must(w.run("", "diff", "-r", from, back))
	w.must(w.sftp("put -r " + from + " " + w.host.Files + "/two\nget -r " + w.host.Files + "/two " + back + "2\n"))
	w.must(w.run("", "diff", "-r", from, back+"2"))
	w.must(w.run("", "scp", "-F", w.config(), "web:"+w.host.Files+"/one/0/sub/*", w.dir))
	if read(t, filepath.Join(w.dir, "9")) != read(t, filepath.Join(from, "0", "sub", "9")) {
		t.Error("a copy differs")
	}
}

// A refusal reaches a person: OpenSSH's client shows no text of an answer, but what is said beside it.
func TestARefusedFileNamesItsRecord(t *testing.T) {
	w := newWorld(t, []string{"files"})
	in, out := w.host.Write("readable", []byte("text")), w.host.Write("closed", []byte("the secret"))
	back := filepath.Join(w.dir, "back")
	w.must(w.sftp("get " + in + " " + back + "\n"))
	if read(t, back) != "text" {
		t.Error("the copy differs")
	}
	here := filepath.Join(w.dir, "here")
	if err := os.WriteFile(here, []byte("mine"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(out, w.host.Files+"/readable-link"); err != nil {
		t.Fatal(err)
	}
	got := filepath.Join(w.dir, "got")
	for name, r := range map[string]result{
		"scp":             w.run("", "scp", "-F", w.config(), "web:"+out, got),
		"scp there":       w.run("", "scp", "-F", w.config(), here, "web:"+in),
		"sftp":            w.sftp("get " + out + " " + got + "\n"),
		"sftp by a link":  w.sftp("get " + w.host.Files + "/readable-link " + got + "\n"),
		"sftp there":      w.sftp("put " + here + " " + in + "\n"),
		"sftp rm":         w.sftp("rm " + in + "\n"),
		"sftp ls":         w.sftp("ls " + w.host.Files + "\n"),
		"sftp mkdir":      w.sftp("mkdir " + in + "-folder\n"),
		"sftp rename":     w.sftp("rename " + in + " " + out + "\n"),
		"sftp ln -s":      w.sftp("ln -s " + in + " " + in + "-more\n"),
		"sftp chmod":      w.sftp("chmod 600 " + in + "\n"),
		"sftp, recursive": w.sftp("get -r " + w.host.Files + " " + got + "\n"),
	} {
		if r.code == 0 || !strings.Contains(r.err, "deputy: ") || !strings.Contains(r.err, "record: rec-refused") {
			t.Errorf("%s: %s", name, r)
		}
	}
	if exists(got) || read(t, in) != "text" || read(t, out) != "the secret" || exists(in+"-folder") {
		t.Error("something was done")
	}
}

// A terminal changes what passes it, so that the target would read other packets than were decided.
func TestSFTPDoesNotRunOnATerminal(t *testing.T) {
	w := newWorld(t, ops)
	if r := w.ssh("", "-tt", "-s", "web", "sftp"); r.code == 0 || !strings.Contains(r.err, "doesn't run on a terminal") {
		t.Errorf("%s", r)
	}
	if len(w.ledger.all("forwarded")) != 0 {
		t.Error("it was started")
	}
}

func TestWhatIsNotSFTPEndsItInWords(t *testing.T) {
	w := newWorld(t, ops)
	r := w.ssh("GET / HTTP/1.1\r\n\r\n", "-s", "web", "sftp")
	if r.code != 126 || !strings.Contains(r.err, "is not SFTP") || !strings.Contains(r.err, "rec-refused") || strings.Contains(r.err, "the target closed") {
		t.Errorf("%s", r)
	}
	w.ledger.await(t, "completed", "subsystem sftp")
}

// Whoever may no longer use the account opens nothing more.
func TestFilesAreClosedToWhoLostTheRole(t *testing.T) {
	w := newWorld(t, ops, func(c *sshd.Config) { c.Accounts[0].Roles = ops })
	file := w.host.Write("file", []byte("text"))
	s, err := w.client().NewSession()
	if err != nil {
		t.Fatal(err)
	}
	in, err := s.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := s.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.RequestSubsystem("sftp"); err != nil {
		t.Fatal(err)
	}
	stat := func(id byte) []byte {
		p := append([]byte{0, 0, 0, byte(9 + len(file)), 17, 0, 0, 0, id, 0, 0, 0, byte(len(file))}, file...)
		if _, err := in.Write(p); err != nil {
			t.Fatal(err)
		}
		return sftpPacket(t, out)
	}
	_, _ = in.Write([]byte{0, 0, 0, 5, 1, 0, 0, 0, 3})
	sftpPacket(t, out)
	if p := stat(1); p[0] != 105 {
		t.Errorf("with the role: %q", p)
	}
	w.ledger.become("other")
	if p := stat(2); p[0] != 101 || !strings.Contains(string(p), "rec-refused") {
		t.Errorf("without it: %q", p)
	}
}

func sftpPacket(t testing.TB, r io.Reader) []byte {
	t.Helper()
	head := make([]byte, 4)
	if _, err := io.ReadFull(r, head); err != nil {
		t.Fatal(err)
	}
	body := make([]byte, binary.BigEndian.Uint32(head))
	if _, err := io.ReadFull(r, body); err != nil {
		t.Fatal(err)
	}
	return body
}

// A revocation ends a transfer within a second, and what had passed by then is on record.
func TestARevokedTransferEndsWithinASecond(t *testing.T) {
	for name, batch := range map[string]func(w *world) string{
		"there": func(w *world) string {
			return "put " + sparse(t, filepath.Join(w.dir, "big")) + " " + w.host.Files + "/there\n"
		},
		"back": func(w *world) string {
			return "get " + sparse(t, w.host.Write("big", nil)) + " " + filepath.Join(w.dir, "back") + "\n"
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, ops)
			cmd := w.command("sftp", "-b", "-", "-F", w.config(), "web")
			var said bytes.Buffer
			cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(batch(w)), &said, &said
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			w.ledger.await(t, "forwarded", "sftp-open")
			awaitSize(t, map[string]string{"there": w.host.Files + "/there", "back": filepath.Join(w.dir, "back")}[name])
			began := time.Now()
			w.ledger.last().cancel(&proxy.Ended{Class: proxy.ClassRevoked, Reason: "the task is revoked"})
			err := cmd.Wait()
			if took := time.Since(began); took > time.Second {
				t.Errorf("it took %s", took)
			}
			if err == nil || !strings.Contains(said.String(), "this session has ended: the task is revoked") {
				t.Errorf("%v: %s", err, &said)
			}
			if e := w.ledger.await(t, "completed", "sftp-open"); e.out.Status != "cut" || e.out.Sent+e.out.Bytes == 0 {
				t.Errorf("the outcome: %+v", e.out)
			}
			w.ledger.await(t, "closed", "ended the task is revoked")
		})
	}
}

// A file that is open when its session ends, or when its target is gone, wasn't closed by the agent.
func TestAnOpenFileIsCutWithItsSessionAndItsTarget(t *testing.T) {
	for _, by := range []string{"the session", "the target"} {
		w := newWorld(t, ops)
		c := w.client()
		s, err := c.NewSession()
		if err != nil {
			t.Fatal(err)
		}
		in, err := s.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := s.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := s.RequestSubsystem("sftp"); err != nil {
			t.Fatal(err)
		}
		_, _ = in.Write([]byte{0, 0, 0, 5, 1, 0, 0, 0, 3})
		sftpPacket(t, out)
		file := w.host.Write("file", []byte("text"))
		open := append([]byte{0, 0, 0, byte(17 + len(file)), 3, 0, 0, 0, 1, 0, 0, 0, byte(len(file))}, file...)
		_, _ = in.Write(append(open, 0, 0, 0, 1, 0, 0, 0, 0)) // to read
		if p := sftpPacket(t, out); p[0] != 102 {
			t.Fatalf("opened: %q", p)
		}
		if by == "the session" {
			w.ledger.last().cancel(&proxy.Ended{Class: proxy.ClassRevoked, Reason: "revoked"})
		} else {
			killer, err := c.NewSession()
			if err != nil {
				t.Fatal(err)
			}
			_ = killer.Run(`kill -9 "$(ps -o ppid= -p $$ | tr -d ' ')"`)
		}
		for _, what := range []string{"sftp-open", "subsystem"} {
			if e := w.ledger.await(t, "completed", what); e.out.Status != "cut" {
				t.Errorf("%s ended by %s: %+v", what, by, e.out)
			}
		}
	}
}

// sparse makes a file that takes longer than the test to copy, and little room.
func sparse(t testing.TB, path string) string {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o644)
	if err == nil {
		err = errors.Join(f.Truncate(1<<36), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// awaitSize waits until a transfer is well on its way.
func awaitSize(t testing.TB, path string) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if info, err := os.Stat(path); err == nil && info.Size() > 1<<20 {
			return
		}
	}
	t.Fatalf("nothing is written to %s", path)
}
