package soak_test

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/deputymesh/deputy/internal/testmesh"
)

// attempt is what an agent tells about one statement.
type attempt struct {
	kind, token  string
	began, ended time.Time
	result       string // ok, refused, broken, wrong
	code, text   string
}

func (a attempt) String() string {
	return fmt.Sprintf("%s to %s %s %s: %s %s %s", a.began.Format("15:04:05.000"), a.ended.Format("15:04:05.000"), a.kind, a.token, a.result, a.code, a.text)
}

// post is a place in the crew: a chain of agents that works all the time, and is started again when it ends.
type post struct {
	name    string
	who     *testmesh.Session
	agents  []string
	conns   int
	kinds   string
	live    *testmesh.Live
	started int
}

// crew is all agents, and what they said.
type crew struct {
	e      *era
	posts  []*post
	oscar  *testmesh.Session
	victim *post
	since  time.Time // when the victim began

	mu     sync.Mutex
	heard  []attempt // not yet balanced
	recent []attempt
	okAt   map[string]time.Time // by post: the end of the last answer
}

func newCrew(e *era) *crew {
	alice, ben := e.m.Login(e.t, "alice"), e.m.Login(e.t, "ben")
	c := &crew{e: e, oscar: e.m.Login(e.t, "oscar"), okAt: map[string]time.Time{}}
	work := "read,write,extended,transaction,write,drop"
	c.posts = []*post{
		{name: "flat", who: ben, agents: []string{"planner"}, conns: 2, kinds: work},
		{name: "nested", who: ben, agents: []string{"planner", "researcher"}, conns: 2, kinds: work},
		{name: "deep", who: ben, agents: []string{"planner", "researcher", "reader"}, conns: 1, kinds: work},
		{name: "masked", who: alice, agents: []string{"planner", "researcher"}, conns: 1, kinds: "read,masked,masked,drop"},
	}
	c.victim = &post{name: "victim", who: ben, agents: []string{"planner", "researcher"}, conns: 1, kinds: work}
	return c
}

// man starts the agents that don't run.
func (c *crew) man() {
	for _, p := range append(c.posts[:len(c.posts):len(c.posts)], c.victim) {
		if p.live != nil && !p.live.Ended() {
			continue
		}
		if p.live != nil {
			c.ended(p)
		}
		p.started++
		if p == c.victim {
			c.since = time.Now()
		}
		name := fmt.Sprintf("%s-%d", p.name, p.started)
		cmd := p.who.Agents(c.e.t, p.agents, testmesh.Program(c.e.t, "agentprobe"), "load", name, strconv.Itoa(p.conns), pause.String(), p.kinds)
		cmd.Output = &lines{line: func(s string) { c.hear(p.name, s) }}
		p.live = testmesh.Begin(c.e.t, cmd)
	}
}

// ended looks at the end of a chain of agents that nobody asked for: it must have said why.
func (c *crew) ended(p *post) {
	said := strings.TrimSpace(p.live.Errors())
	c.e.note("%s ended: %s", p.name, said)
	if said == "" {
		c.e.ledger.violation("the agents of %s ended without a word", p.name)
	}
	lastLine := said[strings.LastIndex(said, "\n")+1:]
	c.e.p.messages["ended: "+plain(lastLine)]++
}

// lines calls line for each line that is written.
type lines struct {
	line func(string)
	part []byte
}

func (l *lines) Write(p []byte) (int, error) {
	l.part = append(l.part, p...)
	for {
		at := bytes.IndexByte(l.part, '\n')
		if at < 0 {
			return len(p), nil
		}
		l.line(string(l.part[:at]))
		l.part = append(l.part[:0], l.part[at+1:]...)
	}
}

func (c *crew) hear(post, line string) {
	w := strings.SplitN(line, "\t", 7)
	if len(w) != 7 {
		c.e.ledger.violation("an agent of %s printed %q", post, line)
		return
	}
	began, _ := strconv.ParseInt(w[2], 10, 64)
	ended, _ := strconv.ParseInt(w[3], 10, 64)
	a := attempt{kind: w[0], token: w[1], began: time.Unix(0, began), ended: time.Unix(0, ended), result: w[4], code: w[5], text: w[6]}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.heard = append(c.heard, a)
	if c.recent = append(c.recent, a); len(c.recent) > 400 {
		c.recent = append(c.recent[:0], c.recent[200:]...)
	}
	if a.result == "ok" && a.kind != "connect" && a.ended.After(c.okAt[post]) {
		c.okAt[post] = a.ended
	}
}

// take returns what was heard since the last call.
func (c *crew) take() []attempt {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := c.heard
	c.heard = nil
	return out
}

func (c *crew) last() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []string
	for _, a := range c.recent {
		out = append(out, a.String())
	}
	return out
}

// awaitService waits until every post was served after a moment, by a statement that began after it.
func (c *crew) awaitService(after string, since time.Time) {
	begun := time.Now()
	for limit := begun.Add(patience); ; time.Sleep(2 * time.Millisecond) {
		missing := ""
		for _, p := range c.posts {
			if p.live.Ended() {
				c.man()
			}
			c.mu.Lock()
			if !c.okAt[p.name].After(begun) {
				missing = p.name
			}
			c.mu.Unlock()
		}
		if missing == "" {
			c.e.p.recovered(after, time.Since(since))
			return
		}
		if time.Now().After(limit) {
			c.e.ledger.violation("%s isn't served again within %s after %s", missing, patience, after)
			return
		}
	}
}

// revokeSomebody revokes the task of the agents that are there for it, now and then, and demands that nothing of it is
// served from the confirmation on.
func (c *crew) revokeSomebody(round int) {
	c.mu.Lock()
	served := c.okAt["victim"].After(c.since)
	c.mu.Unlock()
	if round%8 != 0 || !served {
		return
	}
	c.e.ledger.read()
	txn := c.e.ledger.taskOf(fmt.Sprintf("victim-%d.", c.victim.started))
	if txn == "" {
		return
	}
	r := c.oscar.Deputy(c.e.t, "revoke", "--task", txn, "--reason", "soak")
	acked := time.Now()
	c.e.note("revoke %s: exit %d %s%s", txn, r.Code, r.Stdout, r.Stderr)
	switch {
	case r.Code == 0 && strings.Contains(r.Stdout, "in force"):
		c.e.ledger.revokedTask(txn, acked)
		c.e.p.revoked++
	case r.Code == 3: // a proxy hasn't confirmed it: it is bound by the staleness limit
		c.e.ledger.revokedTask(txn, acked.Add(11*time.Second))
		c.e.p.revoked++
	case strings.TrimSpace(r.Stderr) == "":
		c.e.ledger.violation("a revocation failed without a word: %s", r)
	default:
		c.e.p.messages["revoke: "+plain(r.Stderr)]++
		return
	}
	// It can do nothing any more: another takes its place.
	c.victim.live.Signal(os.Interrupt)
	c.victim.live.Wait(patience)
	c.victim.live = nil
}

// dismiss ends the load and waits for it.
func (c *crew) dismiss() {
	for _, p := range append(c.posts[:len(c.posts):len(c.posts)], c.victim) {
		if p.live != nil {
			p.live.Wait(patience)
		}
	}
}
