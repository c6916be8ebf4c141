package sftp

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// operation is a request as it is decided, and as the target gets it.
type operation struct {
	Request
	forward request
	// holds are the paths that must still lead where they were decided to lead when the target is asked.
	holds []hold
	// local is the answer where the target isn't asked any more.
	local *reply
	// opens is what the agent gets a handle of.
	opens *handle
	// lists is the open folder whose names are asked for.
	lists *handle
	// free is what needs no decision.
	free bool
}

// hold is a canonical path. Where the name itself is acted on, its folder is what must hold.
type hold struct {
	path string
	name bool
}

// serve does one request. The error ends the session.
func (s *session) serve(ctx context.Context, r request) error {
	switch r.kind {
	case fxpRead, fxpWrite:
		return s.transfer(ctx, r)
	case fxpClose:
		return s.close(ctx, r)
	case fxpExtended:
		if !s.known[r.extension] {
			return s.sendStatus(r.id, fxOpUnsupported, fmt.Sprintf("%q isn't spoken here", clip(printable(r.extension))))
		}
	}
	op, err := s.plan(ctx, r)
	var u *unclear
	if errors.As(err, &u) {
		return s.refuse(ctx, r, u.why)
	}
	if err != nil {
		return err
	}
	return s.perform(ctx, r, op)
}

// refuse records a refusal that needs no policy, and tells the agent.
func (s *session) refuse(ctx context.Context, r request, reason string) error {
	text := r.what()
	if r.path != "" {
		text += fmt.Sprintf(" %q", r.path)
	}
	if r.to != "" {
		text += fmt.Sprintf(" %q", r.to)
	}
	return s.sendStatus(r.id, fxPermissionDenied, s.decider.Refuse(ctx, Request{Kind: r.what(), Text: text}, reason).Error())
}

// perform decides an operation, has it done, and tells the agent what came of it.
func (s *session) perform(ctx context.Context, r request, op operation) error {
	if op.free {
		return s.finish(ctx, r, op)
	}
	// 1. The decision; durable, unless the request only looks.
	grant, err := s.decider.Decide(ctx, op.Request)
	if err != nil {
		return s.sendStatus(r.id, fxPermissionDenied, err.Error())
	}
	if err := grant.Use(); err != nil {
		grant.Completed(ctx, Outcome{Status: "not_sent"})
		return s.sendStatus(r.id, fxPermissionDenied, err.Error())
	}
	// 2. The act, if the paths lead where they led: a decision may take as long as a disk does.
	var rep reply
	if !op.ReadOnly && op.local == nil {
		moved, err := s.moved(ctx, op.holds)
		if err != nil {
			grant.Completed(ctx, Outcome{Status: "not_sent"})
			return err
		}
		if moved != "" {
			grant.Completed(ctx, Outcome{Status: "not_sent", Code: "moved"})
			return s.elsewhere(ctx, r, op, moved)
		}
	}
	if op.local != nil {
		rep = *op.local
	} else if rep, err = s.ask(ctx, op.forward); err != nil {
		grant.Completed(ctx, Outcome{Status: "cut"})
		return err
	}
	if err := grant.Wait(ctx); err != nil {
		grant.Completed(ctx, Outcome{Status: "error"})
		if rep.kind == fxpHandle {
			_, _ = s.ask(ctx, request{kind: fxpClose, handle: rep.handle})
		}
		return s.sendStatus(r.id, fxPermissionDenied, err.Error())
	}
	// 3. The outcome, before the agent hears it.
	if rep.kind == fxpHandle {
		return s.opened(ctx, r, op, grant, rep.handle)
	}
	grant.Completed(ctx, outcomeOf(rep))
	return s.send(rep.encode(r.id))
}

// finish does what no decision is for.
func (s *session) finish(ctx context.Context, r request, op operation) (err error) {
	rep := op.local
	if rep == nil {
		var got reply
		if got, err = s.ask(ctx, op.forward); err != nil {
			return err
		}
		rep = &got
	}
	answer := rep.encode(r.id)
	if op.lists != nil && rep.kind == fxpName {
		s.mu.Lock()
		op.lists.bytesOut += int64(len(answer))
		s.mu.Unlock()
	}
	return s.send(answer)
}

func outcomeOf(rep reply) Outcome {
	if rep.kind == fxpStatus && rep.status.code != fxOK {
		return Outcome{Status: "error", Code: rep.status.name()}
	}
	return Outcome{Status: "ok"}
}

// moved is a path that leads somewhere else than it did, or "".
func (s *session) moved(ctx context.Context, holds []hold) (string, error) {
	for _, h := range holds {
		path := h.path
		if h.name {
			path, _ = split(path)
		}
		now, err := s.resolve(ctx, path)
		var u *unclear
		switch {
		case errors.As(err, &u):
			return h.path, nil
		case err != nil:
			return "", err
		case now.path != path:
			return h.path, nil
		}
	}
	return "", nil
}

// elsewhere refuses what was allowed, since a path has moved meanwhile.
func (s *session) elsewhere(ctx context.Context, r request, op operation, path string) error {
	reason := fmt.Sprintf("%q was changed while this was decided or done, and leads somewhere else now", path)
	return s.sendStatus(r.id, fxPermissionDenied, s.decider.Refuse(ctx, op.Request, reason).Error())
}

// opened gives the agent a file that the target has opened, if its path still leads to where it was decided to lead.
func (s *session) opened(ctx context.Context, r request, op operation, grant Grant, name string) error {
	h := op.opens
	moved, err := s.moved(ctx, []hold{{path: h.path}})
	if err == nil && moved != "" {
		_, err = s.ask(ctx, request{kind: fxpClose, handle: name})
	}
	if err != nil {
		grant.Completed(ctx, Outcome{Status: "cut"})
		return err
	}
	if moved != "" {
		grant.Completed(ctx, Outcome{Status: "error", Code: "moved"})
		return s.elsewhere(ctx, r, op, moved)
	}
	h.target, h.grant = name, grant
	return s.send(reply{kind: fxpHandle, handle: s.keep(h)}.encode(r.id))
}

// transfer passes a read or a write of an open file on; relayAnswer takes the answer.
func (s *session) transfer(ctx context.Context, r request) error {
	h := s.file(r.handle)
	switch {
	case h == nil:
		return s.refuse(ctx, r, "no open file has that handle")
	case r.kind == fxpRead && !h.read:
		return s.refuse(ctx, r, fmt.Sprintf("%q isn't open for reading", h.path))
	case r.kind == fxpWrite && !h.write:
		return s.refuse(ctx, r, fmt.Sprintf("%q isn't open for writing", h.path))
	}
	id := r.id
	r.handle, r.length = h.target, min(r.length, maxTransfer)
	s.mu.Lock()
	for s.underway >= maxUnderway && !s.over {
		s.answered.Wait()
	}
	s.underway++
	h.underway++
	h.bytesIn += int64(len(r.data))
	s.mu.Unlock()
	return s.submit(&pending{request: r, agent: id, h: h})
}

// close closes an open file, and puts on record what was done with it.
func (s *session) close(ctx context.Context, r request) error {
	h := s.file(r.handle)
	if h == nil {
		return s.refuse(ctx, r, "no open file has that handle")
	}
	s.takeOff(r.handle)
	rep, err := s.ask(ctx, request{kind: fxpClose, handle: h.target})
	if err != nil {
		h.grant.Completed(ctx, s.outcome(h, Outcome{Status: "cut"}))
		return err
	}
	h.grant.Completed(ctx, s.outcome(h, outcomeOf(rep)))
	return s.send(rep.encode(r.id))
}

// plan says what a request does, with its paths resolved.
func (s *session) plan(ctx context.Context, r request) (operation, error) {
	switch r.kind {
	case fxpOpen:
		return s.planOpen(ctx, r)
	case fxpOpendir:
		op, err := s.planPath(ctx, r, follow, List)
		op.opens = &handle{path: op.forward.path, folder: true}
		return op, s.room(err)
	case fxpStat:
		return s.planPath(ctx, r, follow, Stat)
	case fxpLstat, fxpReadlink:
		return s.planPath(ctx, r, itself, Stat)
	case fxpRemove, fxpRmdir:
		return s.planPath(ctx, r, itself, Remove)
	case fxpMkdir:
		var verbs []string
		r.attrs, verbs = creation(r.attrs)
		return s.planPath(ctx, r, itself, verbs...)
	case fxpSetstat:
		return s.planPath(ctx, r, follow, change(r.attrs)...)
	case fxpRename:
		return s.planRename(ctx, r)
	case fxpSymlink:
		return s.planSymlink(ctx, r)
	case fxpRealpath:
		return s.planRealpath(ctx, r)
	case fxpReaddir, fxpFstat, fxpFsetstat:
		return s.planHandle(r)
	}
	switch r.extension {
	case extPosixRename:
		return s.planRename(ctx, r)
	case extHardlink:
		return s.planHardlink(ctx, r)
	case extStatvfs:
		return s.planPath(ctx, r, follow, Stat)
	case extLsetstat:
		return s.planPath(ctx, r, itself, change(r.attrs)...)
	case extExpandPath:
		return s.planRealpath(ctx, r)
	case extFstatvfs, extFsync:
		return s.planHandle(r)
	case extLimits:
		return s.planLimits(ctx, r)
	}
	return operation{}, malformedf("a packet of the kind %d, which is no request", r.kind)
}

// room refuses to open more than may be open.
func (s *session) room(err error) error {
	if err == nil && s.full() {
		return unclearf("%d files are open already; close some", maxHandles)
	}
	return err
}

// what names a request in records.
func (r request) what() string {
	names := map[byte]string{
		fxpOpen: "open", fxpClose: "close", fxpRead: "read", fxpWrite: "write", fxpLstat: "lstat", fxpFstat: "fstat", fxpSetstat: "setstat",
		fxpFsetstat: "fsetstat", fxpOpendir: "opendir", fxpReaddir: "readdir", fxpRemove: "remove", fxpMkdir: "mkdir", fxpRmdir: "rmdir",
		fxpRealpath: "realpath", fxpStat: "stat", fxpRename: "rename", fxpReadlink: "readlink", fxpSymlink: "symlink",
	}
	if name := names[r.kind]; name != "" {
		return "sftp-" + name
	}
	return map[string]string{
		extPosixRename: "sftp-rename", extHardlink: "sftp-link", extStatvfs: "sftp-statvfs", extFstatvfs: "sftp-fstatvfs", extFsync: "sftp-fsync",
		extLsetstat: "sftp-lsetstat", extLimits: "sftp-limits", extExpandPath: "sftp-realpath",
	}[r.extension]
}

// looks says whether actions only look at something. Opening a file for reading isn't among them: it may be a device.
func looks(verbs []string) bool {
	return !slices.ContainsFunc(verbs, func(v string) bool { return v != Stat && v != List })
}
