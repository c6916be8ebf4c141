package audit

import "time"

// Type names what a record is about. The names are part of the format.
type Type string

// The types of record.
const (
	TypeSignIn           Type = "sign_in"
	TypeSessionOpened    Type = "session_opened"
	TypeSessionEnded     Type = "session_ended"
	TypeExchange         Type = "exchange"
	TypeSpawn            Type = "spawn"
	TypeAgentEnded       Type = "agent_ended"
	TypeJWTSVID          Type = "jwt_svid"
	TypeConnectionOpened Type = "connection_opened"
	TypeConnectionClosed Type = "connection_closed"
	TypeChain            Type = "chain"
	TypeDecision         Type = "decision"
	TypeForwarded        Type = "forwarded"
	TypeMasked           Type = "masked"
	TypeCompleted        Type = "completed"
	TypeOutcomeUnknown   Type = "outcome_unknown"
	TypeRefused          Type = "refused"
	TypeRevoked          Type = "revoked"
	TypeOperatorCall     Type = "operator_call"
	TypePolicyLoaded     Type = "policy_loaded"
	TypeHeartbeat        Type = "heartbeat"
	TypeEvidence         Type = "evidence"
	TypeLogOpened        Type = "log_opened"
	TypeLogSegment       Type = "log_segment"
	TypeLogClosed        Type = "log_closed"
)

// Event is the body of a record: one of the types of this package, by pointer.
type Event interface {
	// EventType returns the name of the type.
	EventType() Type
	// check says what a required member lacks.
	check() error
}

// Result of something that was asked for.
type Result string

// The results.
const (
	Accepted Result = "accepted"
	Refusal  Result = "refused"
)

// Effect of a decision.
type Effect string

// The effects.
const (
	Allow  Effect = "allow"
	Refuse Effect = "refuse"
)

// lazy reports whether nobody waits for records of type t, so that they may ride in the next frame.
func (t Type) lazy() bool {
	switch t {
	case TypeForwarded, TypeMasked, TypeCompleted, TypeConnectionClosed, TypeHeartbeat, TypeAgentEnded:
		return true
	}
	return false
}

// owed reports whether records of type t end something that an earlier record began: they are never
// refused by a quota, and may use the room that is kept free when the disk is full.
func (t Type) owed() bool {
	switch t {
	case TypeForwarded, TypeMasked, TypeCompleted, TypeOutcomeUnknown, TypeConnectionClosed, TypeAgentEnded,
		TypeSessionEnded, TypeRevoked, TypeChain, TypeLogOpened, TypeLogSegment, TypeLogClosed:
		return true
	}
	return false
}

// belongs reports whether records of type t follow a decision: without one, or behind its outcome, none is written.
func (t Type) belongs() bool { return t == TypeForwarded || t == TypeMasked || t == TypeCompleted }

// newEvent returns an empty event of type t, or nil for an unknown one.
func newEvent(t Type) Event {
	switch t {
	case TypeSignIn:
		return new(SignIn)
	case TypeSessionOpened:
		return new(SessionOpened)
	case TypeSessionEnded:
		return new(SessionEnded)
	case TypeExchange:
		return new(Exchange)
	case TypeSpawn:
		return new(Spawn)
	case TypeAgentEnded:
		return new(AgentEnded)
	case TypeJWTSVID:
		return new(JWTSVID)
	case TypeConnectionOpened:
		return new(ConnectionOpened)
	case TypeConnectionClosed:
		return new(ConnectionClosed)
	case TypeChain:
		return new(ChainStated)
	case TypeDecision:
		return new(Decision)
	case TypeForwarded:
		return new(Forwarded)
	case TypeMasked:
		return new(Masked)
	case TypeCompleted:
		return new(Completed)
	case TypeOutcomeUnknown:
		return new(OutcomeUnknown)
	case TypeRefused:
		return new(Refused)
	case TypeRevoked:
		return new(Revoked)
	case TypeOperatorCall:
		return new(OperatorCall)
	case TypePolicyLoaded:
		return new(PolicyLoaded)
	case TypeHeartbeat:
		return new(Heartbeat)
	case TypeEvidence:
		return new(Evidence)
	case TypeLogOpened:
		return new(LogOpened)
	case TypeLogSegment:
		return new(LogSegment)
	case TypeLogClosed:
		return new(LogClosed)
	}
	return nil
}

// Microseconds is a duration as records write it.
type Microseconds int64

// Since returns the time from start to end.
func Since(start, end time.Time) Microseconds { return Microseconds(end.Sub(start).Microseconds()) }
