package spawn

import (
	"context"
	"errors"
	"time"

	"github.com/deputymesh/deputy/actor"
)

// ErrExists says that the instance was used before.
var ErrExists = errors.New("the instance was used before")

// Store keeps what must outlive the issuer: which instances were ever used, which agents live and who holds them, and
// which have ended, in an order that never changes. Every method returns when its effect survives a power cut, or with an
// error when it may or may not have happened; nothing is half-done. Safe for concurrent use.
type Store interface {
	// Create keeps a new agent before its name leaves the issuer. ErrExists when its instance was ever used.
	Create(ctx context.Context, r Record) error
	// Save replaces what is known of an agent that was created and hasn't ended.
	Save(ctx context.Context, r Record) error
	// End ends agents in one transaction, in the order given, and returns them with rising revisions. Agents that have
	// ended already are left as they are and not returned.
	End(ctx context.Context, ids []actor.AgentID, reason string, at time.Time) ([]Ended, error)
	// Forget drops the process of an ended agent, once it is dead.
	Forget(ctx context.Context, id actor.AgentID) error
	// Load returns all agents that haven't ended or whose process isn't forgotten, parents before children.
	Load(ctx context.Context) ([]Record, error)
	// EndedAfter returns up to limit ended agents with a revision above after, in order.
	EndedAfter(ctx context.Context, after uint64, limit int) ([]Ended, error)
	// Revision is the newest revision, 0 when no agent has ended.
	Revision(ctx context.Context) (uint64, error)
}

// Record is an agent as it is kept.
type Record struct {
	ID         actor.AgentID
	Ended      bool
	Registered time.Time
	Isolate    bool
	Claimed    bool
	UID        uint32 // host uid that was claimed for it; only with Claimed
	Registrant uint32 // uid that registered it
	// LauncherCgroup is where the launcher was when it claimed the uid.
	LauncherCgroup string

	Attached bool // from here on: only once it has attached
	Relayed  bool
	BootID   string
	PID      int
	Start    uint64
	ProcUID  uint32
	Cgroup   string // the agent's own, "" when it shares one
	Grade    actor.Grade
	Key      []byte // SubjectPublicKeyInfo of the current key
}

// Ended is an agent that has ended, and why: `exited`, `lost`, `revoked`, `expired` (it never attached) or
// `ancestor` (an agent above it ended).
type Ended struct {
	Revision uint64
	ID       actor.AgentID
	Reason   string
	At       time.Time
}
