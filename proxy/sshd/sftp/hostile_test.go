package sftp_test

import (
	"encoding/binary"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/deputymesh/deputy/proxy/sshd/sftp"
)

// script is a target that the test speaks for.
type script struct {
	net.Conn
	t testing.TB
}

type pipe struct{ net.Conn }

func (p pipe) CloseWrite() error { return nil }

// newScript begins a session with it; everything is allowed.
func newScript(t testing.TB) (*room, *script) {
	t.Helper()
	r := &room{t: t, judge: &judge{allow: func(sftp.Access) bool { return true }}}
	inside, outside := net.Pipe()
	_ = outside.SetDeadline(time.Now().Add(time.Minute))
	t.Cleanup(func() { _ = outside.Close() })
	r.begin(pipe{inside})
	return r, &script{outside, t}
}

// request is what the target is asked next.
func (s *script) request() answer {
	s.t.Helper()
	a, err := readAnswer(s)
	if err != nil {
		s.t.Fatalf("the target is asked nothing more: %v", err)
	}
	return a
}

func (s *script) say(p []byte) { _, _ = s.Write(p) }

func (s *script) begin(r *room) {
	s.t.Helper()
	r.send(packet(fxpInit, uint32(3)))
	if _, err := s.Read(make([]byte, 9)); err != nil {
		s.t.Fatal(err)
	}
	s.say(packet(fxpVersion, uint32(3), posixRename, "1", "x@example.org", "1", statvfs, "1"))
	if a := r.receive(); a.kind != fxpVersion || !strings.Contains(string(a.body), posixRename) || strings.Contains(string(a.body), "example") || strings.Contains(string(a.body), statvfs) {
		s.t.Fatalf("the version: %s", a)
	}
}

// name answers a request for a path.
func (s *script) name(id uint32, path string) {
	s.say(packet(fxpName, id, uint32(1), path, "", noAttrs))
}

// A path that leads elsewhere by the time that it is open is closed again, and the agent gets nothing.
func TestAPathThatMovesWhileItIsOpenedIsRefused(t *testing.T) {
	r, s := newScript(t)
	s.begin(r)
	go func() { r.send(packet(fxpOpen, uint32(7), "/open/file", forRead, noAttrs)) }()
	s.name(s.request().id, "/open/file")
	s.name(s.request().id, "/open/file")
	open := s.request()
	if open.kind != fxpOpen {
		t.Fatalf("asked for %s", open)
	}
	s.say(packet(fxpHandle, open.id, "its handle"))
	s.name(s.request().id, "/shut/file")
	end := s.request()
	if end.kind != fxpClose || end.text() != "its handle" {
		t.Fatalf("asked for %s", end)
	}
	s.say(packet(fxpStatus, end.id, uint32(fxOK), "", ""))
	if a := r.receive(); a.code() != fxDenied || !strings.Contains(a.text(), "leads somewhere else now (record: rec-refused)") {
		t.Errorf("%s", a)
	}
	if e := r.judge.one(t, "completed", "sftp-open"); e.out.Status != "error" || e.out.Code != "moved" {
		t.Errorf("the outcome: %+v", e.out)
	}
}

// A decision may take long. What a path leads to by then is what counts: nothing is done where it leads elsewhere.
func TestAPathThatMovesWhileItIsDecidedIsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		ask []byte
		// paths are what the target is asked for, and says when it is asked first and, after the decision, again.
		first, again []string
	}{
		"open":    {packet(fxpOpen, uint32(7), "/open/f", forWrite|create|truncate, noAttrs), []string{"/open/f"}, []string{"/shut/f"}},
		"remove":  {packet(fxpRemove, uint32(7), "/open/f"), []string{"/open"}, []string{"/shut"}},
		"mkdir":   {packet(fxpMkdir, uint32(7), "/open/f", noAttrs), []string{"/open"}, []string{"/shut"}},
		"setstat": {packet(fxpSetstat, uint32(7), "/open/f", uint32(1), uint64(0)), []string{"/open/f"}, []string{"/shut/f"}},
		"rename":  {packet(fxpRename, uint32(7), "/open/f", "/open/sub/g"), []string{"/open", "/open/sub"}, []string{"/open", "/shut"}},
		"symlink": {packet(fxpSymlink, uint32(7), "/open/f", "/open/sub/g"), []string{"/open/sub", "/open/f"}, []string{"/open/sub", "/shut/f"}},
		"replace": {packet(fxpExtended, uint32(7), posixRename, "/open/f", "/open/sub/g"), []string{"/open", "/open/sub"}, []string{"/shut"}},
	} {
		t.Run(name, func(t *testing.T) {
			r, s := newScript(t)
			s.begin(r)
			r.judge.durable = func(sftp.Request) error {
				r.judge.add(event{what: "durable"})
				return nil
			}
			go func() { r.send(c.ask) }()
			for _, path := range c.first {
				s.name(s.request().id, path)
			}
			next := s.request()
			if next.kind == fxpLstat { // whether a rename replaces something
				s.say(packet(fxpStatus, next.id, uint32(fxNoSuchFile), "", ""))
				next = s.request()
			}
			if len(r.judge.all("durable")) != 1 {
				t.Error("it was resolved again before it was decided")
			}
			for i, path := range c.again {
				if i > 0 {
					next = s.request()
				}
				if next.kind != fxpRealpath {
					t.Fatalf("asked for %s", next)
				}
				s.name(next.id, path)
			}
			if a := r.receive(); a.code() != fxDenied || !strings.Contains(a.text(), "leads somewhere else now (record: rec-refused)") {
				t.Errorf("%s", a)
			}
			if e := r.judge.all("completed"); len(e) != 1 || e[0].out.Status != "not_sent" {
				t.Errorf("the outcome: %+v", e)
			}
		})
	}
}

// Where a target resolves nothing that isn't there, files can be made all the same.
func TestATargetThatResolvesOnlyWhatIsThere(t *testing.T) {
	r, s := newScript(t)
	s.begin(r)
	missing := func(want string) {
		a := s.request()
		if a.kind != fxpRealpath || a.text() != want {
			t.Errorf("asked for %s", a)
		}
		s.say(packet(fxpStatus, a.id, uint32(fxNoSuchFile), "", ""))
	}
	go func() {
		for range 2 { // before and after the decision
			missing("/open/new")
			s.name(s.request().id, "/open")
			s.say(packet(fxpStatus, s.request().id, uint32(fxNoSuchFile), "", "")) // no link either
		}
		open := s.request()
		if open.kind != fxpOpen || open.text() != "/open/new" {
			t.Errorf("asked for %s", open)
		}
		s.say(packet(fxpHandle, open.id, "h"))
		s.name(s.request().id, "/open/new")
	}()
	r.must(fxpHandle, fxpOpen, "/open/new", forWrite|create, noAttrs)
}

// A target that resolves a path to what can't be decided decides nothing.
func TestAPathWithoutOneCanonicalFormIsRefused(t *testing.T) {
	r, s := newScript(t)
	s.begin(r)
	for _, found := range []string{"", "relative", "/a/../b", "/a//b", "/a/", "/a\nb", "/a\xffb"} {
		go func() { r.send(packet(fxpOpen, uint32(7), "/x", forRead, noAttrs)) }()
		s.name(s.request().id, found)
		if a := r.receive(); a.code() != fxDenied || !strings.Contains(a.text(), "can't be decided") {
			t.Errorf("%q: %s", found, a)
		}
	}
}

// An answer that doesn't fit its request ends the session.
func TestATargetThatDoesNotSpeakSFTPEndsTheSession(t *testing.T) {
	list := func(name string) func(uint32) []byte {
		return func(id uint32) []byte { return packet(fxpName, id, uint32(1), name, "", noAttrs) }
	}
	for name, c := range map[string]struct {
		ask    []byte // "H" stands for the handle
		answer func(id uint32) []byte
	}{
		"another id":            {packet(fxpRead, uint32(9), "1", uint64(0), uint32(4)), func(id uint32) []byte { return packet(fxpData, id+1, "text") }},
		"more than asked for":   {packet(fxpRead, uint32(9), "1", uint64(0), uint32(4)), func(id uint32) []byte { return packet(fxpData, id, "text!") }},
		"another kind":          {packet(fxpRead, uint32(9), "1", uint64(0), uint32(4)), func(id uint32) []byte { return packet(fxpHandle, id, "text") }},
		"done, without data":    {packet(fxpRead, uint32(9), "1", uint64(0), uint32(4)), func(id uint32) []byte { return packet(fxpStatus, id, uint32(fxOK), "", "") }},
		"data for a write":      {packet(fxpWrite, uint32(9), "1", uint64(0), "x"), func(id uint32) []byte { return packet(fxpData, id, "x") }},
		"an unknown status":     {packet(fxpWrite, uint32(9), "1", uint64(0), "x"), func(id uint32) []byte { return packet(fxpStatus, id, uint32(9), "", "") }},
		"half a status":         {packet(fxpWrite, uint32(9), "1", uint64(0), "x"), func(id uint32) []byte { return packet(fxpStatus, id, []byte{0, 0}) }},
		"a packet too long":     {packet(fxpWrite, uint32(9), "1", uint64(0), "x"), func(uint32) []byte { return []byte{0, 4, 0, 1, fxpData} }},
		"a name with a slash":   {packet(fxpReaddir, uint32(9), "2"), list("../x")},
		"an empty name":         {packet(fxpReaddir, uint32(9), "2"), list("")},
		"more names than bytes": {packet(fxpReaddir, uint32(9), "2"), func(id uint32) []byte { return packet(fxpName, id, uint32(1<<31)) }},
		"two paths":             {packet(fxpStat, uint32(9), "/x"), func(id uint32) []byte { return packet(fxpName, id, uint32(2), "/a", "", noAttrs, "/b", "", noAttrs) }},
		"no path":               {packet(fxpStat, uint32(9), "/x"), func(id uint32) []byte { return packet(fxpName, id, uint32(0)) }},
	} {
		t.Run(name, func(t *testing.T) {
			r, s := newScript(t)
			s.begin(r)
			said := make(chan struct{})
			go func() {
				defer close(said)
				for range 2 {
					a := s.request()
					for ; a.kind == fxpRealpath; a = s.request() {
						s.name(a.id, "/x")
					}
					s.say(packet(fxpHandle, a.id, "h"))
					s.name(s.request().id, "/x")
				}
				s.say(c.answer(s.request().id))
			}()
			r.must(fxpHandle, fxpOpen, "/x", forRead|forWrite, noAttrs)
			r.must(fxpHandle, fxpOpendir, "/x")
			r.send(c.ask)
			<-said
			// The target's channel is closed at once; the agent's is its own.
			buf := make([]byte, 1)
			if _, err := s.Read(buf); err == nil {
				t.Error("the target is asked more")
			}
			_ = r.agent.Close()
			if err := r.end(); err == nil || !strings.Contains(err.Error(), "the target's answer") {
				t.Errorf("the end: %v", err)
			}
		})
	}
	for name, version := range map[string][]byte{
		"another version": packet(fxpVersion, uint32(6)), "no version": packet(fxpStatus, uint32(3)), "half a version": packet(fxpVersion, uint32(3), uint32(7)),
		"nothing": nil,
	} {
		t.Run(name, func(t *testing.T) {
			r, s := newScript(t)
			r.send(packet(fxpInit, uint32(3)))
			_, _ = s.Read(make([]byte, 9))
			if version != nil {
				s.say(version)
			} else {
				_ = s.Close()
			}
			if err := r.end(); err == nil || !strings.Contains(err.Error(), "the target's answer") {
				t.Errorf("the end: %v", err)
			}
		})
	}
}

// A target that answers nothing, or an agent that reads nothing, holds no more than a bounded number of requests.
func TestRequestsUnderWayAreBounded(t *testing.T) {
	r, s := newScript(t)
	s.begin(r)
	go func() {
		s.name(s.request().id, "/x")
		s.name(s.request().id, "/x")
		s.say(packet(fxpHandle, s.request().id, "h"))
		s.name(s.request().id, "/x")
	}()
	h := r.must(fxpHandle, fxpOpen, "/x", forRead, noAttrs).text()
	stuck := make(chan int, 1)
	_ = r.agent.SetWriteDeadline(time.Now().Add(2 * time.Second))
	go func() {
		n := 0
		for ; n < 1000; n++ {
			if _, err := r.agent.Write(packet(fxpRead, uint32(n), h, uint64(n), uint32(4))); err != nil {
				break
			}
		}
		stuck <- n
	}()
	got := 0
	var last answer
	for got < 256 {
		last = s.request()
		got++
	}
	// Those that were taken are waited for; no more are read. (One may lie in the reader's hands.)
	if n := <-stuck; n < 256 || n > 257 {
		t.Errorf("%d reads were taken", n)
	}
	// One answer makes room for one.
	go func() { s.say(packet(fxpData, last.id, "text")) }()
	if a := r.receive(); a.kind != fxpData || binary.BigEndian.Uint32(a.body) != 4 {
		t.Errorf("%s", a)
	}
	if a := s.request(); a.kind != fxpRead {
		t.Errorf("%s", a)
	}
}
