// Package sshd is the proxy's engine for hosts: it speaks the server's side of SSH to an agent, inside the agent's mTLS connection,
// and the client's side to the target, and starts nothing there without a pass.
//
// Shape. One connection of an agent has one connection to the target, as one account. Each channel is relayed by goroutines of its
// own, so that none holds up another; windows carry the pressure of a slow reader from one side to the other.
//
// Invariants:
//
//   - The credential is verified before SSH begins (preface.go), or as SSH's password, and always over the SVID that it is bound to. No key
//     and no certificate of an agent's is looked at.
//   - A command, shell, subsystem or forwarding has a pass of its own, durable before the target hears of it. Its text reaches the
//     target byte for byte as it was decided, and is not UTF-8 or holds a NUL nowhere.
//   - The subsystem sftp is never relayed as it is: package sftp reads its packets, and each file has a pass of its own.
//   - What is not known is refused: other channels, requests and environment variables. What would lead around the decision
//     (forwarding of agents and X11) is refused and recorded even where nobody asks for an answer.
//   - A host proves itself by a pinned key or a certificate of a configured CA; a certificate never counts as a CA's key.
//   - When a session is over, what it runs is sent TERM and then KILL, and both connections are closed.
//
// An interactive shell can't be policed line by line: docs/targets/ssh.md says what is seen and what isn't.
package sshd
