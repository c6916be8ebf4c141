// Package sftp stands between an agent and a host's SFTP server and lets nothing through that isn't decided: version 3 of the protocol
// (draft-ietf-secsh-filexfer-02) as OpenSSH speaks it, with those of OpenSSH's extensions that are known here.
//
// Shape. [Serve] reads the agent's requests one after the other. Requests about paths are resolved, decided, done and answered before the
// next one is read, so that no request of a session changes what another one's path means meanwhile. Reads and writes of open files are
// pipelined. Nothing is queued: an agent that doesn't read stops its own session.
//
// Invariants:
//
//   - Every packet of either side is parsed to its last byte, and what goes on is written anew. What can't be parsed ends the session.
//   - A path is decided as the target resolves it (REALPATH), and that path is what the target gets. Where the last name is what is
//     acted on, as in renaming, its folder is resolved. What can't be resolved to one canonical path is refused.
//   - What opens a file or changes anything has a grant that is durable before the target hears of it. What only looks has one that is
//     durable before the agent hears the answer, that something isn't there included.
//   - Handles are names of this package's own. An open file is read only where it was opened for reading, and written for writing.
//   - What was read and written is counted, and is on record when the file is closed, and when the session ends before that.
//
// What is left: somebody else at the host may put a link where there was a folder. What opens or changes something is therefore resolved again
// when its decision is durable, and an opened file before the agent gets it; docs/targets/ssh.md says what remains.
package sftp
