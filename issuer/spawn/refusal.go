package spawn

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/issuer/attest"
)

// Classes of refusal, as they stand in records.
const (
	classNoEntry   = "no_entry"       // no registration entry matches the caller
	classNoPlace   = "no_place"       // the kernel's facts give the caller no place in the tree
	classNotSuper  = "not_supervisor" // inside an agent, and not its supervisor
	classLimit     = "limit"          // children, depth, subtree or rate
	className      = "bad_name"
	classTicket    = "bad_ticket"
	classRequest   = "bad_request"
	classIsolation = "not_isolated" // the kernel doesn't show what was asked for
	classProof     = "bad_proof"
	classLineage   = "live_elsewhere" // the agent or the process is in use already
	classRevoked   = "revoked"
	classInternal  = "internal"
)

// refusal is an error that the caller may see as it is.
type refusal struct {
	code  codes.Code
	class string
	text  string
}

func (r *refusal) Error() string { return r.text }

func refuse(code codes.Code, class, format string, args ...any) error {
	return &refusal{code, class, fmt.Sprintf(format, args...)}
}

// recordWithin bounds how long a refusal waits for its record.
const recordWithin = 5 * time.Second

// attempt is what a refused call was about, as far as it is known.
type attempt struct {
	uid    uint32
	name   string
	agent  string
	parent string
}

// refused turns an error into what the caller gets, and records it as an attempt to start or keep an agent.
func (s *Server) refused(ctx context.Context, call string, at attempt, err error) error {
	return s.answer(ctx, call, at.uid, err, func(r *refusal) audit.Event {
		name := at.name
		if name == "" {
			name = "unknown"
		}
		return &audit.Spawn{
			Result: audit.Refusal, Agent: at.agent, Parent: at.parent, Name: name, Class: r.class, Reason: call + ": " + r.text,
			Attested: []audit.Selector{{Name: "uid", Value: strconv.FormatUint(uint64(at.uid), 10)}},
		}
	})
}

// answer turns an error into what the caller gets, and records it. Each uid has a budget of records; what exceeds it
// is only counted, so that nobody fills the log by asking.
func (s *Server) answer(ctx context.Context, call string, uid uint32, err error, event func(*refusal) audit.Event) error {
	r := s.plain(ctx, call, err)
	if !s.recordBudget(uid) {
		s.audit.Count("spawn_" + r.class)
		return status.Errorf(r.code, "%s: %s (record: none)", call, r.text)
	}
	// A caller that hangs up doesn't get out of the record.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordWithin)
	defer cancel()
	id, idErr := audit.NewRecordID()
	if idErr == nil {
		_, idErr = s.audit.Append(ctx, audit.Record{ID: id, Event: event(r)})
	}
	if idErr != nil {
		s.log.ErrorContext(ctx, "recording a refusal failed", "error", idErr)
		id = ""
	}
	return status.Errorf(r.code, "%s: %s (record: %s)", call, r.text, id)
}

// unrecorded is refused for what leaves no record.
func (s *Server) unrecorded(ctx context.Context, call string, err error) error {
	r := s.plain(ctx, call, err)
	return status.Errorf(r.code, "%s: %s", call, r.text)
}

// plain is what the caller may see of an error.
func (s *Server) plain(ctx context.Context, call string, err error) *refusal {
	var r *refusal
	if !errors.As(err, &r) {
		// The cause stays here: it may name files and other people's processes.
		s.log.ErrorContext(ctx, "spawn service failed", "call", call, "error", err)
		r = &refusal{codes.Internal, classInternal, "the issuer failed; its log says why"}
	}
	return r
}

// known refuses a message with fields that this build doesn't know.
func known(m proto.Message) error {
	if len(m.ProtoReflect().GetUnknown()) > 0 {
		return refuse(codes.InvalidArgument, classRequest, "the message has fields that this issuer doesn't know; are both of one version?")
	}
	return nil
}

func selectors(e actor.Evidence, exact bool) []audit.Selector {
	out := []audit.Selector{
		{Name: "uid", Value: strconv.FormatUint(uint64(e.UID), 10)},
		{Name: "gid", Value: strconv.FormatUint(uint64(e.GID), 10)},
		{Name: "peer_pidfd", Value: strconv.FormatBool(exact)},
	}
	for _, s := range []audit.Selector{{Name: "binary_path", Value: e.Path}, {Name: "binary_sha256", Value: e.SHA256}, {Name: "cgroup", Value: e.Cgroup}} {
		if s.Value != "" {
			out = append(out, s)
		}
	}
	return out
}

// peerOf returns the caller; a call without one never gets further.
func peerOf(ctx context.Context) (*attest.Peer, error) {
	p, err := attest.PeerFrom(ctx)
	if err != nil {
		return nil, status.Error(codes.Unauthenticated, err.Error())
	}
	return p, nil
}
