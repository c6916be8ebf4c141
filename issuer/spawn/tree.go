package spawn

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math/big"
	"os"
	"strings"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc/codes"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/issuer/attest"
)

// Why an agent ended, as [Ended] says.
const (
	ReasonExited   = "exited"   // its supervisor said so, or its process died
	ReasonLost     = "lost"     // its stream broke and didn't come back
	ReasonRevoked  = "revoked"  // an operator said so, or its supervisor is no longer what was attested
	ReasonExpired  = "expired"  // it never attached
	ReasonAncestor = "ancestor" // an agent above it ended
)

type state int

const (
	pending   state = iota // registered; holds a ticket
	attaching              // its ticket is used, its SVID not signed yet
	live                   // its stream is up
	broken                 // its stream is gone; it may resume until the grace is over
	ended
)

type ticketHash = [sha256.Size]byte

// agent is one agent of the tree. All fields are guarded by Server.mu, save those that are never changed once the agent is in
// the tree (id, parent, root, isolate, registrant) and the channel.
type agent struct {
	id         actor.AgentID
	parent     *agent // nil: first level
	root       *agent // itself at the first level
	isolate    bool
	registrant uint32 // uid that registered it
	done       chan struct{}

	state    state
	reason   string // of the end
	children map[*agent]struct{}
	size     int   // of the subtree, on roots only
	spawns   *pace // of the subtree, on roots only
	renewals *rate.Limiter
	jwts     *rate.Limiter // JWT-SVIDs of the agent; nil before the first
	treeJWTs *rate.Limiter // of the subtree, on roots only
	timer    *time.Timer
	hash     ticketHash
	revoked  bool        // by the broker's word; so is everything below
	ending   *time.Timer // ends it, once revoked

	registered     time.Time
	expires        time.Time // of the ticket
	claimed        bool
	uid            uint32 // claimed
	launcherCgroup string

	relayed bool
	process *attest.Process // the supervisor; of a relayed agent, its parent's
	procUID uint32
	cgroup  string // its own, or ""
	grade   actor.Grade
	key     *ecdsa.PublicKey
	digest  [sha256.Size]byte // of key
	// notAfter is when the current SVID ends; zero after a restart, until the agent has resumed.
	notAfter time.Time
}

func (a *agent) stopTimer() {
	if a.timer != nil {
		a.timer.Stop()
		a.timer = nil
	}
}

// stopTimers is for an agent that is over, or whose server is.
func (a *agent) stopTimers() {
	a.stopTimer()
	if a.ending != nil {
		a.ending.Stop()
	}
}

// within says whether a is b or lies below it.
func (a *agent) within(b *agent) bool {
	for ; a != nil; a = a.parent {
		if a == b {
			return true
		}
	}
	return false
}

// CheckName says whether an agent may have a name.
func CheckName(name string) error {
	if len(name) == 0 || len(name) > 32 || name[0] < 'a' || name[0] > 'z' ||
		strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
		return fmt.Errorf("agent name %q: want [a-z][a-z0-9-]{0,31}", clip(name))
	}
	return nil
}

func clip(s string) string {
	if len(s) > 64 {
		return s[:64] + "…"
	}
	return s
}

// pace bounds registrations: many at once, fewer for long.
type pace struct{ burst, steady *rate.Limiter }

func (l Limits) newPace() *pace {
	return &pace{
		burst:  rate.NewLimiter(rate.Limit(l.SpawnRate), l.SpawnBurst),
		steady: rate.NewLimiter(rate.Limit(l.SpawnRate/10), max(l.SpawnBurst, int(100*l.SpawnRate))),
	}
}

func (p *pace) allow(now time.Time) bool { return p.burst.AllowN(now, 1) && p.steady.AllowN(now, 1) }

// admit puts a new agent into the tree if the limits allow it. The caller holds s.mu.
func (s *Server) admit(a *agent) error {
	limited := func(format string, args ...any) error {
		return refuse(codes.ResourceExhausted, classLimit, format, args...)
	}
	if d := a.id.Depth(); d > s.limits.Depth {
		return limited("agents may nest %d levels deep; this would be level %d", s.limits.Depth, d)
	}
	if a.parent == nil {
		if n := s.firsts[a.registrant]; n >= s.limits.FirstLevel {
			return limited("uid %d has %d live first-level agents, which is the limit", a.registrant, n)
		}
		if s.rates[a.registrant] == nil {
			s.rates[a.registrant] = s.limits.newPace()
		}
		if !s.rates[a.registrant].allow(time.Now()) {
			return limited("uid %d starts agents too fast; wait a moment", a.registrant)
		}
		a.root, a.spawns = a, s.limits.newPace()
		s.firsts[a.registrant]++
	} else {
		if n := len(a.parent.children); n >= s.limits.Children {
			return limited("%s has %d live children, which is the limit", a.parent.id, n)
		}
		if a.root.size >= s.limits.Subtree {
			return limited("the tree below %s has %d live agents, which is the limit", a.root.id, a.root.size)
		}
		if !a.root.spawns.allow(time.Now()) {
			return limited("the tree below %s starts agents too fast; wait a moment", a.root.id)
		}
		a.parent.children[a] = struct{}{}
	}
	a.root.size++
	s.agents[a.id] = a
	return nil
}

// dismiss takes an agent out of the tree; its marks stay. The caller holds s.mu.
func (s *Server) dismiss(a *agent) {
	delete(s.agents, a.id)
	delete(s.tickets, a.hash)
	if a.parent != nil {
		delete(a.parent.children, a)
	} else if s.firsts[a.registrant]--; s.firsts[a.registrant] <= 0 {
		delete(s.firsts, a.registrant)
	}
	a.root.size--
	if a.claimed && s.uids[a.uid] == a {
		delete(s.uids, a.uid) // from now on whoever runs under it has no place
	}
	if s.keys[a.digest] == a {
		delete(s.keys, a.digest)
	}
	if a.cgroup != "" {
		s.oldPaths = append(s.oldPaths, a.cgroup)
		for len(s.oldPaths) > maxOldCgroups {
			if old := s.cgroups[s.oldPaths[0]]; old != nil && old.state == ended {
				delete(s.cgroups, s.oldPaths[0])
				s.removals++
			}
			s.oldPaths = s.oldPaths[1:]
		}
	}
	a.stopTimers()
}

// maxOldCgroups bounds how many cgroups of ended agents stay marks. A process that is still in an older one runs under a uid
// that belongs to nobody, so it has no place all the same.
const maxOldCgroups = 4096

// end ends an agent and everything below it, once.
func (s *Server) end(a *agent, reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.endLocked(a, reason)
}

// endAfter ends an agent after d if it is still in the same state, with the same timer. The caller holds s.mu.
func (s *Server) endAfter(a *agent, d time.Duration, reason string) {
	a.stopTimer()
	was := a.state
	var mine *time.Timer
	mine = time.AfterFunc(d, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if a.timer == mine && a.state == was {
			s.endLocked(a, reason)
		}
	})
	a.timer = mine
}

func (s *Server) endLocked(a *agent, reason string) {
	if a.state == ended || s.closing {
		return
	}
	var ids []actor.AgentID
	var all func(*agent, string)
	all = func(a *agent, reason string) {
		ids = append(ids, a.id)
		a.state, a.reason = ended, reason
		close(a.done)
		for c := range a.children {
			all(c, ReasonAncestor)
		}
		s.dismiss(a)
	}
	all(a, reason)
	// Queued under the lock: two ends are written in the order in which they happened.
	s.writer.end(ids, reason, s.now())
}

// hold marks a process as an agent's supervisor and waits for its death. The caller holds s.mu.
func (s *Server) hold(a *agent, p *attest.Process) {
	a.process = p
	mark := attest.Ancestor{PID: p.PID(), Start: p.StartTime()}
	s.held[mark] = a
	s.holders.Go(func() {
		err := p.Wait()
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.closing {
			return
		}
		if err != nil {
			s.log.Error("waiting for a supervisor failed; its agent ends", "agent", a.id, "error", err)
		}
		s.endLocked(a, ReasonExited)
		if s.held[mark] == a {
			delete(s.held, mark)
			s.removals++
		}
		p.Close()
		s.writer.forget(a.id)
	})
}

// claimUID gives an agent a uid of the range that no live agent has and that no process runs under. The search goes
// round the range, so that files left behind by an ended agent find a new owner as late as possible.
func (s *Server) claimUID(a *agent) error {
	used, err := attest.UIDsInUse()
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if a.state != pending || a.claimed || s.closing {
		return refuse(codes.FailedPrecondition, classTicket, "the ticket was used, claimed or has expired")
	}
	size := s.uidRange.Last - s.uidRange.First + 1
	for range size {
		if s.lastUID++; !s.uidRange.Contains(s.lastUID) {
			s.lastUID = s.uidRange.First
		}
		if s.uids[s.lastUID] == nil && !used[s.lastUID] {
			a.uid, a.claimed = s.lastUID, true
			s.uids[a.uid] = a
			return nil
		}
	}
	return refuse(codes.ResourceExhausted, classLimit, "all %d uids of the agents' range are in use", size)
}

func newInstance() (string, error) {
	var b [16]byte
	if _, err := io.ReadFull(rand.Reader, b[:]); err != nil {
		return "", fmt.Errorf("choosing an instance: %w", err)
	}
	return hex.EncodeToString(b[:]), nil
}

func randomBelow(r UIDRange) (uint32, error) {
	if r.IsZero() {
		return 0, nil
	}
	n, err := rand.Int(rand.Reader, big.NewInt(int64(r.Last-r.First)+1))
	if err != nil {
		return 0, err
	}
	return r.First + uint32(n.Int64()), nil
}

func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("reading the boot id: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}
