package audit

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// ProblemKind says what a verification found wrong. The names are stable.
type ProblemKind string

// The kinds of problem.
const (
	ProblemMissing    ProblemKind = "missing_segment" // a segment in the middle isn't there
	ProblemPruned     ProblemKind = "starts_late"     // the first records aren't there
	ProblemHeader     ProblemKind = "segment_header"  // unreadable, or contradicts the segment before
	ProblemTruncated  ProblemKind = "truncated"       // a segment file is shorter than it was made
	ProblemFrame      ProblemKind = "frame"           // damaged frame, or bytes where none may be
	ProblemTree       ProblemKind = "tree"            // order, size or Merkle root don't fit what comes before
	ProblemSignature  ProblemKind = "signature"       // no good signature by a listed key
	ProblemRecord     ProblemKind = "record"          // a record isn't what the format says
	ProblemLink       ProblemKind = "link"            // an effect or outcome without an open, allowing decision
	ProblemRolledBack ProblemKind = "rolled_back"     // a checkpoint that was seen isn't one of this log's
	ProblemCredential ProblemKind = "credential"      // a chain that its kept credential doesn't bear out
)

// Problem is one finding, with where it lies.
type Problem struct {
	Kind    ProblemKind `json:"kind"`
	Segment int64       `json:"segment"`
	Offset  int64       `json:"offset"` // in the segment's file
	Seq     int64       `json:"seq"`    // of the record, or the one that is next
	Detail  string      `json:"detail"`
}

func (p Problem) String() string {
	return fmt.Sprintf("%s: segment %s, offset %d, record %d: %s", p.Kind, segmentName(p.Segment), p.Offset, p.Seq, p.Detail)
}

// Torn is an unfinished frame behind the last good one: what a crash leaves behind, or what is being written right now. Nothing
// in it was acknowledged to anybody.
type Torn struct {
	Segment int64 `json:"segment"`
	Offset  int64 `json:"offset"`
	Bytes   int64 `json:"bytes"`
}

// Silence is a stretch without the promised heartbeats, inside one run of the writer.
type Silence struct {
	AfterSeq int64     `json:"after_seq"`
	From     time.Time `json:"from"`
	To       time.Time `json:"to"`
}

// CredentialReport counts what was found about credentials.
type CredentialReport struct {
	Verified     int `json:"verified"`      // distinct credentials whose every signature was good when they were used
	RecordedKeys int `json:"recorded_keys"` // of these: sign-in keys taken from the log, since the list has none
	Records      int `json:"records"`       // records that carry a chain
	Without      int `json:"without"`       // of these: without kept evidence, such as a broker's, before the countersignature
}

// Inclusion proves one record: its hash, the audit path (RFC 6962), and the signed checkpoint that it leads to.
type Inclusion struct {
	Record *Record `json:"record"`
	// Chain is what the record's chain digest is the SHA-256 of.
	Chain      *Chain   `json:"chain,omitempty"`
	Segment    int64    `json:"segment"`
	Offset     int64    `json:"offset"` // of its frame
	FrameFirst int64    `json:"frame_first_seq"`
	FrameCount int      `json:"frame_records"`
	LeafHash   string   `json:"leaf_hash"` // base64
	Path       []string `json:"path"`      // base64, from the leaf up
	Checkpoint string   `json:"checkpoint"`
}

// Report is what [Verify] found.
type Report struct {
	Origin      string           `json:"origin"`
	Segments    int              `json:"segments"`
	Frames      int64            `json:"frames"`
	FirstSeq    int64            `json:"first_seq"`
	Records     int64            `json:"records"`
	First       time.Time        `json:"first"`
	Last        time.Time        `json:"last"`
	Checkpoint  string           `json:"checkpoint"` // the last one: keep it, and give it to the next verification
	Closed      bool             `json:"closed"`     // ended by a clean shutdown
	Recoveries  int              `json:"recoveries"` // starts after a crash
	Open        []RecordID       `json:"open_decisions,omitempty"`
	Unknown     int              `json:"unknown_outcomes"`
	Dev         bool             `json:"dev,omitempty"` // some records were written by `deputy dev`
	Torn        *Torn            `json:"torn_tail,omitempty"`
	Silences    []Silence        `json:"silences,omitempty"`
	Credentials CredentialReport `json:"credentials"`
	Inclusion   *Inclusion       `json:"inclusion,omitempty"`
	Problems    []Problem        `json:"problems,omitempty"`
}

// ErrEvidence is wrapped by Report.Err when a log isn't what it claims to be.
var ErrEvidence = errors.New("the evidence doesn't hold")

// Err returns nil when nothing is wrong. A torn tail alone is no problem: it was never acknowledged.
func (r *Report) Err() error {
	switch len(r.Problems) {
	case 0:
		return nil
	case 1:
		return fmt.Errorf("%w: %s", ErrEvidence, r.Problems[0])
	}
	return fmt.Errorf("%w: %s (and %d more)", ErrEvidence, r.Problems[0], len(r.Problems)-1)
}

// maxProblems bounds a report; a rewritten log has one problem per record.
const maxProblems = 200

// MarshalJSON never writes null for a list. The record and its chain are the log's own bytes.
func (i *Inclusion) MarshalJSON() ([]byte, error) {
	type plain Inclusion
	p := plain(*i)
	if p.Path == nil {
		p.Path = []string{}
	}
	return json.Marshal(p)
}
