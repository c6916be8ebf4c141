package proxy

import "context"

// Authorize asks whether the session may do cmd. It matches every op with the capability, decides every
// op by policy, and records the decision. For a command that isn't proven read-only it returns when the
// decision is durable; for a read-only one at once, and Pass.Wait must succeed before any byte of the
// answer leaves. The error is a [*Refusal], recorded before it is returned.
func (s *Session) Authorize(ctx context.Context, cmd Command) (*Pass, error) {
	return nil, &Refusal{Class: ClassNotReady, Reason: "this proxy isn't ready yet"}
}

// Refuse records a refusal that an engine makes before it has a command to authorize, such as a statement
// that can't be parsed, and returns it.
func (s *Session) Refuse(ctx context.Context, cmd Command, o Objection) *Refusal {
	return &Refusal{Class: o.Class, Reason: o.Reason}
}

// Close ends the session and records why: "client", "upstream", "error" or "shutdown"; where the core
// ended it already, its own reason stays. Passes that are still open are completed as "cut", or as
// "not_sent" if they were never used.
func (s *Session) Close(reason, detail string) {}
