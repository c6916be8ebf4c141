package sftp

import (
	"context"
	"io"
)

// Decider decides and records what [Serve] is asked for.
type Decider interface {
	// Decide asks whether all of a request is allowed. The decision is recorded before it returns; unless the request only looks, it is
	// durable then. The error is for the agent: it says why, and names the record.
	Decide(ctx context.Context, r Request) (Grant, error)
	// Refuse records a refusal of something that isn't worth a decision, and returns it in words for the agent.
	Refuse(ctx context.Context, r Request, reason string) error
}

// Session is the kind of a refusal that ends the session, since the agent sends what can't be read.
const Session = "sftp"

// Request is one request of an agent, as it is decided.
type Request struct {
	// Kind is what it is, such as "sftp-open".
	Kind string
	// Text says what is asked for, for the record.
	Text string
	// Access is what it does to which paths; all must be allowed.
	Access []Access
	// ReadOnly says that it only looks at something: its decision may become durable while the target looks, too.
	ReadOnly bool
}

// Access is one of the actions on paths ("sftp-read" and so on), on one canonical path.
type Access struct {
	Verb, Path string
}

// The actions. They are those of capabilities and policies.
const (
	Read    = "sftp-read"
	Write   = "sftp-write"
	List    = "sftp-list"
	Stat    = "sftp-stat"
	Rename  = "sftp-rename"
	Remove  = "sftp-remove"
	Setstat = "sftp-setstat"
	Link    = "sftp-link"
)

// Grant allows one request, once.
type Grant interface {
	// RecordID names the decision's record.
	RecordID() string
	// Use takes the grant, before anything leaves for the target. It fails where the session is over.
	Use() error
	// Wait returns when the decision is durable. No byte of the answer leaves before.
	Wait(ctx context.Context) error
	// Completed records what came of it, before the agent hears it. Only the first call counts.
	Completed(ctx context.Context, o Outcome)
}

// Outcome is what came of a request, or of an open file.
type Outcome struct {
	// Status is "ok", "error", "cancelled", "cut" or "not_sent".
	Status string
	// Code is the target's, in words, where it said no.
	Code string
	// Read went to the agent, Written to the target: bytes of files and listings.
	Read, Written int64
}

// Target is the channel to the host's SFTP server. Close makes a Read that waits return.
type Target interface {
	io.ReadWriter
	CloseWrite() error
	Close() error
}
