package feed

import (
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/deputymesh/deputy/internal/target"
	feedv1 "github.com/deputymesh/deputy/proto/deputy/feed/v1"
)

// Limits of one message.
const (
	// MaxMessage is the largest message on the feed, in bytes; both sides set it as gRPC's limit.
	MaxMessage = 64 << 20
	// HeartbeatEvery is how often the broker speaks when it has nothing to say.
	HeartbeatEvery = 2 * time.Second

	maxTargets   = 1024
	maxKeys      = 16
	maxStatement = 16 << 10
	maxPolicySet = 4 << 20
	maxChanges   = 250_000
	maxReason    = 1024
	maxID        = 128
)

// Hello is the first message of a proxy.
type Hello struct {
	Targets       []target.Name
	Revision      uint64
	PolicyVersion uint64
}

// Ack says that a revision is in force at the proxy, and how many live sessions it ended.
type Ack struct {
	Revision      uint64
	SessionsEnded uint32
}

// MessageKind says what an Update is.
type MessageKind uint8

// The kinds of update.
const (
	Heartbeat MessageKind = iota + 1 // nothing new up to Revision
	Delta                            // add Changes
	Snapshot                         // Changes is everything; forget what was known before
)

// Update is one message of the broker.
type Update struct {
	Revision uint64
	SentAt   time.Time
	Kind     MessageKind
	Changes  // empty in a heartbeat
}

// Changes is what a snapshot holds, or what a delta adds.
type Changes struct {
	// TokenKeyStatements are compact JWS of typ deputy-token-key+jwt; the receiver verifies each.
	TokenKeyStatements []string
	// PolicySet is a compact JWS of typ deputy-policy+jwt, or empty; the receiver verifies it.
	PolicySet   string
	Revocations []Revocation
	Ended       []EndedAgent
}

// Revocation ends everything that it matches.
type Revocation struct {
	ID        string
	Of        Match
	IssuedAt  time.Time
	ExpiresAt time.Time // afterwards nothing that it matches can still be alive
	Reason    string
}

// EndedAgent is an agent that is no more; all below it ended with it.
type EndedAgent struct {
	ID      string // SPIFFE ID
	EndedAt time.Time
}

// ProxyMessage is one message of a proxy: exactly one of Hello and Ack is set.
type ProxyMessage struct {
	Hello *Hello
	Ack   *Ack
}

// ProxyMessageToProto converts m for the wire. It panics if m is empty, which is a programming error.
func ProxyMessageToProto(m ProxyMessage) *feedv1.ProxyMessage {
	switch {
	case m.Hello != nil:
		h := &feedv1.Hello{Revision: m.Hello.Revision, PolicyVersion: m.Hello.PolicyVersion}
		for _, n := range m.Hello.Targets {
			h.Targets = append(h.Targets, n.String())
		}
		return &feedv1.ProxyMessage{Message: &feedv1.ProxyMessage_Hello{Hello: h}}
	case m.Ack != nil:
		return &feedv1.ProxyMessage{Message: &feedv1.ProxyMessage_Ack{Ack: &feedv1.Ack{
			Revision: m.Ack.Revision, SessionsEnded: m.Ack.SessionsEnded,
		}}}
	}
	panic("feed: empty ProxyMessage")
}

// ProxyMessageFromProto checks and converts what a proxy sent.
func ProxyMessageFromProto(p *feedv1.ProxyMessage) (ProxyMessage, error) {
	if err := known(p); err != nil {
		return ProxyMessage{}, err
	}
	switch m := p.GetMessage().(type) {
	case *feedv1.ProxyMessage_Hello:
		h := m.Hello
		if n := len(h.GetTargets()); n == 0 || n > maxTargets {
			return ProxyMessage{}, fmt.Errorf("hello names %d targets: want 1 to %d", n, maxTargets)
		}
		out := &Hello{Revision: h.GetRevision(), PolicyVersion: h.GetPolicyVersion()}
		seen := make(map[target.Name]bool, len(h.GetTargets()))
		for _, s := range h.GetTargets() {
			n, err := target.ParseName(s)
			if err != nil {
				return ProxyMessage{}, fmt.Errorf("reading hello: %w", err)
			}
			if seen[n] {
				return ProxyMessage{}, fmt.Errorf("hello names target %s twice", n)
			}
			seen[n] = true
			out.Targets = append(out.Targets, n)
		}
		return ProxyMessage{Hello: out}, nil
	case *feedv1.ProxyMessage_Ack:
		return ProxyMessage{Ack: &Ack{Revision: m.Ack.GetRevision(), SessionsEnded: m.Ack.GetSessionsEnded()}}, nil
	}
	return ProxyMessage{}, errors.New("a proxy's message is neither hello nor ack")
}

// UpdateToProto converts u for the wire. It panics if u's kind is unknown, which is a programming error.
func UpdateToProto(u Update) *feedv1.BrokerMessage {
	out := &feedv1.BrokerMessage{Revision: u.Revision, SentAt: timestamppb.New(u.SentAt)}
	var revs []*feedv1.Revocation
	for _, r := range u.Revocations {
		revs = append(revs, RevocationToProto(r))
	}
	var ended []*feedv1.EndedAgent
	for _, e := range u.Ended {
		ended = append(ended, &feedv1.EndedAgent{SpiffeId: e.ID, EndedAt: timestamppb.New(e.EndedAt)})
	}
	switch u.Kind {
	case Heartbeat:
		out.Message = &feedv1.BrokerMessage_Heartbeat{Heartbeat: &feedv1.Heartbeat{}}
	case Delta:
		out.Message = &feedv1.BrokerMessage_Delta{Delta: &feedv1.Delta{
			TokenKeyStatements: u.TokenKeyStatements, PolicySet: u.PolicySet, Revocations: revs, EndedAgents: ended,
		}}
	case Snapshot:
		out.Message = &feedv1.BrokerMessage_Snapshot{Snapshot: &feedv1.Snapshot{
			TokenKeyStatements: u.TokenKeyStatements, PolicySet: u.PolicySet, Revocations: revs, EndedAgents: ended,
		}}
	default:
		panic(fmt.Sprintf("feed: unknown kind of update %d", u.Kind))
	}
	return out
}

// UpdateFromProto checks and converts what the broker sent. Signatures are not checked here.
func UpdateFromProto(p *feedv1.BrokerMessage) (Update, error) {
	if err := known(p); err != nil {
		return Update{}, err
	}
	sent, err := when(p.GetSentAt())
	if err != nil {
		return Update{}, fmt.Errorf("reading an update's sent_at: %w", err)
	}
	u := Update{Revision: p.GetRevision(), SentAt: sent}
	switch m := p.GetMessage().(type) {
	case *feedv1.BrokerMessage_Heartbeat:
		u.Kind = Heartbeat
		return u, nil
	case *feedv1.BrokerMessage_Delta:
		u.Kind = Delta
		u.Changes, err = changes(m.Delta.GetTokenKeyStatements(), m.Delta.GetPolicySet(), m.Delta.GetRevocations(), m.Delta.GetEndedAgents())
	case *feedv1.BrokerMessage_Snapshot:
		u.Kind = Snapshot
		u.Changes, err = changes(m.Snapshot.GetTokenKeyStatements(), m.Snapshot.GetPolicySet(), m.Snapshot.GetRevocations(), m.Snapshot.GetEndedAgents())
	default:
		return Update{}, errors.New("the broker's message is neither snapshot, delta nor heartbeat")
	}
	if err != nil {
		return Update{}, fmt.Errorf("reading revision %d: %w", u.Revision, err)
	}
	return u, nil
}

func changes(keys []string, set string, revs []*feedv1.Revocation, ended []*feedv1.EndedAgent) (Changes, error) {
	if len(keys) > maxKeys || len(revs) > maxChanges || len(ended) > maxChanges || len(set) > maxPolicySet {
		return Changes{}, errors.New("more keys, revocations, ended agents or policy than one message may hold")
	}
	for _, k := range keys {
		if k == "" || len(k) > maxStatement {
			return Changes{}, fmt.Errorf("a token key statement of %d bytes: want 1 to %d", len(k), maxStatement)
		}
	}
	c := Changes{TokenKeyStatements: keys, PolicySet: set}
	for _, r := range revs {
		rev, err := RevocationFromProto(r)
		if err != nil {
			return Changes{}, err
		}
		c.Revocations = append(c.Revocations, rev)
	}
	for _, e := range ended {
		if err := checkAgent(e.GetSpiffeId()); err != nil {
			return Changes{}, fmt.Errorf("reading an ended agent: %w", err)
		}
		at, err := when(e.GetEndedAt())
		if err != nil {
			return Changes{}, fmt.Errorf("reading when %s ended: %w", e.GetSpiffeId(), err)
		}
		c.Ended = append(c.Ended, EndedAgent{ID: e.GetSpiffeId(), EndedAt: at})
	}
	return c, nil
}

// RevocationToProto converts r for the wire. It panics if r's kind is unknown, which is a programming error.
func RevocationToProto(r Revocation) *feedv1.Revocation {
	out := &feedv1.Revocation{
		Id: r.ID, IssuedAt: timestamppb.New(r.IssuedAt), ExpiresAt: timestamppb.New(r.ExpiresAt), Reason: r.Reason,
	}
	switch m := r.Of; m.Kind {
	case User:
		out.Of = &feedv1.Revocation_User{User: &feedv1.Subject{Iss: m.Issuer, Sub: m.Value}}
	case Session:
		out.Of = &feedv1.Revocation_Session{Session: m.Value}
	case Task:
		out.Of = &feedv1.Revocation_Task{Task: m.Value}
	case Agent:
		out.Of = &feedv1.Revocation_Agent{Agent: m.Value}
	case Edge:
		out.Of = &feedv1.Revocation_Edge{Edge: &feedv1.Edge{Delegator: m.Value, Delegate: m.Delegate}}
	case Grant:
		out.Of = &feedv1.Revocation_Grant{Grant: &feedv1.Statement{Iss: m.Issuer, Jti: m.Value}}
	case Target:
		out.Of = &feedv1.Revocation_Target{Target: m.Value}
	default:
		panic(fmt.Sprintf("feed: unknown kind of revocation %q", m.Kind))
	}
	return out
}

// RevocationFromProto checks and converts one revocation.
func RevocationFromProto(p *feedv1.Revocation) (Revocation, error) {
	if err := known(p); err != nil {
		return Revocation{}, err
	}
	if p.GetId() == "" || len(p.GetId()) > maxID || len(p.GetReason()) > maxReason {
		return Revocation{}, errors.New("a revocation has no id, or its id or reason is too long")
	}
	var m Match
	switch of := p.GetOf().(type) {
	case *feedv1.Revocation_User:
		m = Match{Kind: User, Issuer: of.User.GetIss(), Value: of.User.GetSub()}
	case *feedv1.Revocation_Session:
		m = Match{Kind: Session, Value: of.Session}
	case *feedv1.Revocation_Task:
		m = Match{Kind: Task, Value: of.Task}
	case *feedv1.Revocation_Agent:
		m = Match{Kind: Agent, Value: of.Agent}
	case *feedv1.Revocation_Edge:
		m = Match{Kind: Edge, Value: of.Edge.GetDelegator(), Delegate: of.Edge.GetDelegate()}
	case *feedv1.Revocation_Grant:
		m = Match{Kind: Grant, Issuer: of.Grant.GetIss(), Value: of.Grant.GetJti()}
	case *feedv1.Revocation_Target:
		m = Match{Kind: Target, Value: of.Target}
	default:
		return Revocation{}, fmt.Errorf("revocation %s names nothing", p.GetId())
	}
	if err := m.Check(); err != nil {
		return Revocation{}, fmt.Errorf("revocation %s: %w", p.GetId(), err)
	}
	issued, err := when(p.GetIssuedAt())
	if err != nil {
		return Revocation{}, fmt.Errorf("revocation %s: issued_at: %w", p.GetId(), err)
	}
	expires, err := when(p.GetExpiresAt())
	if err != nil {
		return Revocation{}, fmt.Errorf("revocation %s: expires_at: %w", p.GetId(), err)
	}
	return Revocation{ID: p.GetId(), Of: m, IssuedAt: issued, ExpiresAt: expires, Reason: p.GetReason()}, nil
}

func when(t *timestamppb.Timestamp) (time.Time, error) {
	if err := t.CheckValid(); err != nil {
		return time.Time{}, err
	}
	return t.AsTime(), nil
}

// known refuses a message that has an unknown field anywhere: what can't be read can't be obeyed.
func known(m proto.Message) error {
	if m == nil || !m.ProtoReflect().IsValid() {
		return errors.New("the message is missing")
	}
	return knownFields(m.ProtoReflect())
}

func knownFields(m protoreflect.Message) error {
	if len(m.GetUnknown()) > 0 {
		return errUnknownFields
	}
	var err error
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		if fd.Message() == nil {
			return true
		}
		if fd.IsList() {
			for i := 0; i < v.List().Len() && err == nil; i++ {
				err = knownFields(v.List().Get(i).Message())
			}
		} else {
			err = knownFields(v.Message())
		}
		return err == nil
	})
	return err
}
