package sftp_test

import (
	"os"
	"strings"
	"testing"

	"github.com/deputymesh/deputy/proxy/sshd/sftp"
)

// Nothing that an agent sends touches what it may not, or says anything about it: not by links, not by "..", not under a second name.
func TestNothingLeadsOutOfWhatIsAllowed(t *testing.T) {
	r := newRoom(t)
	secret := r.write(r.shut+"/secret", "the secret")
	mine := r.write(r.open+"/mine", "mine")
	r.link(r.shut, r.open+"/out")
	r.link("../shut/secret", r.open+"/leaf")
	r.link(r.shut+"/new", r.open+"/dangling")
	r.link(r.shut+"/no/where", r.open+"/nowhere")
	if err := os.MkdirAll(r.shut+"/folder", 0o755); err != nil {
		t.Fatal(err)
	}
	suid := []any{uint32(4), uint32(0o4755)}
	shortened := []any{uint32(1), uint64(0)}
	for name, c := range map[string]struct {
		kind   byte
		fields []any
	}{
		"read by name":                 {fxpOpen, []any{secret, forRead, noAttrs}},
		"read by a linked folder":      {fxpOpen, []any{r.open + "/out/secret", forRead, noAttrs}},
		"read by a link":               {fxpOpen, []any{r.open + "/leaf", forRead, noAttrs}},
		"read by ..":                   {fxpOpen, []any{r.open + "/../shut/secret", forRead, noAttrs}},
		"read by .. of a linked one":   {fxpOpen, []any{r.open + "/out/../shut/secret", forRead, noAttrs}},
		"read by a relative path":      {fxpOpen, []any{"../shut/secret", forRead, noAttrs}},
		"read by . and slashes":        {fxpOpen, []any{r.open + "//.//out/.///secret", forRead, noAttrs}},
		"read and empty":               {fxpOpen, []any{r.open + "/leaf", forRead | truncate, noAttrs}},
		"write":                        {fxpOpen, []any{r.open + "/out/secret", forWrite, noAttrs}},
		"write by a link, emptied":     {fxpOpen, []any{r.open + "/leaf", forWrite | create | truncate, noAttrs}},
		"append":                       {fxpOpen, []any{r.open + "/leaf", forWrite | atEnd, noAttrs}},
		"create":                       {fxpOpen, []any{r.open + "/out/made", forWrite | create, noAttrs}},
		"create by a dangling link":    {fxpOpen, []any{r.open + "/dangling", forWrite | create, noAttrs}},
		"create anew":                  {fxpOpen, []any{r.open + "/out/made", forWrite | create | onlyNew, noAttrs}},
		"open for nothing":             {fxpOpen, []any{mine, uint32(0), noAttrs}},
		"open for emptying alone":      {fxpOpen, []any{mine, truncate, noAttrs}},
		"anew without creating":        {fxpOpen, []any{mine, forRead | onlyNew, noAttrs}},
		"list":                         {fxpOpendir, []any{r.open + "/out"}},
		"list what is above":           {fxpOpendir, []any{".."}},
		"stat":                         {fxpStat, []any{r.open + "/leaf"}},
		"lstat":                        {fxpLstat, []any{r.open + "/out/secret"}},
		"realpath":                     {fxpRealpath, []any{r.open + "/leaf"}},
		"realpath of what is above":    {fxpRealpath, []any{".."}},
		"readlink":                     {fxpReadlink, []any{r.open + "/out/secret"}},
		"space":                        {fxpExtended, []any{statvfs, r.open + "/out"}},
		"expand":                       {fxpExtended, []any{expandPath, r.open + "/leaf"}},
		"expand a home":                {fxpExtended, []any{expandPath, "~root"}},
		"whether something is there":   {fxpStat, []any{r.open + "/out/nothing/deeper"}},
		"where a dead link leads":      {fxpStat, []any{r.open + "/nowhere"}},
		"where a dead link leads to":   {fxpStat, []any{r.open + "/nowhere/deeper"}},
		"up from what isn't there":     {fxpStat, []any{r.open + "/nothing/deeper/../x/y"}},
		"remove":                       {fxpRemove, []any{r.open + "/out/secret"}},
		"remove a folder":              {fxpRmdir, []any{r.open + "/out/folder"}},
		"make a folder":                {fxpMkdir, []any{r.open + "/out/made", noAttrs}},
		"make a folder by a dead link": {fxpMkdir, []any{r.open + "/nowhere/made", noAttrs}},
		"setstat":                      {fxpSetstat, append([]any{r.open + "/leaf"}, suid...)},
		"shorten":                      {fxpSetstat, append([]any{r.open + "/leaf"}, shortened...)},
		"lsetstat":                     {fxpExtended, append([]any{lsetstat, r.open + "/out/secret"}, suid...)},
		"rename in":                    {fxpRename, []any{secret, r.open + "/x"}},
		"rename in by a link":          {fxpRename, []any{r.open + "/out/secret", r.open + "/x"}},
		"rename out":                   {fxpRename, []any{mine, r.open + "/out/x"}},
		"rename out by ..":             {fxpRename, []any{mine, r.open + "/../shut/x"}},
		"rename over":                  {fxpExtended, []any{posixRename, mine, secret}},
		"rename in, over":              {fxpExtended, []any{posixRename, secret, mine}},
		"another name for a secret":    {fxpExtended, []any{hardlink, secret, r.open + "/x"}},
		"another name for a link":      {fxpExtended, []any{hardlink, r.open + "/leaf", r.open + "/x"}},
		"another name outside":         {fxpExtended, []any{hardlink, mine, r.open + "/out/x"}},
		"a link to a secret":           {fxpSymlink, []any{secret, r.open + "/x"}},
		"a link to a secret by ..":     {fxpSymlink, []any{"../shut/secret", r.open + "/x"}},
		"a link to a link":             {fxpSymlink, []any{"out/secret", r.open + "/x"}},
		"a link outside":               {fxpSymlink, []any{mine, r.open + "/out/x"}},
		"a link to nothing":            {fxpSymlink, []any{"", r.open + "/x"}},
		"a path with a new line":       {fxpOpen, []any{r.open + "/a\nb", forWrite | create, noAttrs}},
		"a path that ends early":       {fxpOpen, []any{r.open + "/a\x00b", forWrite | create, noAttrs}},
		"a path that is not UTF-8":     {fxpOpen, []any{r.open + "/a\xff", forWrite | create, noAttrs}},
		"a folder that is not UTF-8":   {fxpMkdir, []any{r.open + "/a\xff/../b", noAttrs}},
		"a guessed handle":             {fxpRead, []any{"0", uint64(0), uint32(10)}},
		"a guessed handle, written":    {fxpWrite, []any{"1", uint64(0), "text"}},
		"a guessed handle, closed":     {fxpClose, []any{"1"}},
		"a guessed handle, changed":    {fxpFsetstat, append([]any{"\x00\x00\x00\x00"}, suid...)},
		"a guessed handle, listed":     {fxpReaddir, []any{"\x00\x00\x00\x00"}},
	} {
		t.Run(name, func(t *testing.T) {
			r.t = t
			before, refused := tree(t, r.dir), len(r.judge.all("refused"))
			a := r.ask(c.kind, c.fields...)
			if a.code() != fxDenied || !strings.Contains(a.text(), "(record: rec-refused)") {
				t.Errorf("%s", a)
			}
			if tree(t, r.dir) != before {
				t.Error("something changed")
			}
			if len(r.judge.all("refused")) != refused+1 {
				t.Error("the refusal isn't on record")
			}
		})
	}
	r.t = t
	// The session goes on, and what is allowed still is.
	if h := r.must(fxpHandle, fxpOpen, mine, forRead, noAttrs).text(); r.must(fxpData, fxpRead, h, uint64(0), uint32(10)).text() != "mine" {
		t.Error("what is allowed isn't read")
	}
}

// A link's own name is where it stands; what leads nowhere inside is told as it is.
func TestNamesInsideAreActedOnAsTheyAre(t *testing.T) {
	r := newRoom(t)
	r.write(r.shut+"/secret", "the secret")
	out := r.link(r.shut, r.open+"/out")
	if a := r.ask(fxpReadlink, out); a.kind != fxpName || a.text() != r.shut {
		t.Errorf("readlink: %s", a)
	}
	r.must(fxpAttrs, fxpLstat, out+"/")
	r.must(fxpStatus, fxpRename, out, r.open+"/moved")
	r.must(fxpStatus, fxpRemove, r.open+"/moved")
	if !there(r.shut+"/secret") || there(r.open+"/moved") {
		t.Error("the link wasn't what was removed")
	}
	for _, path := range []string{r.open + "/none", r.open + "/none/deeper", r.open + "/none/a/b/c/"} {
		if a := r.ask(fxpStat, path); a.code() != fxNoSuchFile {
			t.Errorf("%s: %s", path, a)
		}
	}
	if e := r.judge.one(t, "completed", "none/deeper"); e.out.Code != "no such file" {
		t.Errorf("the outcome: %+v", e.out)
	}
}

// What replaces a file removes one, what makes it set-uid changes its attributes, and what shortens it writes it.
func TestWhatTakesTwoActionsIsDecidedForBoth(t *testing.T) {
	r := newRoom(t)
	a, b := r.write(r.open+"/a", "text a"), r.write(r.open+"/b", "text b")
	suid := []any{uint32(4), uint32(0o4755)}
	for _, c := range []struct {
		name   string
		denied string
		kind   byte
		fields []any
	}{
		{"over another", sftp.Remove, fxpExtended, []any{posixRename, a, b}},
		{"a set-uid file", sftp.Setstat, fxpOpen, append([]any{r.open + "/s", forWrite | create}, suid...)},
		{"a set-uid folder", sftp.Setstat, fxpMkdir, append([]any{r.open + "/s"}, suid...)},
		{"a shortening", sftp.Write, fxpSetstat, []any{a, uint32(1), uint64(2)}},
		{"a shortening with more", sftp.Setstat, fxpSetstat, []any{a, uint32(1 | 4), uint64(2), uint32(0o600)}},
		{"reading with emptying", sftp.Write, fxpOpen, []any{a, forRead | truncate, noAttrs}},
		{"reading with creating", sftp.Write, fxpOpen, []any{r.open + "/s", forRead | create, noAttrs}},
		{"reading of what is written", sftp.Read, fxpOpen, []any{a, forRead | forWrite, noAttrs}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r.t = t
			allow := r.judge.allow
			defer func() { r.judge.allow = allow }()
			r.judge.allow = func(x sftp.Access) bool { return x.Verb != c.denied && allow(x) }
			before := tree(t, r.dir)
			if got := r.ask(c.kind, c.fields...); got.code() != fxDenied || !strings.Contains(got.text(), c.denied) {
				t.Errorf("%s", got)
			}
			if tree(t, r.dir) != before {
				t.Error("something changed")
			}
		})
	}
	r.t = t
	// Onto nothing it takes renaming alone, and the target is asked for a rename that replaces nothing.
	allow := r.judge.allow
	r.judge.allow = func(x sftp.Access) bool { return x.Verb == sftp.Rename && allow(x) }
	r.must(fxpStatus, fxpExtended, posixRename, a, r.open+"/c")
	r.judge.allow = allow
	r.must(fxpStatus, fxpExtended, posixRename, r.open+"/c", b)
	if r.read(b) != "text a" || there(r.open+"/c") {
		t.Error("it wasn't replaced")
	}
}

// A link's text that leads up is kept as where it leads, so that moving its folder doesn't lead it elsewhere.
func TestALinkThatLeadsUpIsKeptAsWhereItLeads(t *testing.T) {
	r := newRoom(t)
	if err := os.MkdirAll(r.open+"/a/b", 0o755); err != nil {
		t.Fatal(err)
	}
	for text, kept := range map[string]string{
		"../../x":      r.open + "/x",
		"x":            "x",
		r.open + "/xy": r.open + "/xy",
	} {
		at := r.open + "/a/b/link"
		r.must(fxpStatus, fxpSymlink, text, at)
		if got, err := os.Readlink(at); err != nil || got != kept {
			t.Errorf("%q is kept as %q, want %q: %v", text, got, kept, err)
		}
		r.must(fxpStatus, fxpRemove, at)
	}
}
