package issuer_test

import (
	"bytes"
	"context"
	"crypto/elliptic"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/audit/audittest"
	"github.com/deputymesh/deputy/issuer"
	"github.com/deputymesh/deputy/issuer/spawn"

	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
)

func TestRenewalNeedsTheCurrentKey(t *testing.T) {
	m := newMesh(t)
	p := m.start(command{})
	first := p.attach("planner", p)
	resume := func() {
		t.Helper()
		p.must(command{Op: "attach", Stream: "own", ID: first.ID})
	}
	second := p.must(command{Op: "renew", Stream: "own"})
	if second.ID != first.ID || bytes.Equal(second.SVID, first.SVID) {
		t.Errorf("renewed as %s", second.ID)
	}
	p.must(command{Op: "renew", Stream: "own", Key: "same"})
	// Each refusal breaks the stream; the holder of the current key comes back.
	for _, tc := range []struct {
		c          command
		code, word string
	}{
		{command{Proof: "none"}, "PermissionDenied", "proof"},
		{command{Proof: "fresh"}, "PermissionDenied", "proof"},
		{command{Proof: "first"}, "PermissionDenied", "proof"},
		{command{Proof: "other"}, "PermissionDenied", "proof"},
		{command{ID: first.ID}, "InvalidArgument", "nothing else"},
		{command{Ticket: []byte("x")}, "InvalidArgument", "nothing else"},
		{command{Unknown: true}, "InvalidArgument", "fields"},
	} {
		tc.c.Op, tc.c.Stream = "renew", "own"
		p.refused(tc.c, tc.code, tc.word)
		time.Sleep(time.Second) // renewals are limited to one a second
		resume()
	}
	m.alive(first.ID)
}

func TestRenewalsAreLimited(t *testing.T) {
	m := newMesh(t)
	p := m.start(command{})
	p.attach("planner", p)
	for range 50 {
		if r := p.do(command{Op: "renew", Stream: "own"}); r.Code == "ResourceExhausted" {
			return
		} else if r.Code != ok {
			t.Fatalf("%+v", r)
		}
	}
	t.Error("50 renewals in a row")
}

func TestATicketIsGoodOnceForAGoodRequest(t *testing.T) {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	rsaCSR, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, rsaKey)
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p384CSR, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, p384)
	if err != nil {
		t.Fatal(err)
	}
	m := newMesh(t)
	p := m.start(command{})
	for _, tc := range []struct {
		name string
		c    command
		word string
	}{
		{"an RSA key", command{CSR: rsaCSR}, "P-256"},
		{"another curve", command{CSR: p384CSR}, "P-256"},
		{"no request", command{CSR: []byte("nonsense")}, "request"},
		{"a huge request", command{CSR: make([]byte, 9000)}, "larger"},
		{"an unknown field", command{Unknown: true}, "fields"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			reg := p.must(command{Op: "register", Name: "planner"})
			tc.c.Op, tc.c.Stream, tc.c.Ticket = "attach", "bad", reg.Ticket
			p.refused(tc.c, "InvalidArgument", tc.word)
		})
	}
	reg := p.must(command{Op: "register", Name: "planner"})
	p.refused(command{Op: "attach", Stream: "x", Ticket: reg.Ticket, ID: reg.ID}, "InvalidArgument", "exactly one")
	p.refused(command{Op: "attach", Stream: "x"}, "InvalidArgument", "exactly one")
	p.must(command{Op: "attach", Stream: "own", Ticket: reg.Ticket})
	q := m.start(command{})
	q.refused(command{Op: "attach", Stream: "x", Ticket: reg.Ticket}, "PermissionDenied", "used")

	// The names that a request asks for are ignored.
	r := p.must(command{Op: "renew", Stream: "own"})
	if c := certificate(t, r.SVID); len(c.DNSNames) != 0 || len(c.URIs) != 1 || c.URIs[0].String() != reg.ID {
		t.Errorf("the SVID has the names %v %v", c.DNSNames, c.URIs)
	}
}

func TestOneProcessHoldsOneAgentAndOneKey(t *testing.T) {
	m := newMesh(t)
	p := m.start(command{})
	p.attach("planner", p)
	reg := p.must(command{Op: "register", Name: "worker"})
	p.refused(command{Op: "attach", Stream: "two", Ticket: reg.Ticket}, "PermissionDenied", "already")
	reg = p.must(command{Op: "register", Name: "worker"})
	p.refused(command{Op: "attach", Stream: "two", Ticket: reg.Ticket, Relayed: true, Key: "own"}, "PermissionDenied", "key")
}

func TestABrokenStreamResumesByTheSameProcessAndKeyOnly(t *testing.T) {
	m := newMesh(t)
	p, other := m.start(command{}), m.start(command{})
	a := p.attach("planner", p)
	p.refused(command{Op: "attach", Stream: "again", ID: a.ID}, "AlreadyExists", "attached")
	p.must(command{Op: "break", Stream: "own"})
	other.refused(command{Op: "attach", Stream: "x", ID: a.ID}, "PermissionDenied", "process")
	p.start(command{}).refused(command{Op: "attach", Stream: "x", ID: a.ID}, "PermissionDenied", "process")
	retry := func(c command, want string) result {
		t.Helper()
		c.Op, c.Stream, c.ID = "attach", "own", a.ID
		for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			// The issuer hears of the break a moment later.
			if r := p.do(c); r.Code != "AlreadyExists" || time.Now().After(end) {
				if r.Code != want {
					t.Errorf("resume: %+v, want %s", r, want)
				}
				return r
			}
		}
	}
	retry(command{Proof: "fresh"}, "PermissionDenied")
	retry(command{Proof: "none"}, "PermissionDenied")
	retry(command{Relayed: true}, "InvalidArgument")
	if r := retry(command{}, ok); r.ID != a.ID {
		t.Errorf("resumed as %s", r.ID)
	}
	p.must(command{Op: "renew", Stream: "own"})
	unknown := a.ID[:len(a.ID)-32] + "00000000000000000000000000000000"
	p.refused(command{Op: "attach", Stream: "x", ID: unknown}, "NotFound", "agent")
	p.refused(command{Op: "attach", Stream: "x", ID: "spiffe://test.example/deputy/broker"}, "InvalidArgument", "agent")
	m.alive(a.ID)
}

func TestAgentsEndWithTheirStreamProcessAndAncestors(t *testing.T) {
	m := newMesh(t, func(c *issuer.Config) { c.Grace = 300 * time.Millisecond })
	build := func() (p, q *process, a, b, c string) {
		p = m.start(command{})
		a = p.attach("planner", p).ID
		q = p.start(command{})
		b = p.attach("worker", q).ID
		reg := q.must(command{Op: "register", Name: "inner"})
		c = q.must(command{Op: "attach", Stream: "inner", Ticket: reg.Ticket, Relayed: true}).ID
		return
	}
	want := func(id, reason string) {
		t.Helper()
		if e := m.gone(id); e.Reason != reason {
			t.Errorf("%s ended as %s, want %s", id, e.Reason, reason)
		}
	}

	p, q, a, b, c := build()
	p.must(command{Op: "break", Stream: "own"})
	want(a, spawn.ReasonLost)
	want(b, spawn.ReasonAncestor)
	want(c, spawn.ReasonAncestor)
	q.refused(command{Op: "wait", Stream: "own"}, "Aborted", "ancestor")
	q.refused(command{Op: "wait", Stream: "inner"}, "Aborted", "ancestor")
	p.refused(command{Op: "attach", Stream: "own", ID: a}, "NotFound", "agent")

	p, q, a, b, c = build()
	q.must(command{Op: "done", Stream: "own"})
	want(b, spawn.ReasonExited)
	want(c, spawn.ReasonAncestor)
	m.alive(a)
	q.must(command{Op: "wait", Stream: "own"})

	p.kill()
	want(a, spawn.ReasonExited)

	p, q, a, b, c = build()
	q.must(command{Op: "done", Stream: "inner"})
	want(c, spawn.ReasonExited)
	m.alive(a, b)
	reg := p.must(command{Op: "register", Name: "late"})
	p.kill()
	want(a, spawn.ReasonExited)
	want(b, spawn.ReasonAncestor)
	want(reg.ID, spawn.ReasonAncestor)
	q.refused(command{Op: "register", Name: "x"}, "FailedPrecondition", "ended")
}

func TestRelayedIsAsserted(t *testing.T) {
	m := newMesh(t)
	p := m.start(command{})
	a := p.attach("planner", p)
	reg := p.must(command{Op: "register", Name: "inner"})
	r := p.must(command{Op: "attach", Stream: "inner", Ticket: reg.Ticket, Relayed: true})
	if grade, _, err := actor.GradeFromCertificate(certificate(t, r.SVID)); err != nil || grade != actor.Asserted || r.Grade != "asserted" {
		t.Errorf("graded %v %v", grade, err)
	}
	p.must(command{Op: "renew", Stream: "inner"})
	p.must(command{Op: "renew", Stream: "own"})
	// Only the parent's supervisor relays.
	reg = p.must(command{Op: "register", Name: "inner"})
	p.start(command{}).refused(command{Op: "attach", Stream: "x", Ticket: reg.Ticket, Relayed: true}, "PermissionDenied", "relay")
	other := m.start(command{})
	reg = other.must(command{Op: "register", Name: "planner"})
	other.refused(command{Op: "attach", Stream: "x", Ticket: reg.Ticket, Relayed: true}, "PermissionDenied", "relay")
	m.alive(a.ID)
}

func TestARestartLetsLiveSupervisorsResumeAndEndsTheRest(t *testing.T) {
	m := newMesh(t, func(c *issuer.Config) { c.Grace = 3 * time.Second })
	p, dead, silent := m.start(command{}), m.start(command{}), m.start(command{})
	a := p.attach("planner", p)
	child := p.start(command{})
	b := p.attach("worker", child)
	gone := dead.attach("planner", dead)
	quiet := silent.attach("planner", silent)
	waiting := p.must(command{Op: "register", Name: "never"})
	m.stop()
	dead.kill()
	m.serve()
	if r := p.must(command{Op: "attach", Stream: "own", ID: a.ID}); r.ID != a.ID {
		t.Errorf("resumed as %s", r.ID)
	}
	child.must(command{Op: "attach", Stream: "own", ID: b.ID})
	for id, reason := range map[string]string{gone.ID: spawn.ReasonLost, waiting.ID: spawn.ReasonExpired, quiet.ID: spawn.ReasonLost} {
		if e := m.gone(id); e.Reason != reason {
			t.Errorf("%s ended as %s, want %s", id, e.Reason, reason)
		}
	}
	silent.refused(command{Op: "attach", Stream: "own", ID: quiet.ID}, "NotFound", "agent")
	// The tree is as it was: the program of the child is inside it, the child may have children.
	if r := m.where(m.start(command{}), child.start(command{})); r.ID != b.ID {
		t.Errorf("a process of the child stands at %+v", r)
	}
	child.must(command{Op: "register", Name: "deeper"})
	m.alive(a.ID, b.ID)
}

func TestEveryStepIsInTheLog(t *testing.T) {
	m := newMesh(t)
	p := m.start(command{})
	a := p.attach("planner", p)
	renewed := p.must(command{Op: "renew", Stream: "own"})
	p.refused(command{Op: "register", Name: "Bad"}, "InvalidArgument", "record: ")
	p.must(command{Op: "done", Stream: "own"})
	m.gone(a.ID)
	m.stop()

	records := audittest.Records(t, m.log)
	var serials, grades, refused []string
	for _, r := range audittest.Of[*audit.Spawn](records) {
		e := r.Event.(*audit.Spawn)
		if e.Result == audit.Refusal {
			refused = append(refused, e.Name+" "+e.Class)
			continue
		}
		if e.Agent != a.ID {
			t.Errorf("a spawn of %s", e.Agent)
		}
		serials, grades = append(serials, e.Serial), append(grades, e.Grade)
		if !slices.ContainsFunc(e.Attested, func(s audit.Selector) bool { return s.Name == "binary_sha256" && len(s.Value) == 64 }) {
			t.Errorf("the record lacks what was attested: %+v", e.Attested)
		}
	}
	want := []string{certificate(t, a.SVID).SerialNumber.Text(16), certificate(t, renewed.SVID).SerialNumber.Text(16)}
	for i, s := range want {
		if len(s)%2 == 1 {
			want[i] = "0" + s
		}
	}
	if d := cmp.Diff(want, serials); d != "" {
		t.Errorf("serial numbers (-issued +recorded):\n%s", d)
	}
	if d := cmp.Diff([]string{"asserted", "asserted"}, grades); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]string{"Bad bad_name"}, refused); d != "" {
		t.Error(d)
	}
	ends := audittest.Of[*audit.AgentEnded](records)
	if len(ends) != 1 || ends[0].Event.(*audit.AgentEnded).Agent != a.ID || ends[0].Event.(*audit.AgentEnded).Reason != "exited" {
		t.Errorf("ends: %+v", ends)
	}
}

// brokenLog is a log whose disk fails.
type brokenLog struct {
	spawn.Log
	fail bool
}

func (b *brokenLog) Append(ctx context.Context, r audit.Record) (audit.Receipt, error) {
	if e, isSpawn := r.Event.(*audit.Spawn); b.fail && isSpawn && e.Result == audit.Accepted {
		return audit.Receipt{}, errors.New("the disk is gone")
	}
	return b.Log.Append(ctx, r)
}

func TestWithoutARecordThereIsNoSVID(t *testing.T) {
	log := &brokenLog{fail: true}
	m := newMesh(t, func(c *issuer.Config) { log.Log = c.Log; c.Log = log })
	p := m.start(command{})
	reg := p.must(command{Op: "register", Name: "planner"})
	r := p.do(command{Op: "attach", Stream: "own", Ticket: reg.Ticket})
	if r.Code != "Internal" || len(r.SVID) > 0 || bytes.Contains([]byte(r.Text), []byte("disk")) {
		t.Errorf("%+v", r)
	}
	m.gone(reg.ID)
}
