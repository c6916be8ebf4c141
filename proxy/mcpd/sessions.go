package mcpd

import (
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"sync"
	"time"

	"github.com/deputymesh/deputy/policy"
	"github.com/deputymesh/deputy/proxy/internal/hop"
)

const (
	maxSessions      = 4096
	maxSessionsEach  = 64 // of one chain
	sessionIdle      = time.Hour
	maxUpstreamID    = 1024
	maxOpenQuestions = 64 // of a server, in one session
	maxOpenRequests  = 1024
	maxRefusals      = 64 // of what a server asks, on one stream: each is recorded
	maxChains        = 64 // sessions of the core that are waited for, in one session
)

// sessions are those of the protocol up to 2025-11-25. The agent's id is the proxy's own: a session's id at the target stays here, and
// is good for the chain that began it and no other.
type sessions struct {
	now func() time.Time

	mu   sync.Mutex
	byID map[string]*mcpSession // guarded by mu
}

// mcpSession is one of them.
type mcpSession struct {
	id, upstream string
	owner        [sha256.Size]byte
	account      *hop.Account

	mu        sync.Mutex
	version   string // guarded by mu, as is what follows
	used      time.Time
	uses      int                    // under way
	requests  map[[16]byte]struct{}  // the agent's that got no answer, by a digest of their ids
	questions map[string]string      // the server's requests that the agent got, and their methods
	rules     []policy.MaskRule      // that any call of it had masks by
	chains    map[string]func() bool // sessions of the core that used it, and how to stop waiting for their ends
}

func newSessions(now func() time.Time) *sessions {
	return &sessions{now: now, byID: map[string]*mcpSession{}}
}

// ownerOf names a chain, account included: the user, the task, and every agent by its instance. A fresh credential of the same agent for
// the same task has the same.
func ownerOf(core Session, account string) [sha256.Size]byte {
	h := sha256.New()
	c := core.Chain()
	_, _ = fmt.Fprintf(h, "%q %q %q %q", account, c.User.Issuer, c.User.Subject, c.Txn) // a hash takes everything
	for _, hop := range c.Hops {
		_, _ = fmt.Fprintf(h, " %q", hop.ID)
	}
	var out [sha256.Size]byte
	h.Sum(out[:0])
	return out
}

// begin keeps a session that the target has begun; nil means that there are too many.
func (s *sessions) begin(upstream string, owner [sha256.Size]byte, account *hop.Account, version string) *mcpSession {
	s.mu.Lock()
	defer s.mu.Unlock()
	own := 0
	for _, old := range s.byID {
		if old.owner == owner {
			own++
		}
	}
	if own >= maxSessionsEach || len(s.byID) >= maxSessions {
		return nil
	}
	n := &mcpSession{id: rand.Text(), upstream: upstream, owner: owner, account: account, version: version, used: s.now(), requests: map[[16]byte]struct{}{}, questions: map[string]string{}, chains: map[string]func() bool{}}
	s.byID[n.id] = n
	return n
}

// find is the session of a chain by its id; nil if there is none, or it is another chain's.
func (s *sessions) find(id string, owner [sha256.Size]byte) *mcpSession {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.byID[id]
	if n == nil || n.owner != owner || n.idle(s.now()) {
		return nil
	}
	n.use(s.now(), 1)
	return n
}

// use begins a use of a session, with 1, or ends one, with -1.
func (n *mcpSession) use(now time.Time, by int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.used, n.uses = now, n.uses+by
}

// idle says whether nobody has used a session for long. What is under way is a use, however long it takes.
func (n *mcpSession) idle(now time.Time) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.uses == 0 && now.Sub(n.used) > sessionIdle
}

// forget takes a session away, and says whether it was there.
func (s *sessions) forget(n *mcpSession) bool {
	s.mu.Lock()
	was := s.byID[n.id] == n
	if was {
		delete(s.byID, n.id)
	}
	s.mu.Unlock()
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, stop := range n.chains {
		stop()
	}
	clear(n.chains)
	return was
}

// over are the sessions that weren't used for a long time, or all.
func (s *sessions) over(all bool) []*mcpSession {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []*mcpSession
	for _, n := range s.byID {
		if all || n.idle(s.now()) {
			out = append(out, n)
		}
	}
	return out
}

// mask notes that a call's answer is masked.
func (n *mcpSession) mask(rules []policy.MaskRule) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.rules = policy.Obligations{Masks: n.rules}.And(policy.Obligations{Masks: rules}).Masks
}

// masked are the rules that any call had masks by.
func (n *mcpSession) masked() []policy.MaskRule {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.rules
}

// open notes a request of the agent's, or says why it can't be made.
func (n *mcpSession) open(key string) (why string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	id := requestKey(key)
	if _, twice := n.requests[id]; twice {
		return "a request with this id is under way in the session, or got no answer: each needs an id of its own"
	}
	if len(n.requests) >= maxOpenRequests {
		return "too many requests of the session got no answer; begin another one with initialize"
	}
	n.requests[id] = struct{}{}
	return ""
}

// settle forgets a request: nothing comes of it any more.
func (n *mcpSession) settle(key string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.requests, requestKey(key))
}

// requestKey is the same for 1 and "1", which some servers take for one id.
func requestKey(key string) [16]byte {
	sum := sha256.Sum256([]byte(key[1:]))
	return [16]byte(sum[:16])
}

// ask notes a question of the server's that the agent is about to get.
func (n *mcpSession) ask(key, method string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if _, twice := n.questions[key]; twice || len(n.questions) >= maxOpenQuestions {
		return false
	}
	n.questions[key] = method
	return true
}

// answer takes a question back: it is answered once.
func (n *mcpSession) answer(key string) (method string, ok bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	method, ok = n.questions[key]
	delete(n.questions, key)
	return method, ok
}

// speaks is the session's version; "" until it is known.
func (n *mcpSession) speaks() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.version
}

func (n *mcpSession) speak(version string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.version = version
}
