package sftp_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/deputymesh/deputy/proxy/sshd/sftp"
)

// Kinds and codes, as the draft names them.
const (
	fxpInit, fxpVersion, fxpOpen, fxpClose, fxpRead, fxpWrite, fxpLstat, fxpFstat, fxpSetstat, fxpFsetstat = 1, 2, 3, 4, 5, 6, 7, 8, 9, 10
	fxpOpendir, fxpReaddir, fxpRemove, fxpMkdir, fxpRmdir, fxpRealpath, fxpStat, fxpRename, fxpReadlink    = 11, 12, 13, 14, 15, 16, 17, 18, 19
	fxpSymlink, fxpStatus, fxpHandle, fxpData, fxpName, fxpAttrs, fxpExtended, fxpExtendedReply            = 20, 101, 102, 103, 104, 105, 200, 201
	fxOK, fxEOF, fxNoSuchFile, fxDenied, fxFailure, fxUnsupported                                          = 0, 1, 2, 3, 4, 8
	forRead, forWrite, atEnd, create, truncate, onlyNew                                                    = uint32(1), uint32(2), uint32(4), uint32(8), uint32(16), uint32(32)
	posixRename, hardlink, statvfs, lsetstat, limits, expandPath, copyData, fsync, fstatvfs                = "posix-rename@openssh.com", "hardlink@openssh.com", "statvfs@openssh.com", "lsetstat@openssh.com", "limits@openssh.com", "expand-path@openssh.com", "copy-data", "fsync@openssh.com", "fstatvfs@openssh.com"
)

// noAttrs are attributes that say nothing.
const noAttrs = uint32(0)

// packet writes one: texts with their length, numbers as they are.
func packet(kind byte, fields ...any) []byte {
	p := []byte{0, 0, 0, 0, kind}
	for _, f := range fields {
		switch f := f.(type) {
		case uint32:
			p = binary.BigEndian.AppendUint32(p, f)
		case uint64:
			p = binary.BigEndian.AppendUint64(p, f)
		case string:
			p = append(binary.BigEndian.AppendUint32(p, uint32(len(f))), f...)
		case []byte:
			p = append(p, f...)
		default:
			panic(fmt.Sprintf("a field of type %T", f))
		}
	}
	binary.BigEndian.PutUint32(p, uint32(len(p)-4))
	return p
}

// answer is what came back.
type answer struct {
	kind byte
	id   uint32
	body []byte
}

func (a answer) code() uint32 {
	if a.kind != fxpStatus {
		return ^uint32(0)
	}
	return binary.BigEndian.Uint32(a.body)
}

// text is the first text of the answer: the handle, the data, a status's message, the first name.
func (a answer) text() string {
	b := a.body
	if a.kind == fxpStatus || a.kind == fxpName {
		b = b[4:]
	}
	n := binary.BigEndian.Uint32(b)
	return string(b[4 : 4+n])
}

func (a answer) String() string {
	if a.kind == fxpStatus {
		return fmt.Sprintf("status %d %q", a.code(), a.text())
	}
	return fmt.Sprintf("kind %d %q", a.kind, a.body[:min(len(a.body), 200)])
}

func readAnswer(r io.Reader) (answer, error) {
	var head [9]byte
	if _, err := io.ReadFull(r, head[:5]); err != nil {
		return answer{}, err
	}
	n := binary.BigEndian.Uint32(head[:4])
	body := make([]byte, n-1)
	if _, err := io.ReadFull(r, body); err != nil {
		return answer{}, err
	}
	if head[4] == fxpVersion {
		return answer{kind: head[4], body: body}, nil
	}
	return answer{head[4], binary.BigEndian.Uint32(body), body[4:]}, nil
}

// judge decides by a function, and writes down what it was asked.
type judge struct {
	allow func(sftp.Access) bool
	// durable, if set, is called where a decision becomes durable.
	durable func(sftp.Request) error

	mu     sync.Mutex
	events []event // guarded by mu
}

type event struct {
	what string // decided, refused, used, completed
	r    sftp.Request
	out  sftp.Outcome
	why  string
}

func (j *judge) add(e event) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.events = append(j.events, e)
}

func (j *judge) all(what string) (out []event) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, e := range j.events {
		if e.what == what {
			out = append(out, e)
		}
	}
	return out
}

func (j *judge) one(t testing.TB, what, text string) event {
	t.Helper()
	for _, e := range j.all(what) {
		if strings.Contains(e.r.Text, text) {
			return e
		}
	}
	t.Fatalf("nothing %s of %q among %+v", what, text, j.all(what))
	return event{}
}

func (j *judge) Decide(_ context.Context, r sftp.Request) (sftp.Grant, error) {
	if len(r.Access) == 0 {
		return nil, errors.New("a request that does nothing (record: rec-1)")
	}
	for _, a := range r.Access {
		if !j.allow(a) {
			return nil, j.Refuse(context.Background(), r, a.Verb+" on "+a.Path+" isn't allowed")
		}
	}
	j.add(event{what: "decided", r: r})
	g := &grant{j: j, r: r}
	if !r.ReadOnly {
		if err := g.Wait(context.Background()); err != nil {
			return nil, err
		}
	}
	return g, nil
}

func (j *judge) Refuse(_ context.Context, r sftp.Request, reason string) error {
	j.add(event{what: "refused", r: r, why: reason})
	return errors.New(reason + " (record: rec-refused)")
}

type grant struct {
	j       *judge
	r       sftp.Request
	durable bool
}

func (g *grant) RecordID() string { return "rec-decided" }

func (g *grant) Use() error {
	if !g.r.ReadOnly && !g.durable {
		return errors.New("used before it was durable")
	}
	g.j.add(event{what: "used", r: g.r})
	return nil
}

func (g *grant) Wait(context.Context) error {
	if !g.durable && g.j.durable != nil {
		if err := g.j.durable(g.r); err != nil {
			return err
		}
	}
	g.durable = true
	return nil
}

func (g *grant) Completed(_ context.Context, o sftp.Outcome) {
	g.j.add(event{what: "completed", r: g.r, out: o})
}

// room is an agent in front of a server: OpenSSH's, or one that the test speaks for.
type room struct {
	t     testing.TB
	judge *judge
	// open may be touched, shut may not, and both lie in dir.
	dir, open, shut string

	agent  net.Conn // the agent's end
	nextID uint32
	ended  chan error
	server *exec.Cmd
}

// newRoom begins a session with OpenSSH's server, in which what lies in open is allowed.
func newRoom(t testing.TB) *room {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	r := &room{t: t, dir: dir, open: dir + "/open", shut: dir + "/shut"}
	for _, d := range []string{r.open, r.shut} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	r.judge = &judge{allow: func(a sftp.Access) bool { return strings.HasPrefix(a.Path+"/", r.open+"/") }}
	r.begin(r.openSSH())
	if a := r.init(); a.kind != fxpVersion {
		t.Fatalf("no version: %s", a)
	}
	return r
}

// serverChannel is the server's input and output, closed as a channel is.
type serverChannel struct {
	in  io.WriteCloser
	out io.ReadCloser
}

func (c serverChannel) Read(b []byte) (int, error)  { return c.out.Read(b) }
func (c serverChannel) Write(b []byte) (int, error) { return c.in.Write(b) }
func (c serverChannel) CloseWrite() error           { return c.in.Close() }
func (c serverChannel) Close() error                { return errors.Join(c.in.Close(), c.out.Close()) }

func (r *room) openSSH() sftp.Target {
	r.t.Helper()
	r.server = exec.Command("/usr/lib/openssh/sftp-server", "-e", "-d", r.open)
	in, err := r.server.StdinPipe()
	if err != nil {
		r.t.Fatal(err)
	}
	out, err := r.server.StdoutPipe()
	if err != nil {
		r.t.Fatal(err)
	}
	if err := r.server.Start(); err != nil {
		r.t.Fatalf("OpenSSH's sftp-server (Debian's openssh-sftp-server): %v", err)
	}
	r.t.Cleanup(func() { _ = r.server.Process.Kill(); _ = r.server.Wait() })
	return serverChannel{in, out}
}

// begin puts Serve between the agent and a target. Its end is waited for.
func (r *room) begin(target sftp.Target) {
	ctx, cancel := context.WithCancel(context.Background())
	inside, outside := net.Pipe()
	r.agent, r.ended = outside, make(chan error, 1)
	_ = outside.SetDeadline(time.Now().Add(time.Minute))
	done := make(chan struct{})
	go func() {
		defer close(done)
		err := sftp.Serve(ctx, inside, target, r.judge)
		_ = inside.Close()
		r.ended <- err
	}()
	r.t.Cleanup(func() {
		cancel()
		_ = outside.Close()
		_ = target.Close()
		<-done
	})
}

func (r *room) init() answer {
	r.t.Helper()
	r.send(packet(fxpInit, uint32(3)))
	return r.receive()
}

func (r *room) send(p []byte) {
	r.t.Helper()
	if _, err := r.agent.Write(p); err != nil {
		r.t.Fatalf("sending: %v", err)
	}
}

func (r *room) receive() answer {
	r.t.Helper()
	a, err := readAnswer(r.agent)
	if err != nil {
		r.t.Fatalf("receiving: %v", err)
	}
	return a
}

// ask sends a request and takes its answer.
func (r *room) ask(kind byte, fields ...any) answer {
	r.t.Helper()
	r.nextID++
	r.send(packet(kind, append([]any{r.nextID}, fields...)...))
	a := r.receive()
	if a.id != r.nextID {
		r.t.Fatalf("an answer to %d, want %d: %s", a.id, r.nextID, a)
	}
	return a
}

// must is ask where the answer has to be of a kind, or the status OK.
func (r *room) must(want byte, kind byte, fields ...any) answer {
	r.t.Helper()
	a := r.ask(kind, fields...)
	if a.kind != want || want == fxpStatus && a.code() != fxOK {
		r.t.Fatalf("a request of the kind %d %q: %s", kind, fields, a)
	}
	return a
}

// end waits for Serve.
func (r *room) end() error {
	r.t.Helper()
	select {
	case err := <-r.ended:
		return err
	case <-time.After(20 * time.Second):
		r.t.Fatal("the session goes on")
		return nil
	}
}

func (r *room) write(path, text string) string {
	r.t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		r.t.Fatal(err)
	}
	return path
}

func (r *room) link(text, path string) string {
	r.t.Helper()
	if err := os.Symlink(text, path); err != nil {
		r.t.Fatal(err)
	}
	return path
}

func (r *room) read(path string) string {
	r.t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		r.t.Fatal(err)
	}
	return string(b)
}

func there(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// tree is all that lies under a folder, with what is in it, so that two states can be compared.
func tree(t testing.TB, dir string) string {
	t.Helper()
	var out strings.Builder
	err := filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		fmt.Fprintf(&out, "%s %s %d", path, info.Mode(), info.ModTime().UnixNano())
		switch {
		case info.Mode().IsRegular():
			b, _ := os.ReadFile(path)
			fmt.Fprintf(&out, " %q", b)
		case info.Mode()&os.ModeSymlink != 0:
			text, _ := os.Readlink(path)
			fmt.Fprintf(&out, " -> %s", text)
		}
		fmt.Fprintln(&out)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out.String()
}
