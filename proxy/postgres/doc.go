// Package postgres is the proxy's engine for PostgreSQL: it speaks the server's side of protocol 3.0 to
// an agent and the client's side to the target, and lets a statement through only with a pass.
//
// Shape. One session has a front, which reads the agent's messages, decides and writes to the target,
// and a back, which reads the target's answers and writes to the agent. Between them runs a queue with
// one entry for every message that was sent to the target, so that each answer meets what it answers.
//
// Invariants:
//
//   - Every Execute and every statement of a simple Query has a pass of its own. Text reaches the target
//     in a Parse only after the same decision was asked for without effect, and what could run while the
//     target plans (functions that aren't known as harmless) waits for its pass at Bind.
//   - Only the target says what state a transaction is in. A refusal is sent to it as an Execute of
//     a portal that doesn't exist, and the agent gets our error in the place of the target's: the
//     pipeline, the transaction and ReadyForQuery come out exactly as after an error of the target.
//   - What the agent names is what was decided. Its prepared statements and portals have other names at
//     the target, and an unnamed one is used only when the target is known to hold the same.
//   - Names that SQL gives, by PREPARE and DECLARE, are the same names. EXECUTE, FETCH and MOVE are decided anew as what they run.
//   - Rows of a COPY can't be masked: one that gives a masked column is refused. Whether the target takes rows of the agent, and so
//     what a message means, the front learns from the back before it hands on another one.
//   - Masking goes by the description that the target gives of this very portal, asked for just before each
//     Execute. Rows are rebuilt, never patched, and one row is held at a time.
//   - Frames from either side are read with a limit, before authentication with a deadline as well.
//
// The design is docs/design.md; the protocol is chapter 55 of PostgreSQL's manual.
package postgres
