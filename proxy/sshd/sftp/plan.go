package sftp

import (
	"context"
	"fmt"
	"strings"
)

// What a request acts on: what a path leads to, or what stands there itself, be it a link.
const (
	follow = false
	itself = true
)

// find resolves a path for either.
func (s *session) find(ctx context.Context, path string, name bool) (place, error) {
	if name {
		return s.resolveName(ctx, path)
	}
	return s.resolve(ctx, path)
}

// planPath is a request about one path.
func (s *session) planPath(ctx context.Context, r request, name bool, verbs ...string) (operation, error) {
	p, err := s.find(ctx, r.path, name)
	if err != nil {
		return operation{}, err
	}
	op := operation{Request: Request{Kind: r.what(), Text: text(r, p.path, r.path), ReadOnly: looks(verbs)}, forward: r, holds: []hold{{p.path, name}}}
	op.forward.path = p.path
	for _, v := range verbs {
		op.Access = append(op.Access, Access{v, p.path})
	}
	op.unless(p)
	return op, nil
}

// unless makes the answer that something on the way is missing, where it is: nothing goes to the target then.
func (op *operation) unless(p place) {
	if p.missing != nil && op.local == nil {
		op.local = &reply{kind: fxpStatus, status: status{p.missing.code, p.missing.text}}
	}
}

// text says what is done to a path, and what the agent called it.
func text(r request, path, asked string) string {
	out := fmt.Sprintf("%s %q", r.what(), path)
	if asked != path {
		out += fmt.Sprintf(", asked for as %q", asked)
	}
	return out
}

// creation keeps the permissions of something new, and says what making it so takes.
func creation(a attrs) (attrs, []string) {
	a = attrs{flags: a.flags & attrPermissions, permissions: a.permissions}
	if a.flags != 0 && a.permissions&^modeType&^plainPermissions != 0 {
		return a, []string{Write, Setstat} // set-uid and the like
	}
	return a, []string{Write}
}

// change is what setting attributes takes: a size is a matter of writing.
func change(a attrs) []string {
	switch {
	case a.flags == attrSize:
		return []string{Write}
	case a.flags&attrSize != 0:
		return []string{Write, Setstat}
	}
	return []string{Setstat}
}

func (s *session) planOpen(ctx context.Context, r request) (operation, error) {
	h := &handle{read: r.flags&openRead != 0, write: r.flags&openWrite != 0}
	var verbs, ways []string
	if h.read {
		verbs, ways = append(verbs, Read), append(ways, "reading")
	}
	if r.flags&^openRead != 0 {
		var more []string
		if r.attrs, more = creation(r.attrs); r.flags&openCreate == 0 {
			r.attrs, more = attrs{}, []string{Write}
		}
		verbs, ways = append(verbs, more...), append(ways, "writing")
	} else {
		r.attrs = attrs{}
	}
	name := follow
	switch {
	case !h.read && !h.write:
		return operation{}, unclearf("%q would be opened neither for reading nor for writing", clip(r.path))
	case r.flags&openNew != 0 && r.flags&openCreate == 0:
		return operation{}, unclearf("%q would have to be new and isn't created", clip(r.path))
	case r.flags&openNew != 0:
		name = itself // what must be new is no link to something
	}
	op, err := s.planPath(ctx, r, name, verbs...)
	if err != nil {
		return op, err
	}
	op.Text += " for " + strings.Join(ways, " and ")
	for _, f := range []struct {
		flag uint32
		text string
	}{{openCreate, ", created if missing"}, {openNew, " only"}, {openTruncate, ", emptied"}, {openAppend, ", at its end"}} {
		if r.flags&f.flag != 0 {
			op.Text += f.text
		}
	}
	h.path = op.forward.path
	op.opens = h
	return op, s.room(nil)
}

// planRename decides both names. What is replaced is removed, so that takes another action; onto nothing, a rename is asked for that replaces
// nothing.
func (s *session) planRename(ctx context.Context, r request) (operation, error) {
	op, err := s.planPath(ctx, r, itself, Rename)
	if err != nil {
		return op, err
	}
	to, err := s.resolveName(ctx, r.to)
	if err != nil {
		return op, err
	}
	op.forward.to = to.path
	op.Text += " to " + quoted(to.path, r.to)
	op.Access = append(op.Access, Access{Rename, to.path})
	op.holds = append(op.holds, hold{to.path, itself})
	op.unless(to)
	if r.kind == fxpRename || op.local != nil {
		return op, nil
	}
	rep, err := s.ask(ctx, request{kind: fxpLstat, path: to.path})
	if err != nil {
		return op, err
	}
	if rep.kind == fxpStatus && rep.status.code == fxNoSuchFile {
		op.forward = request{kind: fxpRename, path: op.forward.path, to: to.path}
		return op, nil
	}
	op.Text += ", replacing it"
	op.Access = append(op.Access, Access{Remove, to.path})
	return op, nil
}

func quoted(path, asked string) string {
	if path == asked {
		return fmt.Sprintf("%q", path)
	}
	return fmt.Sprintf("%q, asked for as %q", path, asked)
}

// planHardlink decides both names: a file gets another one, under which other rules hold. A link is followed here, as some systems do.
func (s *session) planHardlink(ctx context.Context, r request) (operation, error) {
	op, err := s.planPath(ctx, r, follow, Link)
	if err != nil {
		return op, err
	}
	to, err := s.resolveName(ctx, r.to)
	if err != nil {
		return op, err
	}
	op.forward.to = to.path
	op.Text += " also as " + quoted(to.path, r.to)
	op.Access = append(op.Access, Access{Link, to.path})
	op.holds = append(op.holds, hold{to.path, itself})
	op.unless(to)
	return op, nil
}

// planSymlink decides where the link stands and where it leads. A text that leads up is replaced by where it leads, since it would lead
// elsewhere when its folder is moved.
func (s *session) planSymlink(ctx context.Context, r request) (operation, error) {
	if r.path == "" {
		return operation{}, unclearf("a link has to lead somewhere")
	}
	at, err := s.resolveName(ctx, r.to)
	if err != nil {
		return operation{}, err
	}
	whole := r.path
	if !strings.HasPrefix(whole, "/") {
		dir, _ := split(at.path)
		whole = join(dir, r.path)
	}
	if len(whole) > maxPath {
		return operation{}, unclearf("where the link leads is too long a path")
	}
	to, err := s.resolve(ctx, whole)
	if err != nil {
		return operation{}, err
	}
	op := operation{
		Request: Request{
			Kind: r.what(), Text: text(r, at.path, r.to) + " to " + quoted(to.path, r.path),
			Access: []Access{{Link, at.path}, {Link, to.path}},
		},
		forward: request{kind: fxpSymlink, path: r.path, to: at.path},
		holds:   []hold{{at.path, itself}, {to.path, follow}},
	}
	if hasUp(r.path) {
		op.forward.path = to.path
	}
	op.unless(at)
	return op, nil
}

// planRealpath answers where a path leads. Where a session begins needs no decision: clients ask for it first, and it says nothing but where
// the account is at home.
func (s *session) planRealpath(ctx context.Context, r request) (operation, error) {
	path := r.path
	if r.kind == fxpExtended && strings.HasPrefix(path, "~") {
		if err := checkAsked(path); err != nil {
			return operation{}, err
		}
		rep, err := s.ask(ctx, r)
		if err != nil {
			return operation{}, err
		}
		if rep.kind == fxpStatus {
			return operation{}, unclearf("the target can't expand %q (%s)", clip(path), rep.status.name())
		}
		if path, _, err = s.canonical(rep); err != nil {
			return operation{}, err
		}
	}
	p, err := s.resolve(ctx, path)
	if err != nil {
		return operation{}, err
	}
	op := operation{
		Request: Request{Kind: r.what(), Text: text(r, p.path, r.path), Access: []Access{{Stat, p.path}}, ReadOnly: true},
		free:    path == "" || path == ".",
	}
	op.unless(p)
	if op.local == nil {
		op.local = &reply{kind: fxpName, names: []entry{{name: p.path, long: p.path}}}
	}
	return op, nil
}

// planHandle is a request about an open file or folder.
func (s *session) planHandle(r request) (operation, error) {
	h := s.file(r.handle)
	if h == nil {
		return operation{}, unclearf("no open file has that handle")
	}
	op := operation{forward: r}
	op.forward.handle = h.target
	verbs := []string{Stat}
	switch {
	case r.kind == fxpReaddir:
		if !h.folder {
			return op, unclearf("%q isn't open for listing", h.path)
		}
		op.lists, op.free = h, true
	case r.extension == extFsync:
		if !h.write {
			return op, unclearf("%q isn't open for writing", h.path)
		}
		op.free = true
	case r.kind == fxpFsetstat:
		if r.attrs.flags&attrSize != 0 && !h.write {
			return op, unclearf("%q isn't open for writing", h.path)
		}
		verbs = change(r.attrs)
	}
	op.Request = Request{Kind: r.what(), Text: text(r, h.path, h.path), ReadOnly: looks(verbs)}
	for _, v := range verbs {
		op.Access = append(op.Access, Access{v, h.path})
	}
	return op, nil
}

// planLimits answers with the smaller ones of the target's limits and those here.
func (s *session) planLimits(ctx context.Context, r request) (operation, error) {
	rep, err := s.ask(ctx, r)
	if err != nil {
		return operation{}, err
	}
	if rep.kind == fxpExtendedReply {
		for i, most := range []uint64{maxPacket, maxTransfer, maxTransfer, maxHandles} {
			if v := &rep.values[i]; *v == 0 || *v > most { // 0: the target says nothing of it
				*v = most
			}
		}
	}
	return operation{local: &rep, free: true}, nil
}
