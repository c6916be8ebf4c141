package audit

import (
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
)

// SchemaVersion is the version of the records that this package writes and reads.
const SchemaVersion = 2

// RecordID names one record: a UUIDv7 in its usual text form. It is what an error message shows to a
// user (`record: 0192…`). The zero value means "no record" and prints as "none".
type RecordID string

// NewRecordID makes a fresh id, so that an error message can be prepared before its record is submitted.
func NewRecordID() (RecordID, error) {
	u, err := uuid.NewV7()
	if err != nil {
		return "", fmt.Errorf("making a record id: %w", err)
	}
	return RecordID(u.String()), nil
}

// ParseRecordID reads a record id as people paste it.
func ParseRecordID(s string) (RecordID, error) {
	u, err := uuid.Parse(s)
	if err != nil || u.Version() != 7 || u.Variant() != uuid.RFC4122 || u.String() != s {
		return "", fmt.Errorf("record id %q: want a UUIDv7 such as 01927f3c-8a6e-7c3b-9d52-1f0e6b7a8c9d", clip(s, 64))
	}
	return RecordID(s), nil
}

// UnmarshalText reads an id where it stands in a record: an absent one is left out, never empty.
func (id *RecordID) UnmarshalText(text []byte) (err error) {
	*id, err = ParseRecordID(string(text))
	return err
}

// String returns the id, or "none".
func (id RecordID) String() string {
	if id == "" {
		return "none"
	}
	return string(id)
}

// Record is one entry of a log. Callers fill Event and what links it; the log fills Seq, Version,
// Source and Dev, and ID and Time where they are zero.
type Record struct {
	Seq     int64     // position in the log, from 0, without gaps
	Version int       // SchemaVersion
	ID      RecordID  // UUIDv7
	Type    Type      // what Event is
	Time    time.Time // when it happened, UTC
	Source  string    // SPIFFE ID of the role that wrote it
	Dev     bool      // written by `deputy dev`: the grants prove nothing

	Txn        string   // the task tree (`txn` of the user grant); taken from Chain when empty
	Session    string   // session at the broker (`sid`)
	Connection string   // connection at a proxy
	Decision   RecordID // the decision that this record belongs to, for what follows a decision
	Chain      *Chain   // the whole chain, on every record that has one; in the log by its digest
	Event      Event    // the typed body

	raw   []byte // exact bytes, of records that were read
	chain Digest // of the chain that they name
}

// Receipt says where a durable record lies and carries the signed checkpoint that covers it.
type Receipt struct {
	RecordID   RecordID
	Seq        int64
	Checkpoint []byte // C2SP signed note over a tree of more than Seq records
}

// Errors that callers branch on. All of them mean: the record isn't in the log, refuse the command.
var (
	// ErrPoisoned: an earlier write or fdatasync failed; nothing is accepted until the process restarts.
	ErrPoisoned = errors.New("audit log is poisoned: a write or fdatasync failed; restart after the disk is repaired")
	// ErrFull: no room for new records. Nothing was written; it passes when there is room again.
	ErrFull = errors.New("audit log is full: no disk space for the next segment")
	// ErrStalled: thousands of records wait for a disk that takes none. Nothing was written; it passes when the disk goes on.
	ErrStalled = errors.New("audit log has stalled: the disk takes no records")
	// ErrClosed: the log was closed.
	ErrClosed = errors.New("audit log is closed")
	// ErrOverQuota: this task used up its budget of records or bytes.
	ErrOverQuota = errors.New("audit quota of this task is used up; wait a moment")
	// ErrOverBytes: of these two it is the bytes. It is an ErrOverQuota, too.
	ErrOverBytes = fmt.Errorf("%w (its records hold too many bytes)", ErrOverQuota)
	// ErrOverShare: this task's user used up what one user may fill of the disk. It is an ErrOverQuota, too.
	ErrOverShare = fmt.Errorf("%w (what one user may fill of the log's disk in a day is full)", ErrOverQuota)
	// ErrTooLarge: the record is larger than a record may be.
	ErrTooLarge = errors.New("audit record is too large")
	// ErrNoDecision: what would follow a decision has none that is open in the log, since that one was refused or has its outcome.
	ErrNoDecision = errors.New("audit record belongs to no open decision")
	// ErrLocked: another process has the log open.
	ErrLocked = errors.New("audit log is in use by another process")
	// ErrCorrupt: damage that a crash can't explain. The log isn't opened.
	ErrCorrupt = errors.New("audit log is damaged")
	// ErrNotFound: no record, or no task, of that name.
	ErrNotFound = errors.New("not found")
	// ErrRolledBack: the log doesn't contain a checkpoint that was seen before.
	ErrRolledBack = errors.New("audit log was rolled back")
)

func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return s[:n] + "…"
}
