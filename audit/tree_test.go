package audit_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"iter"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/audit/audittest"
)

// story writes the logs of an issuer, a broker and a proxy about one task, and returns their folders.
func story(t *testing.T) []string {
	t.Helper()
	clock := time.Date(2026, 11, 23, 11, 0, 0, 0, time.UTC)
	tick := func() time.Time { clock = clock.Add(time.Second); return clock }
	var dirs []string
	open := func() *audit.Log {
		cfg := audittest.Config(t)
		dirs = append(dirs, cfg.Dir)
		return audittest.OpenConfig(t, cfg)
	}
	proxy, broker, issuer := open(), open(), open()
	put := func(l *audit.Log, r audit.Record) {
		r.Time = tick()
		mustAppend(t, l, r)
	}
	id := func(n string) audit.RecordID { return audit.RecordID("0192f0c0-0000-7000-8000-00000000000" + n) }
	chain := testChain("4f0c1d")
	planner, researcher := chain.Hops[1].ID, chain.Hops[2].ID
	chain.Hops[1].Evidence = actor.Evidence{Kind: "unix", UID: 61001, GID: 61001, Path: "/usr/bin/python3", SHA256: strings.Repeat("ab", 32)}

	put(issuer, audit.Record{Event: &audit.Spawn{Result: audit.Accepted, Agent: planner, Name: "planner", Grade: "attested"}})
	put(issuer, audit.Record{Event: &audit.Spawn{Result: audit.Accepted, Agent: researcher, Parent: planner, Name: "researcher", Grade: "asserted"}})
	put(issuer, audit.Record{Event: &audit.Spawn{Result: audit.Accepted, Agent: "spiffe://test.invalid/agent/stranger/00000000000000000000000000000000", Name: "stranger"}})
	put(broker, audit.Record{Txn: chain.Txn, Session: "sid-1", Event: &audit.SessionOpened{RootType: "verified", Issuer: chain.User.Issuer, Subject: "alice", FirstAgent: planner, Ends: clock.Add(8 * time.Hour)}})
	put(broker, audit.Record{ID: id("7"), Txn: chain.Txn, Session: "sid-1", Event: &audit.Exchange{Result: audit.Refusal, Presenter: planner, Audience: "spiffe://test.invalid/target/billing", Class: "details.wider", Reason: "insert is not within select"}})
	put(broker, audit.Record{Chain: chain, Session: "sid-1", Event: &audit.Exchange{Result: audit.Accepted, Presenter: researcher}})

	target := chain.Target
	decide := func(n string, d audit.Decision) {
		d.Target = target
		put(proxy, audit.Record{ID: id(n), Chain: chain, Event: &d})
	}
	follow := func(n string, e audit.Event) {
		put(proxy, audit.Record{Decision: id(n), Chain: chain, Event: e})
	}
	decide("1", audit.Decision{Effect: audit.Allow, Action: "postgres:select", Objects: []audit.Object{{Kind: "table", Name: "public.customers", Columns: []string{"id", "email"}}},
		Statement: &audit.Text{Scrubbed: "SELECT id, email\n  FROM customers WHERE id < ?"}, Policies: []string{"analysts-read"}, Obligations: []audit.Obligation{{Name: "mask", Value: "email"}}})
	follow("1", &audit.Forwarded{})
	follow("1", &audit.Completed{Status: "ok", Code: "SELECT 3", Rows: 3, Masked: []audit.MaskedCount{{Rule: "email", Column: "email", Values: 3}}, Duration: 4200})
	decide("2", audit.Decision{Effect: audit.Refuse, Action: "postgres:ddl", Objects: []audit.Object{{Kind: "table", Name: "public.orders"}},
		Statement: &audit.Text{Scrubbed: "DROP TABLE orders\x1b[2K\u202e"}, Class: "policy", Policies: []string{"no-ddl"}, Reason: "nothing permits it"})
	decide("3", audit.Decision{Effect: audit.Allow, Action: "postgres:select", Policies: []string{"analysts-read"}})
	follow("3", &audit.Forwarded{})
	follow("3", &audit.OutcomeUnknown{Forwarded: true, Reason: "the log ended before the outcome was recorded"})
	decide("4", audit.Decision{Effect: audit.Allow, Action: "postgres:select"})
	follow("4", &audit.Completed{Status: "ok"})
	put(proxy, allow(testChain("another task")))
	put(issuer, audit.Record{Event: &audit.AgentEnded{Agent: researcher, Reason: "exited"}})
	put(broker, audit.Record{Event: &audit.Revoked{Kind: "task", Value: chain.Txn, By: "olivia", Reason: "done"}})
	put(broker, audit.Record{Event: &audit.Revoked{Kind: "task", Value: "another task", By: "olivia"}})
	return dirs
}

func read(t *testing.T, dirs []string) []iter.Seq2[*audit.Record, error] {
	var logs []iter.Seq2[*audit.Record, error]
	for _, dir := range dirs {
		r := audit.NewReader(os.DirFS(dir))
		t.Cleanup(func() { r.Close() })
		logs = append(logs, r.All())
	}
	return logs
}

const drawn = `Task 4f0c1d  “q3 refunds”
  session sid-1, opened 2026-11-23 11:00:04Z, ends 2026-11-23 19:00:03Z

alice  [sign-in verified; signed in 2026-11-23 11:00:00Z; roles analyst]
at https://idp.test.invalid
└─ planner 01234567…  [attested: unix, uid 61001, /usr/bin/python3, sha256 abababab…]  started 11:00:01
   │  may select,update on any table in orders of orders-db
   │  until 2026-11-23 19:00:00Z, 3 further delegations
   ├─ 11:00:05 ✗ exchange to billing refused (details.wider): insert is not within select
   │           record 0192f0c0-0000-7000-8000-000000000007
   └─ researcher fedcba98…  [asserted]  started 11:00:02, ended 11:00:17 (exited)
      │  may select on any table in orders of orders-db
      │  until 2026-11-23 12:00:00Z, 1 further delegation
      │  narrowed: may: select (before: select,update)
      │  1 token from the broker
      ├─ 11:00:07 ✓ postgres:select on orders-db: public.customers(id, email)
      │           SELECT id, email FROM customers WHERE id < ?
      │           allowed by analysts-read with mask email → ok SELECT 3, 3 rows, masked 3 values in email (email), 4.2 ms
      │           record 0192f0c0-0000-7000-8000-000000000001
      ├─ 11:00:10 ✗ postgres:ddl on orders-db: public.orders
      │           DROP TABLE orders\u001b[2K\u202e
      │           refused (policy) by no-ddl: nothing permits it
      │           record 0192f0c0-0000-7000-8000-000000000002
      ├─ 11:00:11 ✓ postgres:select on orders-db
      │           allowed by analysts-read → OUTCOME UNKNOWN after it was forwarded: the log ended before the outcome was recorded
      │           record 0192f0c0-0000-7000-8000-000000000003
      └─ 11:00:14 ✓ postgres:select on orders-db
                  allowed → ok
                  record 0192f0c0-0000-7000-8000-000000000004

2026-11-23 11:00:18Z revoked: task 4f0c1d by olivia: done

2 agents, 4 commands, 3 allowed, 2 refused, 3 values masked, 1 with an unknown outcome
`

func TestTreeIsDrawn(t *testing.T) {
	dirs := story(t)
	tree, err := audit.BuildTree("4f0c1d", read(t, dirs)...)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := tree.WriteText(&out); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(drawn, out.String()); diff != "" {
		t.Errorf("drawing (-want +got):\n%s", diff)
	}
	raw, err := json.Marshal(tree)
	if err != nil || !strings.Contains(string(raw), `"outcome_unknown":`) || strings.Contains(string(raw), "stranger") {
		t.Errorf("JSON: %v\n%s", err, raw)
	}
}

func TestRecordLeadsToItsTask(t *testing.T) {
	dirs := story(t)
	r, err := audit.FindTxn("0192f0c0-0000-7000-8000-000000000002", read(t, dirs)...)
	if err != nil || r.Txn != "4f0c1d" {
		t.Fatalf("FindTxn: %v, %+v", err, r)
	}
	if _, err := audit.FindTxn("0192f0c0-0000-7000-8000-00000000000f", read(t, dirs)...); !errors.Is(err, audit.ErrNotFound) {
		t.Errorf("a record that isn't there: %v", err)
	}
	if _, err := audit.BuildTree("nothing", read(t, dirs)...); !errors.Is(err, audit.ErrNotFound) {
		t.Errorf("a task that isn't there: %v", err)
	}
}

func TestReaderFollowsALiveLog(t *testing.T) {
	cfg := audittest.Config(t)
	cfg.SegmentSize = 64 << 10
	l := audittest.OpenConfig(t, cfg)
	r := audit.NewReader(os.DirFS(cfg.Dir))
	defer r.Close()
	const n = 40 // over two segments
	go func() {
		for range n {
			l.Submit(allow(testChain("live")))
			time.Sleep(time.Millisecond)
		}
	}()
	got := 0
	for rec, err := range r.Follow(t.Context(), 2*time.Millisecond) {
		if err != nil {
			t.Fatal(err)
		}
		if rec.Type == audit.TypeDecision {
			if got++; got == n {
				return
			}
		}
	}
}
