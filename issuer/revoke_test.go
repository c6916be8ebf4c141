package issuer_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/deputymesh/deputy/issuer"
	"github.com/deputymesh/deputy/issuer/spawn"
)

// From the broker's word on a revoked agent, and what lies below it, gets no SVID, no JWT-SVID and no child. Nobody else notices.
func TestARevokedAgentGetsNothingMore(t *testing.T) {
	m := newMesh(t, withBroker, withJWT(t))
	broker, p, other := m.start(command{}), m.start(command{}), m.start(command{})
	a := p.attach("planner", p)
	q := p.start(command{})
	b := p.attach("worker", q)
	waiting := p.start(command{})
	reg := p.must(command{Op: "register", Name: "worker"})
	other.attach("planner", other)
	token := q.must(command{Op: "jwt", Audience: forX}).Tokens[0]

	broker.must(command{Op: "revoke", IDs: []string{a.ID, "spiffe://test.example/agent/planner/" + strings.Repeat("0", 32)}})
	broker.must(command{Op: "revoke", IDs: []string{a.ID}}) // said again, as after each connection

	p.refused(command{Op: "jwt", Audience: forX}, "PermissionDenied", a.ID+" is revoked")
	q.refused(command{Op: "jwt", Audience: forX}, "PermissionDenied", a.ID+" is revoked")
	other.refused(command{Op: "validate", Name: "x", JWT: token}, "InvalidArgument", "ended")
	p.refused(command{Op: "register", Name: "worker"}, "PermissionDenied", "is revoked")
	q.refused(command{Op: "register", Name: "worker"}, "PermissionDenied", "is revoked")
	waiting.refused(command{Op: "attach", Stream: "own", Ticket: reg.Ticket}, "PermissionDenied", "is revoked")
	m.alive(a.ID, b.ID) // a minute of grace
	q.must(command{Op: "break", Stream: "own"})
	again := command{Op: "attach", Stream: "own", ID: b.ID}
	for end := time.Now().Add(10 * time.Second); q.do(again).Code == "AlreadyExists" && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond) // the issuer hasn't noticed the break yet
	}
	q.refused(again, "PermissionDenied", "is revoked")
	p.refused(command{Op: "renew", Stream: "own"}, "PermissionDenied", "is revoked")

	other.must(command{Op: "renew", Stream: "own"})
	other.must(command{Op: "jwt", Audience: forX})
	third := m.start(command{})
	third.attach("planner", third)
}

// A revoked agent and all below it end when the grace is over; one that hasn't attached yet, at once.
func TestARevokedAgentEnds(t *testing.T) {
	m := newMesh(t, withBroker, func(c *issuer.Config) { c.Grace = 200 * time.Millisecond })
	broker, p := m.start(command{}), m.start(command{})
	a := p.attach("planner", p)
	q := p.start(command{})
	b := p.attach("worker", q)
	broker.must(command{Op: "revoke", IDs: []string{a.ID}})
	if e := m.gone(a.ID); e.Reason != spawn.ReasonRevoked {
		t.Errorf("ended as %s", e.Reason)
	}
	if e := m.gone(b.ID); e.Reason != spawn.ReasonAncestor {
		t.Errorf("the child ended as %s", e.Reason)
	}
	p.refused(command{Op: "wait", Stream: "own"}, "Aborted", "has ended: revoked")

	m = newMesh(t, withBroker)
	broker, p = m.start(command{}), m.start(command{})
	reg := p.must(command{Op: "register", Name: "planner"})
	broker.must(command{Op: "revoke", IDs: []string{reg.ID}})
	if e := m.gone(reg.ID); e.Reason != spawn.ReasonRevoked {
		t.Errorf("ended as %s", e.Reason)
	}
	p.refused(command{Op: "attach", Stream: "own", Ticket: reg.Ticket}, "PermissionDenied", "ticket")
}

func TestNobodyElseRevokes(t *testing.T) {
	m := newMesh(t)
	p := m.start(command{})
	a := p.attach("planner", p)
	m.start(command{}).refused(command{Op: "revoke", IDs: []string{a.ID}}, "PermissionDenied", "broker only")
	p.must(command{Op: "renew", Stream: "own"})

	m = newMesh(t, withBroker)
	broker, p, q := m.start(command{}), m.start(command{}), m.start(command{})
	a, b := p.attach("planner", p), q.attach("planner", q)
	p.refused(command{Op: "revoke", IDs: []string{b.ID}}, "PermissionDenied", "broker only")
	p.start(command{}).refused(command{Op: "revoke", IDs: []string{b.ID}}, "PermissionDenied", "broker only")
	for name, c := range map[string]command{
		"too many":   {IDs: slices.Repeat([]string{a.ID}, 21)},
		"a role":     {IDs: []string{a.ID, "spiffe://test.example/deputy/broker"}},
		"no id":      {IDs: []string{a.ID, ""}},
		"unknown":    {IDs: []string{a.ID}, Unknown: true},
		"other case": {IDs: []string{a.ID, strings.Replace(a.ID, "spiffe", "SPIFFE", 1)}},
	} {
		c.Op = "revoke"
		if r := broker.do(c); r.Code != "InvalidArgument" {
			t.Errorf("%s: %s %s", name, r.Code, r.Text)
		}
	}
	p.must(command{Op: "renew", Stream: "own"})
	q.must(command{Op: "renew", Stream: "own"})
}
