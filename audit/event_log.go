package audit

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"github.com/deputymesh/deputy/internal/strictjson"
)

// Digest names bytes by their SHA-256: "sha256:" and 64 hex digits.
type Digest string

// DigestOf returns the digest of b.
func DigestOf(b []byte) Digest {
	sum := sha256.Sum256(b)
	return Digest("sha256:" + hex.EncodeToString(sum[:]))
}

// ParseDigest checks the form of a digest.
func ParseDigest(s string) (Digest, error) {
	h, ok := strings.CutPrefix(s, "sha256:")
	if b, err := hex.DecodeString(h); !ok || err != nil || len(b) != sha256.Size || strings.ToLower(h) != h {
		return "", fmt.Errorf("digest %q: want sha256: and 64 lower-case hex digits", clip(s, 80))
	}
	return Digest(s), nil
}

// UnmarshalText reads a digest where it stands in a record.
func (d *Digest) UnmarshalText(text []byte) (err error) {
	*d, err = ParseDigest(string(text))
	return err
}

// Bytes are written as base64url without padding.
type Bytes []byte

// MarshalText encodes b.
func (b Bytes) MarshalText() ([]byte, error) {
	return []byte(strictjson.EncodeBase64URL(b)), nil
}

// UnmarshalText decodes what MarshalText wrote, strictly.
func (b *Bytes) UnmarshalText(text []byte) (err error) {
	*b, err = strictjson.DecodeBase64URL(string(text))
	return err
}

// Evidence kinds.
const (
	KindCredential   = "credential"    // the exact bytes that an agent presented to a proxy
	KindSubject      = "subject"       // the exact subject_token that an agent presented to the broker
	KindCertificate  = "certificate"   // DER, of a presenter's path or of a trust bundle
	KindKeyStatement = "key_statement" // by which the certifying key vouches for a token key
	KindIdentityKeys = "identity_keys" // JWKS of an identity provider
	KindVerification = "verification"  // names all of these for one verified credential
	KindRecording    = "recording"     // a piece of what passed on a terminal, of the decision that it belongs to
)

// Evidence keeps exact bytes, once, under their digest.
type Evidence struct {
	Kind   string `json:"kind"`
	Digest Digest `json:"digest"`
	Data   Bytes  `json:"data"`
}

// Heartbeat makes silence visible.
type Heartbeat struct {
	Interval Microseconds `json:"interval_us"`
	Open     int          `json:"open"` // decisions whose outcome is still to come
}

// LogOpened is the first record after a start.
type LogOpened struct {
	Segment     int64  `json:"segment"`
	Recovered   bool   `json:"recovered,omitempty"`   // the log hadn't been closed
	TornOffset  int64  `json:"torn_offset,omitempty"` // where an unfinished frame was found and wiped
	TornBytes   int64  `json:"torn_bytes,omitempty"`  // how much of it
	TornDigest  Digest `json:"torn_digest,omitempty"` // digest of what was wiped
	OpenedCount int    `json:"open_decisions"`        // outcome_unknown records that follow
	Version     string `json:"program,omitempty"`
}

// LogSegment is the first record of every segment but the first; where the list is long, the first few.
type LogSegment struct {
	Segment int64          `json:"segment"`
	Total   int            `json:"total"` // open decisions, in all records of this segment's start
	Open    []OpenDecision `json:"open,omitempty"`
}

// OpenDecision is a decision of an earlier segment whose outcome was still to come.
type OpenDecision struct {
	ID        RecordID `json:"id"`
	Seq       int64    `json:"seq"`
	Forwarded bool     `json:"forwarded,omitempty"`
}

// LogClosed is the last record of a clean shutdown.
type LogClosed struct {
	Reason string `json:"reason"`
}

func (*Evidence) EventType() Type   { return TypeEvidence }
func (*Heartbeat) EventType() Type  { return TypeHeartbeat }
func (*LogOpened) EventType() Type  { return TypeLogOpened }
func (*LogSegment) EventType() Type { return TypeLogSegment }
func (*LogClosed) EventType() Type  { return TypeLogClosed }

func (e *Evidence) check() error {
	if e.Kind == "" || len(e.Data) == 0 {
		return errors.New("event lacks kind or data")
	}
	if DigestOf(e.Data) != e.Digest {
		return errors.New("evidence: the digest isn't that of the data")
	}
	return nil
}
func (e *Heartbeat) check() error  { return nil }
func (e *LogOpened) check() error  { return nil }
func (e *LogSegment) check() error { return nil }
func (e *LogClosed) check() error  { return need("reason", e.Reason) }
