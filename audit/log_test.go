package audit_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/goleak"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/audit/audittest"
)

func TestMain(m *testing.M) {
	childMain()
	goleak.VerifyTestMain(m)
}

// testChain is alice, her planner, and the researcher that the planner started.
func testChain(txn string) *audit.Chain {
	planner, err := actor.AgentIDFromString("spiffe://test.invalid/agent/planner/0123456789abcdef0123456789abcdef")
	if err != nil {
		panic(err)
	}
	researcher, err := planner.Child("researcher", "fedcba9876543210fedcba9876543210")
	if err != nil {
		panic(err)
	}
	target := spiffeid.RequireFromString("spiffe://test.invalid/target/orders-db")
	may := func(actions ...string) actor.Details {
		return actor.Details{actor.PostgresDetail{Locations: []spiffeid.ID{target}, Actions: actions, Databases: []string{"orders"}}}
	}
	at := time.Date(2026, 11, 23, 11, 0, 0, 0, time.UTC)
	user := actor.SubjectID{Issuer: "https://idp.test.invalid", Subject: "alice"}
	return &audit.Chain{
		Txn: txn, User: user, SID: "sid-1", AuthTime: &at, Roles: []string{"analyst"}, Purpose: "q3 refunds",
		RootEvidence: actor.RootVerified, Mesh: "https://broker.test.invalid", Target: target.String(),
		Hops: []actor.Hop{
			{Kind: actor.HopUser, ID: user.String(), Grade: actor.Attested, Grant: &actor.HopGrant{
				Issuer: user.Issuer, ID: "grant-1", Delegate: planner, Purpose: "q3 refunds", Cap: may("select", "update"), Left: 3, IssuedAt: at, Expires: at.Add(8 * time.Hour)}},
			{Kind: actor.HopAgent, ID: planner.String(), Grade: actor.Attested, Grant: &actor.HopGrant{
				Issuer: planner.String(), ID: "grant-2", Delegate: researcher, Purpose: "read", Cap: may("select"), Left: 1, IssuedAt: at, Expires: at.Add(time.Hour),
				Narrowed: []string{"may: select (before: select,update)"}}},
			{Kind: actor.HopAgent, ID: researcher.String(), Grade: actor.Asserted},
		},
		Token: &actor.ChainID{Issuer: "https://broker.test.invalid", ID: "token-1", KeyID: "key-1", IssuedAt: at, Expires: at.Add(5 * time.Minute)},
		Cap:   may("select"), Expires: at.Add(5 * time.Minute),
	}
}

func allow(chain *audit.Chain) audit.Record {
	return audit.Record{Session: "s1", Chain: chain, Event: &audit.Decision{
		Effect: audit.Allow, Target: "spiffe://test.invalid/target/orders-db", Action: "postgres:select",
		Objects:   []audit.Object{{Kind: "table", Name: "public.orders", Columns: []string{"id", "total"}}},
		Statement: &audit.Text{Scrubbed: "SELECT id, total FROM orders WHERE id < ?", Bytes: 40}, Policies: []string{"read-orders"},
	}}
}

func mustAppend(t testing.TB, l *audit.Log, r audit.Record) audit.Receipt {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	rcpt, err := l.Append(ctx, r)
	if err != nil {
		t.Fatalf("append: %v", err)
	}
	return rcpt
}

func types(records []*audit.Record) string {
	var names []string
	for _, r := range records {
		names = append(names, string(r.Type))
	}
	return strings.Join(names, " ")
}

func TestAppendedRecordsReadBack(t *testing.T) {
	l := audittest.Open(t)
	chain := testChain("txn-1")
	rcpt := mustAppend(t, l, allow(chain))
	l.Submit(audit.Record{Decision: rcpt.RecordID, Chain: chain, Event: &audit.Forwarded{Bytes: 12}})
	l.Submit(audit.Record{Decision: rcpt.RecordID, Chain: chain, Event: &audit.Completed{Status: "ok", Rows: 3, Code: "SELECT 3"}})

	records := audittest.Records(t, l)
	if got, want := types(records), "log_opened chain decision forwarded completed"; got != want {
		t.Fatalf("records: %s; want %s", got, want)
	}
	d := records[2]
	if d.ID != rcpt.RecordID || d.Seq != rcpt.Seq || d.Txn != "txn-1" || d.Source != audittest.Source {
		t.Errorf("decision record: id %s seq %d txn %s source %s", d.ID, d.Seq, d.Txn, d.Source)
	}
	if diff := cmp.Diff(allow(nil).Event, d.Event); diff != "" {
		t.Errorf("decision (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(chain, d.Chain, cmpopts.IgnoreUnexported(audit.Chain{}), cmpopts.EquateComparable(actor.AgentID{}, spiffeid.ID{}), cmpopts.IgnoreFields(actor.Hop{}, "Agent")); diff != "" {
		t.Errorf("chain (-want +got):\n%s", diff)
	}
	if records[4].Decision != rcpt.RecordID {
		t.Errorf("completed refers to %s, want %s", records[4].Decision, rcpt.RecordID)
	}
	if !strings.HasPrefix(string(rcpt.Checkpoint), l.Origin()+"\n3\n") {
		t.Errorf("receipt's checkpoint doesn't cover three records:\n%s", rcpt.Checkpoint)
	}
}

func TestOutcomeNeedsNoWaiting(t *testing.T) {
	l := audittest.Open(t)
	rcpt := mustAppend(t, l, allow(testChain("txn")))
	p := l.Submit(audit.Record{Decision: rcpt.RecordID, Event: &audit.Forwarded{}})
	select {
	case <-p.Done():
	case <-time.After(10 * time.Second):
		t.Fatal("an outcome that nobody waits for isn't durable after ten seconds")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	// Waiting for one hurries the writer: it takes about as long as a record that is waited for anyhow, not 20 ms more.
	var plain, hurried time.Duration
	for range 50 {
		start := time.Now()
		mustAppend(t, l, audit.Record{Event: &audit.Refused{Class: "tls"}})
		plain += time.Since(start)
		start = time.Now()
		p := l.Submit(audit.Record{Decision: rcpt.RecordID, Event: &audit.Masked{Counts: []audit.MaskedCount{{Rule: "email", Values: 1}}}})
		if _, err := p.Receipt(ctx); err != nil {
			t.Fatalf("receipt of an outcome: %v", err)
		}
		hurried += time.Since(start)
	}
	if hurried > 3*plain+50*10*time.Millisecond {
		t.Errorf("50 awaited outcomes took %v, 50 other records %v: each waited for the delay", hurried, plain)
	}
}

func TestRecordsThatAreRefused(t *testing.T) {
	l := audittest.Open(t)
	for name, r := range map[string]audit.Record{
		"no event":               {},
		"decision w/o effect":    {Event: &audit.Decision{Target: "t", Action: "a"}},
		"refusal w/o class":      {Event: &audit.Decision{Effect: audit.Refuse, Target: "t", Action: "a"}},
		"chain w/o txn":          {Chain: &audit.Chain{User: actor.SubjectID{Subject: "a"}}, Event: &audit.Forwarded{}},
		"evidence of other data": {Event: &audit.Evidence{Kind: "credential", Digest: audit.DigestOf([]byte("a")), Data: []byte("b")}},
		"result of no kind":      {Event: &audit.Spawn{Name: "planner", Result: "maybe"}},
	} {
		if _, err := l.Append(context.Background(), r); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	big := audit.Record{Event: &audit.Refused{Class: "x", Reason: strings.Repeat("r", 300<<10)}}
	if _, err := l.Append(context.Background(), big); !errors.Is(err, audit.ErrTooLarge) {
		t.Errorf("a record of 300 KiB in a log of 1 MiB segments: %v, want ErrTooLarge", err)
	}
	if got := types(audittest.Records(t, l)); got != "log_opened" {
		t.Errorf("the log holds %s", got)
	}
}

func TestEvidenceIsKeptOnce(t *testing.T) {
	cfg := audittest.Config(t)
	l := audittest.OpenConfig(t, cfg)
	data := []byte("token~grant~user-grant")
	for range 3 {
		d, err := l.PutEvidence(context.Background(), audit.KindCredential, data)
		if err != nil || d != audit.DigestOf(data) {
			t.Fatalf("PutEvidence: %s, %v", d, err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l = audittest.OpenConfig(t, cfg)
	if _, err := l.PutEvidence(context.Background(), audit.KindCredential, data); err != nil {
		t.Fatal(err)
	}
	kept := audittest.Of[*audit.Evidence](audittest.Records(t, l))
	if len(kept) != 1 || string(kept[0].Event.(*audit.Evidence).Data) != string(data) {
		t.Fatalf("%d evidence records, want one with the exact bytes", len(kept))
	}
}

func TestTextKeepsNoLiteral(t *testing.T) {
	l := audittest.Open(t)
	secret := "SELECT * FROM users WHERE password = 'hunter2'"
	text := l.Text(secret, "SELECT * FROM users WHERE password = ?")
	other := l.Text(strings.ReplaceAll(secret, "hunter2", "hunter3"), text.Scrubbed)
	if text.Hash == "" || text.Hash == other.Hash || text.Bytes != len(secret) {
		t.Errorf("text: %+v; other: %+v", text, other)
	}
	if long := l.Text("", strings.Repeat("é", 40<<10)); !long.Truncated || len(long.Scrubbed) > 64<<10 {
		t.Errorf("long text: truncated %v, %d bytes", long.Truncated, len(long.Scrubbed))
	}
}

func TestSecondProcessIsRefused(t *testing.T) {
	cfg := audittest.Config(t)
	audittest.OpenConfig(t, cfg)
	if _, err := audit.Open(cfg); !errors.Is(err, audit.ErrLocked) {
		t.Fatalf("second Open: %v, want ErrLocked", err)
	}
}

func TestClosedLogRefuses(t *testing.T) {
	l := audittest.Open(t)
	open := mustAppend(t, l, allow(testChain("txn")))
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Append(context.Background(), allow(nil)); !errors.Is(err, audit.ErrClosed) {
		t.Errorf("append after Close: %v, want ErrClosed", err)
	}
	records := audittest.Records(t, l)
	if got, want := types(records), "log_opened chain decision outcome_unknown log_closed"; got != want {
		t.Fatalf("records: %s; want %s", got, want)
	}
	if records[3].Decision != open.RecordID || records[3].Chain == nil {
		t.Errorf("outcome_unknown refers to %s with chain %v", records[3].Decision, records[3].Chain)
	}
}

func TestManyWritersManySegments(t *testing.T) {
	cfg := audittest.Config(t)
	cfg.SegmentSize = 64 << 10
	l := audittest.OpenConfig(t, cfg)
	const writers, each = 8, 60
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			chain := testChain(fmt.Sprintf("txn-%d", w))
			for range each {
				rcpt, err := l.Append(context.Background(), allow(chain))
				if err != nil {
					t.Errorf("append: %v", err)
					return
				}
				l.Submit(audit.Record{Decision: rcpt.RecordID, Chain: chain, Event: &audit.Completed{Status: "ok"}})
			}
		})
	}
	wg.Wait()
	records := audittest.Records(t, l)
	if n := len(audittest.Of[*audit.Decision](records)); n != writers*each {
		t.Errorf("%d decisions read back, want %d", n, writers*each)
	}
	if n := len(audittest.Of[*audit.LogSegment](records)); n < 5 {
		t.Errorf("%d segment records: the test wants many segments", n)
	}
	for i, r := range records {
		if i > 0 && r.Seq <= records[i-1].Seq {
			t.Fatalf("record %d follows %d", r.Seq, records[i-1].Seq)
		}
	}
	entries, err := os.ReadDir(l.Dir())
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if info, err := e.Info(); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %v, want 0600", e.Name(), info.Mode())
		}
	}
}

func TestHeartbeatsAndAggregates(t *testing.T) {
	cfg := audittest.Config(t)
	cfg.Heartbeat = 20 * time.Millisecond
	l := audittest.OpenConfig(t, cfg)
	for range 5000 {
		l.Count("tls")
	}
	deadline := time.Now().Add(10 * time.Second)
	for time.Now().Before(deadline) {
		records := audittest.Records(t, l)
		refused := audittest.Of[*audit.Refused](records)
		if len(audittest.Of[*audit.Heartbeat](records)) < 2 || len(refused) == 0 {
			time.Sleep(cfg.Heartbeat)
			continue
		}
		var sum int64
		for _, r := range refused {
			sum += r.Event.(*audit.Refused).Count
		}
		if sum != 5000 || len(refused) > 3 {
			t.Fatalf("%d records count %d refusals, want 5000 in at most a few", len(refused), sum)
		}
		return
	}
	t.Fatal("no heartbeat in ten seconds")
}

// Whoever is refused learns which limit it was: fewer records and smaller ones are different ways out.
func TestARefusalByTheQuotaSaysWhichLimit(t *testing.T) {
	cfg := audittest.Config(t)
	clock := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	cfg.Now = func() time.Time { return clock }
	cfg.Quota = &audit.QuotaConfig{RecordsPerSecond: 1, RecordBurst: 40, BytesPerSecond: 1, ByteBurst: 1 << 20, MaxTrees: 10}
	l := audittest.OpenConfig(t, cfg)
	until := func(txn string, size int) (err error) {
		for range 41 {
			r := allow(testChain(txn))
			r.Event.(*audit.Decision).Statement = &audit.Text{Scrubbed: strings.Repeat("x", size), Bytes: size}
			if _, err = l.Append(t.Context(), r); err != nil {
				break
			}
		}
		return err
	}
	if err := until("large", 64<<10); !errors.Is(err, audit.ErrOverBytes) || !errors.Is(err, audit.ErrOverQuota) {
		t.Errorf("large records: %v", err)
	}
	if err := until("many", 1); !errors.Is(err, audit.ErrOverQuota) || errors.Is(err, audit.ErrOverBytes) || errors.Is(err, audit.ErrOverShare) {
		t.Errorf("many records: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestOneTreeCannotFillTheLog(t *testing.T) {
	cfg := audittest.Config(t)
	clock := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	cfg.Now = func() time.Time { return clock }
	cfg.Quota = &audit.QuotaConfig{RecordsPerSecond: 1, RecordBurst: 5, BytesPerSecond: 1 << 20, ByteBurst: 4 << 20, MaxTrees: 10}
	l := audittest.OpenConfig(t, cfg)
	greedy, other := testChain("greedy"), testChain("other")
	var open []audit.RecordID
	for i := range 8 {
		rcpt, err := l.Append(context.Background(), allow(greedy))
		if i < 5 && err != nil || i >= 5 && (!errors.Is(err, audit.ErrOverQuota) || errors.Is(err, audit.ErrOverShare)) {
			t.Fatalf("append %d: %v", i, err)
		}
		if err == nil {
			open = append(open, rcpt.RecordID)
		}
	}
	mustAppend(t, l, allow(other))
	for _, id := range open { // what is owed is never refused
		mustAppend(t, l, audit.Record{Chain: greedy, Decision: id, Event: &audit.Completed{Status: "ok"}})
	}
	clock = clock.Add(time.Second)
	mustAppend(t, l, allow(greedy))
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for _, r := range audittest.Of[*audit.Refused](audittest.Records(t, l)) {
		if e := r.Event.(*audit.Refused); e.Class == "over_quota" && e.Count == 3 && r.Txn == "greedy" && r.Chain != nil {
			return
		}
	}
	t.Fatal("the three refusals by quota aren't recorded")
}
