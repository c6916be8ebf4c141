package audit_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/audit/audittest"
)

// Each segment can be read alone: whatever chain its records name stands in it, once, before the first of them. A reader
// shows every record with its whole chain.
func TestAChainStandsOnceInEachSegment(t *testing.T) {
	cfg := audittest.Config(t)
	cfg.SegmentSize = 64 << 10
	l := audittest.OpenConfig(t, cfg)
	chains := []*audit.Chain{testChain("txn-0"), testChain("txn-1")}
	for i := range 60 {
		c := chains[i%2]
		r := mustAppend(t, l, allow(c))
		mustAppend(t, l, audit.Record{Decision: r.RecordID, Chain: c, Event: &audit.Completed{Status: "ok"}})
		if i == 40 { // also after a restart in the middle of a segment
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			l = audittest.OpenConfig(t, cfg)
		}
	}
	segments, stated := 0, map[string]int{}
	reader := audit.NewReader(os.DirFS(cfg.Dir))
	defer reader.Close()
	for {
		r, err := reader.Next()
		if err != nil {
			break
		}
		switch e := r.Event.(type) {
		case *audit.LogSegment:
			segments++
			clear(stated)
		case *audit.ChainStated:
			if stated[e.Txn]++; stated[e.Txn] > 1 {
				t.Errorf("record %d states the chain of %s again", r.Seq, e.Txn)
			}
		case *audit.Decision, *audit.Completed:
			if r.Chain == nil || r.Chain.Txn != r.Txn || len(r.Chain.Hops) != 3 || stated[r.Txn] != 1 {
				t.Fatalf("record %d of %s has the chain %+v", r.Seq, r.Txn, r.Chain)
			}
			whole, err := r.Expanded()
			if err != nil {
				t.Fatal(err)
			}
			var out struct {
				Chain struct {
					Txn  string
					User actor.SubjectID
				}
				Digest string `json:"chain_digest"`
			}
			if err := json.Unmarshal(whole, &out); err != nil || out.Chain.Txn != r.Txn || out.Chain.User.Subject != "alice" || out.Digest == "" {
				t.Fatalf("expanded: %v: %s", err, whole)
			}
		}
	}
	if segments < 2 {
		t.Fatalf("only %d more segments", segments)
	}
	report, err := audit.Verify(os.DirFS(cfg.Dir), keysFor(cfg), audit.VerifyOptions{})
	if err != nil || report.Err() != nil {
		t.Fatalf("verify: %v, %v", err, report.Err())
	}
}

// A record can't borrow the chain of another one under a name that says who it is.
func TestAStatedChainIsCheckedLikeAnyOther(t *testing.T) {
	l := audittest.Open(t)
	for name, c := range map[string]*audit.Chain{
		"no user": {Txn: "a"},
		"no hops": {Txn: "a", User: actor.SubjectID{Issuer: "https://i", Subject: "s"}},
	} {
		if _, err := l.Append(t.Context(), audit.Record{Chain: c, Event: &audit.Refused{Class: "x"}}); err == nil {
			t.Errorf("%s: accepted", name)
		}
		if l.Err() != nil {
			t.Fatalf("%s: the log is gone: %v", name, l.Err())
		}
	}
	for name, raw := range map[string]string{
		"not a digest":   `"chain":"alice"`,
		"an object":      `"chain":{"txn":"a"}`,
		"an upper digit": fmt.Sprintf(`"chain":"sha256:%064X"`, 171),
	} {
		record := `{"seq":0,"v":2,"id":"01927f3c-8a6e-7c3b-9d52-1f0e6b7a8c9d","type":"refused","time":"2026-11-23T12:00:00Z","source":"spiffe://t/x",` + raw + `,"event":{"class":"x"}}`
		if _, err := audit.ParseRecord([]byte(record)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := audit.ParseRecord([]byte(`{}`)); err == nil || errors.Is(err, os.ErrNotExist) {
		t.Error("an empty record is accepted")
	}
}
