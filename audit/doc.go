// Package audit keeps evidence: who asked for what, through whom, what was decided, and what came of it.
//
// A [Log] is a write-ahead log that is also a Merkle log. Records are gathered into frames; a frame
// holds its records and a checkpoint (C2SP tlog-checkpoint, signed with the log's Ed25519 key) over the
// whole log up to and including them, and becomes durable by one write and one fdatasync. A caller that
// has a [Receipt] in hand knows that its record will be found by anybody who reads the disk after a crash.
//
// What holds, always:
//
//   - Evidence before effect. [Log.Append] returns after the record is durable, or with an error; after an
//     error the caller refuses what it was about to do. There is no way to have a log that drops records.
//   - A failed write or fdatasync poisons the log until the process is restarted; it is never retried. A full disk
//     refuses new records ([ErrFull]) with nothing half-written, and leaves room for the outcomes of
//     what was already decided.
//   - A durable byte is never written again: frames start at 4 KiB boundaries of preallocated segments.
//   - Opening a log recovers it from a crash at any byte; for every decision that was open a record
//     says `outcome_unknown`. Damage that no crash can cause ([ErrCorrupt]) is not repaired: it is refused.
//
// [Verify] checks a log offline with public keys only, [Reader] reads one, live or not, and [BuildTree] draws
// the tree of one task. The format is specified in docs/spec/audit-log.md.
package audit
