package sftp_test

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/deputymesh/deputy/proxy/sshd/sftp"
)

func TestFilesAndFoldersWork(t *testing.T) {
	r := newRoom(t)
	r.must(fxpStatus, fxpMkdir, "folder", uint32(4), uint32(0o700))
	h := r.must(fxpHandle, fxpOpen, "folder/file", forRead|forWrite|create|truncate, uint32(4), uint32(0o640)).text()
	r.must(fxpStatus, fxpWrite, h, uint64(0), "hello, ")
	r.must(fxpStatus, fxpWrite, h, uint64(7), "world")
	if got := r.must(fxpData, fxpRead, h, uint64(0), uint32(1<<20)).text(); got != "hello, world" {
		t.Errorf("read %q", got)
	}
	if a := r.ask(fxpRead, h, uint64(12), uint32(10)); a.code() != fxEOF {
		t.Errorf("behind the end: %s", a)
	}
	r.must(fxpStatus, fxpFsetstat, h, uint32(1), uint64(5))
	r.must(fxpStatus, fxpExtended, fsync, h)
	r.must(fxpAttrs, fxpFstat, h)
	r.must(fxpExtendedReply, fxpExtended, fstatvfs, h)
	r.must(fxpStatus, fxpClose, h)
	if r.read(r.open+"/folder/file") != "hello" {
		t.Error("the file holds something else")
	}
	if e := r.judge.one(t, "completed", "sftp-open"); e.out != (sftp.Outcome{Status: "ok", Read: 12, Written: 12}) {
		t.Errorf("the outcome: %+v", e.out)
	}
	if e := r.judge.one(t, "decided", "sftp-open"); e.r.Text != `sftp-open "`+r.open+`/folder/file", asked for as "folder/file" for reading and writing, created if missing, emptied` {
		t.Errorf("the decision: %s", e.r.Text)
	}
	r.must(fxpStatus, fxpSymlink, "file", r.open+"/folder/link")
	r.must(fxpStatus, fxpExtended, hardlink, r.open+"/folder/file", r.open+"/folder/second")
	r.must(fxpStatus, fxpExtended, lsetstat, r.open+"/folder/link", uint32(8), uint32(1), uint32(2))
	d := r.must(fxpHandle, fxpOpendir, "folder").text()
	if a := r.must(fxpName, fxpReaddir, d); !strings.Contains(string(a.body), "second") {
		t.Errorf("the listing: %s", a)
	}
	if a := r.ask(fxpReaddir, d); a.code() != fxEOF {
		t.Errorf("behind the listing: %s", a)
	}
	r.must(fxpStatus, fxpClose, d)
	if e := r.judge.one(t, "completed", "sftp-opendir"); e.out.Read == 0 {
		t.Errorf("the outcome: %+v", e.out)
	}
	if got := r.must(fxpName, fxpRealpath, ".").text(); got != r.open {
		t.Errorf("at home in %q", got)
	}
	r.must(fxpExtendedReply, fxpExtended, statvfs, ".")
	if a := r.must(fxpExtendedReply, fxpExtended, limits); len(a.body) != 32 || a.body[31] != 128 {
		t.Errorf("the limits: %s", a)
	}
	for _, ext := range []string{copyData, "users-groups-by-id@openssh.com", "home-directory", "x@example.org"} {
		if a := r.ask(fxpExtended, ext, "anything", uint64(0)); a.code() != fxUnsupported {
			t.Errorf("%s: %s", ext, a)
		}
	}
	_ = r.agent.Close()
	if err := r.end(); err != nil {
		t.Errorf("the end: %v", err)
	}
}

// What the target can and nobody here knows isn't offered.
func TestOnlyKnownExtensionsAreOffered(t *testing.T) {
	r := &room{t: t, judge: &judge{}}
	r.open = t.TempDir()
	r.begin(r.openSSH())
	a := r.init()
	for _, name := range []string{posixRename, statvfs, fstatvfs, hardlink, fsync, lsetstat, limits, expandPath} {
		if !strings.Contains(string(a.body), name) {
			t.Errorf("%s isn't offered", name)
		}
	}
	for _, name := range []string{copyData, "users-groups", "home-directory"} {
		if strings.Contains(string(a.body), name) {
			t.Errorf("%s is offered", name)
		}
	}
}

func TestAHandleDoesWhatItWasOpenedFor(t *testing.T) {
	r := newRoom(t)
	mine := r.write(r.open+"/mine", "mine")
	reading := r.must(fxpHandle, fxpOpen, mine, forRead, noAttrs).text()
	writing := r.must(fxpHandle, fxpOpen, mine, forWrite, noAttrs).text()
	listing := r.must(fxpHandle, fxpOpendir, r.open).text()
	closed := r.must(fxpHandle, fxpOpen, mine, forRead|forWrite, noAttrs).text()
	r.must(fxpStatus, fxpClose, closed)
	for name, a := range map[string]answer{
		"a write on one for reading":      r.ask(fxpWrite, reading, uint64(0), "x"),
		"a shortening of one for reading": r.ask(fxpFsetstat, reading, uint32(1), uint64(0)),
		"a sync of one for reading":       r.ask(fxpExtended, fsync, reading),
		"a read on one for writing":       r.ask(fxpRead, writing, uint64(0), uint32(4)),
		"a read of a folder":              r.ask(fxpRead, listing, uint64(0), uint32(4)),
		"a listing of a file":             r.ask(fxpReaddir, reading),
		"a write on a closed one":         r.ask(fxpWrite, closed, uint64(0), "x"),
		"a second closing":                r.ask(fxpClose, closed),
		"the target's own name":           r.ask(fxpRead, "\x00\x00\x00\x00", uint64(0), uint32(4)),
	} {
		if a.code() != fxDenied || !strings.Contains(a.text(), "rec-refused") {
			t.Errorf("%s: %s", name, a)
		}
	}
	if r.read(mine) != "mine" {
		t.Error("it was written")
	}
	if again := r.must(fxpHandle, fxpOpen, mine, forRead, noAttrs).text(); again == closed {
		t.Error("the name of a closed file was used again")
	}
}

func TestOpenFilesAreBounded(t *testing.T) {
	r := newRoom(t)
	mine := r.write(r.open+"/mine", "mine")
	var last string
	for i := range 128 {
		if a := r.ask(fxpOpen, mine, forRead, noAttrs); a.kind == fxpHandle {
			last = a.text()
		} else {
			t.Fatalf("%d: %s", i, a)
		}
	}
	for _, a := range []answer{r.ask(fxpOpen, mine, forRead, noAttrs), r.ask(fxpOpendir, r.open)} {
		if a.code() != fxDenied || !strings.Contains(a.text(), "128 files are open already") {
			t.Errorf("one more: %s", a)
		}
	}
	r.must(fxpStatus, fxpClose, last)
	r.must(fxpHandle, fxpOpen, mine, forRead, noAttrs)
}

// Nothing that opens or changes something reaches the target before its decision is durable, and nothing is told of what was only looked at.
func TestNothingHappensThatIsNotOnRecord(t *testing.T) {
	r := newRoom(t)
	mine := r.write(r.open+"/mine", "mine")
	r.judge.durable = func(sftp.Request) error { return errors.New("this couldn't be recorded (record: none)") }
	before := tree(t, r.dir)
	for name, a := range map[string]answer{
		"open":     r.ask(fxpOpen, r.open+"/new", forWrite|create, noAttrs),
		"read":     r.ask(fxpOpen, mine, forRead, noAttrs),
		"empty":    r.ask(fxpOpen, mine, forWrite|truncate, noAttrs),
		"mkdir":    r.ask(fxpMkdir, r.open+"/new", noAttrs),
		"remove":   r.ask(fxpRemove, mine),
		"rename":   r.ask(fxpRename, mine, r.open+"/new"),
		"symlink":  r.ask(fxpSymlink, mine, r.open+"/new"),
		"setstat":  r.ask(fxpSetstat, mine, uint32(4), uint32(0)),
		"stat":     r.ask(fxpStat, mine),
		"missing":  r.ask(fxpStat, r.open+"/none/deeper"),
		"opendir":  r.ask(fxpOpendir, r.open),
		"realpath": r.ask(fxpRealpath, mine),
	} {
		if a.code() != fxDenied || !strings.Contains(a.text(), "couldn't be recorded") {
			t.Errorf("%s: %s", name, a)
		}
	}
	if tree(t, r.dir) != before {
		t.Error("something changed")
	}
	for _, e := range r.judge.all("used") {
		if !e.r.ReadOnly {
			t.Errorf("left for the target: %+v", e.r)
		}
	}
}

// What was written is on record where the session ends before the file is closed.
func TestWhatWasDoneIsOnRecordWhenASessionEnds(t *testing.T) {
	r := newRoom(t)
	h := r.must(fxpHandle, fxpOpen, "file", forRead|forWrite|create, noAttrs).text()
	r.must(fxpStatus, fxpWrite, h, uint64(0), "some text")
	r.must(fxpData, fxpRead, h, uint64(0), uint32(4))
	_ = r.agent.Close()
	if err := r.end(); err != nil {
		t.Errorf("the end: %v", err)
	}
	if e := r.judge.one(t, "completed", "sftp-open"); e.out != (sftp.Outcome{Status: "cancelled", Read: 4, Written: 9}) {
		t.Errorf("the outcome: %+v", e.out)
	}
	if err := r.server.Wait(); err != nil {
		t.Errorf("the server: %v", err)
	}
}

// Reads and writes are pipelined, and keep their order and ids.
func TestReadsAndWritesArePipelined(t *testing.T) {
	r := newRoom(t)
	h := r.must(fxpHandle, fxpOpen, "file", forRead|forWrite|create, noAttrs).text()
	sent := make(chan error, 1)
	go func() {
		var all []byte
		for i := range uint32(300) {
			all = append(all, packet(fxpWrite, 1000+i, h, uint64(i), "x")...)
		}
		for i := range uint32(300) {
			all = append(all, packet(fxpRead, 2000+i, h, uint64(i), uint32(1))...)
		}
		all = append(all, packet(fxpClose, uint32(3000), h)...)
		_, err := r.agent.Write(all)
		sent <- err
	}()
	var ids []uint32
	for range 601 {
		ids = append(ids, r.receive().id)
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	if !slices.IsSorted(ids) || ids[0] != 1000 || ids[600] != 3000 {
		t.Errorf("the answers: %v", ids)
	}
	if e := r.judge.one(t, "completed", "sftp-open"); e.out != (sftp.Outcome{Status: "ok", Read: 300, Written: 300}) {
		t.Errorf("the outcome: %+v", e.out)
	}
}

// A packet that can't be read ends the session, with a reason on record, and nothing of it reaches the target.
func TestWhatIsNotSFTPEndsTheSession(t *testing.T) {
	long := strings.Repeat("a", 4097)
	for name, c := range map[string]struct {
		sent []byte
		half bool // and then nothing
	}{
		"an empty packet":           {sent: []byte{0, 0, 0, 0}, half: true},
		"a packet too long":         {sent: []byte{0, 4, 0, 1, fxpWrite}},
		"a packet longer than all":  {sent: []byte{255, 255, 255, 255, fxpWrite}},
		"half a length":             {sent: []byte{0, 0}, half: true},
		"half a packet":             {sent: packet(fxpRemove, uint32(1), "x")[:10], half: true},
		"a packet with more":        {sent: packet(fxpRemove, uint32(1), "x", uint32(0))},
		"a packet with less":        {sent: packet(fxpRename, uint32(1), "x")},
		"no id":                     {sent: packet(fxpRemove, []byte{1, 2})},
		"a text beyond the packet":  {sent: packet(fxpRemove, uint32(1), uint32(1<<31), []byte("x"))},
		"a path too long":           {sent: packet(fxpRemove, uint32(1), long)},
		"a handle too long":         {sent: packet(fxpClose, uint32(1), long[:257])},
		"more data than a write is": {sent: packet(fxpWrite, uint32(1), "1", uint64(0), strings.Repeat("x", 256<<10-1023))},
		"an unknown kind":           {sent: packet(21, uint32(1), "x")},
		"an answer":                 {sent: packet(fxpStatus, uint32(1), uint32(0), "", "")},
		"a second beginning":        {sent: packet(fxpInit, uint32(3))},
		"unknown flags":             {sent: packet(fxpOpen, uint32(1), "x", uint32(0x40), noAttrs)},
		"unknown attributes":        {sent: packet(fxpSetstat, uint32(1), "x", uint32(0x10), uint32(1))},
		"attributes without end":    {sent: packet(fxpSetstat, uint32(1), "x", uint32(1<<31), uint32(1<<31))},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRoom(t)
			r.write(r.open+"/x", "text")
			before := tree(t, r.dir)
			// The session may have ended before the last byte.
			_, _ = r.agent.Write(c.sent)
			if c.half {
				_ = r.agent.Close()
			}
			if err := r.end(); err == nil || !strings.Contains(err.Error(), "not SFTP") {
				t.Errorf("the end: %v", err)
			}
			if e := r.judge.all("refused"); len(e) != 1 || e[0].r.Kind != sftp.Session {
				t.Errorf("on record: %+v", e)
			}
			_ = r.server.Wait()
			if tree(t, r.dir) != before {
				t.Error("something changed")
			}
		})
	}
	for name, first := range map[string][]byte{
		"another packet first": packet(fxpRemove, uint32(1), "x"),
		"an older version":     packet(fxpInit, uint32(2)),
		"half a beginning":     packet(fxpInit, []byte{0, 0}),
	} {
		t.Run(name, func(t *testing.T) {
			r := &room{t: t, judge: &judge{}}
			r.open = t.TempDir()
			r.begin(r.openSSH())
			r.send(first)
			if err := r.end(); err == nil || !strings.Contains(err.Error(), "not SFTP") {
				t.Errorf("the end: %v", err)
			}
		})
	}
}

func TestAnAgentThatSaysNothingEndsNothing(t *testing.T) {
	r := &room{t: t, judge: &judge{}}
	r.open = t.TempDir()
	r.begin(r.openSSH())
	_ = r.agent.Close()
	if err := r.end(); err != nil {
		t.Errorf("the end: %v", err)
	}
}

// The largest packets pass both ways.
func TestTheLargestPacketsPass(t *testing.T) {
	r := newRoom(t)
	h := r.must(fxpHandle, fxpOpen, "file", forRead|forWrite|create, noAttrs).text()
	text := strings.Repeat("0123456789abcdef", (256<<10-1024)/16)
	r.must(fxpStatus, fxpWrite, h, uint64(0), text)
	if got := r.must(fxpData, fxpRead, h, uint64(0), uint32(1<<31)).text(); got != text {
		t.Errorf("read %d bytes", len(got))
	}
	if _, err := os.Stat(r.open + "/file"); err != nil {
		t.Error(err)
	}
}
