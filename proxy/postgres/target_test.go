package postgres

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/internal/sqlparse"
	"github.com/deputymesh/deputy/policy"
	"github.com/deputymesh/deputy/proxy"
)

// open is a core that allows everything, under a mask.
type openCore struct{}

func (openCore) Open(context.Context, proxy.Peer, string, proxy.Connection) (Session, error) {
	return nil, errors.New("not used")
}

func (openCore) MaskedTables() []policy.MaskedTable {
	return []policy.MaskedTable{{Schema: "public", Table: "people"}}
}
func (openCore) Count(string) {}

type openSession struct {
	ctx  context.Context
	wait error // of every pass
}

func (s openSession) ID() string               { return "s1" }
func (s openSession) Roles() []string          { return nil }
func (s openSession) Owner() actor.SubjectID   { return actor.SubjectID{} }
func (s openSession) Context() context.Context { return s.ctx }
func (s openSession) Close(string, string)     {}
func (s openSession) Refuse(_ context.Context, _ proxy.Command, o proxy.Objection) *proxy.Refusal {
	return &proxy.Refusal{Class: o.Class, Reason: o.Reason}
}

func (s openSession) Authorize(_ context.Context, cmd proxy.Command) (Pass, error) {
	ob := policy.Obligations{Masks: []policy.MaskRule{{Schema: "public", Table: "people", Column: "email", Masker: policy.MaskRedact}}}
	if cmd.Check != nil {
		if err := cmd.Check(ob); err != nil {
			return nil, err
		}
	}
	return openPass{ob, s.wait}, nil
}

type openPass struct {
	ob   policy.Obligations
	wait error
}

func (p openPass) Obligations() policy.Obligations              { return p.ob }
func (openPass) Use() error                                     { return nil }
func (p openPass) Wait(context.Context) error                   { return p.wait }
func (openPass) Forwarded(int64)                                {}
func (openPass) Completed(context.Context, proxy.Outcome) error { return nil }

// table takes every text for SELECT email FROM people.
type oneTable struct{}

func (oneTable) ParseFor(_ context.Context, _, sql string) ([]sqlparse.Statement, error) {
	if sql == "refused" {
		return nil, &sqlparse.SyntaxError{Message: "refused"}
	}
	return []sqlparse.Statement{{
		Kind: sqlparse.KindSelect, Text: sql, Normalized: sql,
		Relations: []sqlparse.Relation{{Name: "people", Access: sqlparse.Read}},
		Columns:   []sqlparse.Column{{Path: []string{"email"}, From: []int{0}, Use: sqlparse.UseOutput}},
		Outputs:   []sqlparse.Output{{Name: "email", Kind: sqlparse.OutputColumn, Columns: []int{0}}},
	}}, nil
}

func msg(kind byte, body string) string {
	return string(binary.BigEndian.AppendUint32([]byte{kind}, uint32(len(body)+4))) + body
}

var (
	describedMasked  = msg('T', "\x00\x01email\x00\x00\x00\x00\x2a\x00\x02\x00\x00\x00\x19\xff\xff\xff\xff\xff\xff\x00\x00")
	describedUnknown = msg('T', "\x00\x01email\x00\x00\x00\x00\x77\x00\x02\x00\x00\x00\x19\xff\xff\xff\xff\xff\xff\x00\x00")
	secretRow        = msg('D', "\x00\x01\x00\x00\x00\x06SECRET")
	twoColumns       = msg('D', "\x00\x02\x00\x00\x00\x06SECRET\x00\x00\x00\x06SECRET")
	selected         = msg('C', "SELECT 1\x00")
	readyIdle        = msg('Z', "I")
	ask              = msg('Q', "ask\x00")
	trouble          = "SERROR\x00VERROR\x00C22P02\x00MSECRET\x00DSECRET\x00\x00"
)

// TestTargetsThatMisbehave: nothing that a target says out of turn, or wrongly, reaches the agent.
func TestTargetsThatMisbehave(t *testing.T) {
	for _, c := range []struct {
		name, send, answer string
		want               []string
	}{
		{"a good one", ask, describedMasked + secretRow + selected + readyIdle, []string{"****", "SELECT 1", "Z\x00\x00\x00\x05I"}},
		{"a table made since", ask, describedUnknown + secretRow + selected + readyIdle, []string{"D\x00\x00\x00\x0a\x00\x01\xff\xff\xff\xff", "SELECT 1"}},
		{"a row without description", ask, secretRow + selected + readyIdle, []string{"FATAL", "08P01"}},
		{"a row of another width", ask, describedMasked + twoColumns, []string{"FATAL", "08P01"}},
		{"a row cut off", ask, describedMasked + msg('D', "\x00\x01\x00\x00\x00\x06SE"), []string{"FATAL", "08P01"}},
		{"an answer too many", ask, describedMasked + selected + selected + readyIdle, []string{"FATAL", "08P01"}},
		{"a copy", ask, msg('H', "\x00\x00\x00SECRET"), []string{"FATAL", "08P01"}},
		{"a copy the other way", ask, msg('G', "\x00\x00\x00SECRET"), []string{"FATAL", "08P01"}},
		{"a copy both ways", ask, msg('W', "\x00\x00\x00SECRET"), []string{"FATAL", "08P01"}},
		{"the result of a call", ask, msg('V', "\x00\x00\x00\x06SECRET"), []string{"FATAL", "08P01"}},
		{"rows of a copy", ask, describedMasked + msg('d', "SECRET"), []string{"FATAL", "08P01"}},
		{"rows of nobody's query", msg('S', ""), secretRow, []string{"FATAL", "08P01"}},
		{"ready too early", ask, readyIdle, []string{"FATAL", "08P01"}},
		{"a refused portal that succeeds", msg('Q', "refused\x00"), selected, []string{"FATAL", "08P01"}},
		{"a notification", ask, msg('A', "\x00\x00\x00\x01SECRET\x00SECRET\x00") + describedMasked + selected + readyIdle, []string{"SELECT 1"}},
		{"an error with values", ask, msg('E', trouble) + readyIdle, []string{"22P02", "withheld", "Z\x00\x00\x00\x05I"}},
		{"a notice with values", ask, msg('N', trouble) + describedMasked + selected + readyIdle, []string{"22P02", "withheld", "SELECT 1"}},
		{"a length that can't be", ask, "T\x00\x00\x00\x02", []string{"FATAL"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := exchange(t, c.send, c.answer)
			for _, want := range c.want {
				if !strings.Contains(got, want) {
					t.Errorf("no %q in %q", want, got)
				}
			}
			if strings.Contains(got, "SECRET") {
				t.Errorf("the secret got out: %q", got)
			}
		})
	}
}

// TestNothingLeavesBeforeItsDecisionIsDurable: whatever kind of message a target answers with, none of it reaches the agent
// where the decision can't be recorded.
func TestNothingLeavesBeforeItsDecisionIsDurable(t *testing.T) {
	for name, answer := range map[string]string{
		"a description": describedMasked, "a setting": msg('S', "TimeZone\x00SECRET\x00"), "an error": msg('E', trouble),
		"a notice": msg('N', trouble), "the end": selected,
	} {
		t.Run(name, func(t *testing.T) {
			got := exchangeWith(t, openSession{wait: &proxy.Refusal{Class: proxy.ClassEvidence, Reason: "no log"}}, ask, answer+readyIdle)
			if !strings.HasPrefix(got, "E") || !strings.Contains(got, "no log") {
				t.Errorf("the agent got %q", got)
			}
		})
	}
}

// scripted is a session between an agent and a target that are both the test's.
func scripted(t *testing.T, ctx context.Context, core openSession) (agent, target net.Conn, s *session) {
	t.Helper()
	agent, client := net.Pipe()
	target, upstreamConn := net.Pipe()
	core.ctx = ctx
	e := &Engine{name: "db", catalogs: map[string]*catalog{}, cfg: Config{
		Core: openCore{}, Target: spiffeid.RequireFromString("spiffe://mesh.test/target/db"), Parser: oneTable{},
		Logger: slog.New(slog.DiscardHandler), Now: time.Now, Schemas: []string{"public"},
		CatalogAge: 100 * 24 * time.Hour, MaxMessage: DefaultMaxMessage, MaxRow: DefaultMaxRow,
	}}
	people := &relation{oid: 42, schema: "public", name: "people", kind: 'r', columns: map[int16]string{1: "id", 2: "email"}}
	c := newCatalog(e, "shop", Account{})
	c.taken = time.Now()
	c.current = &snapshot{
		schemas: []string{"pg_catalog", "public"}, creation: "public",
		relations: map[qname]*relation{{"public", "people"}: people}, byOID: map[uint32]*relation{42: people},
	}
	c.current.views = map[string]*snapshot{"": c.current}
	e.catalogs["shop"] = c
	up := &upstream{conn: upstreamConn, in: newFrames(upstreamConn, &e.buffers), out: newSink(upstreamConn, &e.buffers), config: &pgconn.Config{
		DialFunc: func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("no cancel here") },
	}}
	s = newSession(e, core, client, up)
	s.decider.e, s.decider.database, s.decider.made = e, "shop", map[qname]bool{}
	return agent, target, s
}

// exchange lets an agent send bytes, the target answer them, and gives what the agent gets.
func exchange(t *testing.T, send, answer string) string {
	t.Helper()
	return exchangeWith(t, openSession{}, send, answer)
}

func exchangeWith(t *testing.T, core openSession, send, answer string) string {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	agent, target, s := scripted(t, ctx, core)
	done := make(chan struct{})
	go func() { defer close(done); s.run(ctx) }()
	// The agent reads until the next ReadyForQuery or the end.
	received := make(chan string, 1)
	go func() {
		var got []byte
		b := make([]byte, 4096)
		for {
			n, err := agent.Read(b)
			got = append(got, b[:n]...)
			if err != nil || strings.HasSuffix(string(got), readyIdle) {
				received <- string(got)
				return
			}
		}
	}()
	if _, err := agent.Write([]byte(send)); err != nil {
		t.Fatal(err)
	}
	// The target answers when it has heard something, and listens on.
	heard := make([]byte, 1)
	if _, err := io.ReadFull(target, heard); err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = io.Copy(io.Discard, target) }()
	_, _ = target.Write([]byte(answer))
	var got string
	select {
	case got = <-received:
	case <-time.After(3 * time.Second):
		t.Error("neither an answer nor an end")
	}
	cancel()
	<-done
	_ = agent.Close()
	_ = target.Close()
	return got
}
