// Package attest says who is at the other end of a Unix socket, by the kernel's word alone.
//
// A peer is held by a pidfd, so that it can't be mistaken for a later process with the same pid: with
// SO_PEERPIDFD (Linux 6.5) the pidfd names exactly the process that called connect(2). Before that, SO_PEERCRED
// and pidfd_open are all there is, the pid may have changed hands in between, and [Process.Exact] is false for ever:
// nothing that hangs on such a peer may be graded better than asserted.
//
// Everything else (uids, executable, cgroup, ancestry) is read from /proc and is true only if the process was
// still alive after the last read; [Attestor.Attest] and [Ancestry] check that last.
//
// Known limits: a process that hands its open connection to another one speaks for it; an executable's hash
// says nothing about the script that an interpreter runs; a process that reads /proc without CAP_SYS_PTRACE can't
// see other users' executables, which then are unknown and match no selector.
package attest
