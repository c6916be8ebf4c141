package attest

import (
	"fmt"
	"strings"
)

// Attributes are what the kernel says about a process. What couldn't be learned is left out, never guessed.
type Attributes struct {
	PID   int
	Start uint64
	Exact bool // see Process.Exact

	// UID and GID are the effective ids: of the connection for a peer, of now for another process.
	UID, GID uint32
	// UIDs and GIDs are real, effective, saved and file-system ids of now.
	UIDs, GIDs [4]uint32

	Executable    *Executable // nil when unknown
	ExecutableErr error       // why

	// Cgroup is the path in the unified hierarchy, "" when there is none.
	Cgroup string
	// NoNewPrivileges: neither the process nor anything that it starts can ever gain by a set-uid program.
	NoNewPrivileges bool
	// Marked: the process carries what supervisors put on all that an agent starts (no_new_privs and a system call filter),
	// more than the first process of this machine or container, and nobody can put it down again. A sandbox looks the same.
	Marked bool
	// SharedUserNamespace: the process lives in the issuer's own user namespace, so that its uids are what they look like.
	// A process of a user namespace that somebody else owns can be entered by its owner.
	SharedUserNamespace bool
}

// OneUID says that all four uids are the same, so that the process can't become another one again.
func (a Attributes) OneUID() bool {
	return a.UIDs == [4]uint32{a.UID, a.UID, a.UID, a.UID}
}

// OneGID is OneUID for groups.
func (a Attributes) OneGID() bool {
	return a.GIDs == [4]uint32{a.GID, a.GID, a.GID, a.GID}
}

// Attestor reads attributes. Safe for concurrent use.
type Attestor struct {
	hashes *hashes
	base   restraints // of the first process
}

// New makes an attestor with an empty cache of executables.
func New() *Attestor {
	a := &Attestor{hashes: newHashes()}
	// Where it can't be read, nobody is expected to be restrained.
	if status, err := readProc(1, "status"); err == nil {
		a.base = parseRestraints(status)
	}
	return a
}

// Peer reads the attributes of a connection's peer. It fails when the process ended before the last of them was read.
func (a *Attestor) Peer(p *Peer) (Attributes, error) {
	attrs, err := a.read(p.Process, true)
	if err != nil {
		return Attributes{}, err
	}
	attrs.UID, attrs.GID = p.UID, p.GID
	return attrs, nil
}

// Place reads what is needed to place a process, without its executable.
func (a *Attestor) Place(p *Process) (Attributes, error) { return a.read(p, false) }

func (a *Attestor) read(p *Process, executable bool) (Attributes, error) {
	out := Attributes{PID: p.pid, Start: p.start, Exact: p.exact}
	fail := func(err error) (Attributes, error) {
		return Attributes{}, fmt.Errorf("attesting process %d: %w", p.pid, err)
	}
	status, err := readProc(p.pid, "status")
	if err != nil {
		return fail(err)
	}
	if out.UIDs, err = parseIDs(status, "Uid"); err != nil {
		return fail(err)
	}
	if out.GIDs, err = parseIDs(status, "Gid"); err != nil {
		return fail(err)
	}
	out.UID, out.GID = out.UIDs[1], out.GIDs[1]
	held := parseRestraints(status)
	out.NoNewPrivileges, out.Marked = held.noNewPrivileges, held.marked(a.base)
	cgroup, err := readProc(p.pid, "cgroup")
	if err != nil {
		return fail(err)
	}
	out.Cgroup = parseCgroup(cgroup)
	if out.SharedUserNamespace, err = sharesUserNamespace(p.pid); err != nil {
		return fail(err)
	}
	if executable {
		out.Executable, out.ExecutableErr = a.hashes.executable(p.pid)
	}
	if err := p.Alive(); err != nil {
		return fail(err)
	}
	return out, nil
}

// sharesUserNamespace compares what the ids map to. The namespace's own link needs CAP_SYS_PTRACE to read; the map
// is public, and nobody without privileges here can make another namespace with the map that init has.
func sharesUserNamespace(pid int) (bool, error) {
	theirs, err := readProc(pid, "uid_map")
	if err != nil {
		return false, err
	}
	ours, err := readSelf("uid_map")
	if err != nil {
		return false, err
	}
	return len(strings.Fields(ours)) > 0 && strings.Join(strings.Fields(string(theirs)), " ") == strings.Join(strings.Fields(ours), " "), nil
}
