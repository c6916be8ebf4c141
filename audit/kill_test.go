package audit_test

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/audit/audittest"
)

func waitABit() { time.Sleep(20 * time.Millisecond) }

const childEnv = "AUDIT_TEST_CHILD"

// childMain is the process that TestKilled kills: it appends from several goroutines and prints what was acknowledged.
func childMain() {
	dir := os.Getenv(childEnv)
	if dir == "" {
		return
	}
	key, err := audit.ParseKey(os.Getenv(childEnv + "_KEY"))
	if err != nil {
		panic(err)
	}
	l, err := audit.Open(audit.Config{Dir: dir, Source: audittest.Source, Key: key, SegmentSize: 256 << 10})
	if err != nil {
		panic(err)
	}
	for w := range 8 {
		go func() {
			chain := testChain(fmt.Sprintf("txn-%d", w))
			for {
				rcpt, err := l.Append(context.Background(), allow(chain))
				if err != nil {
					panic(err)
				}
				// One write of one line: a line that arrives is whole.
				fmt.Fprintf(os.Stdout, "%s %d\n", rcpt.RecordID, rcpt.Seq)
				l.Submit(audit.Record{Decision: rcpt.RecordID, Chain: chain, Event: &audit.Completed{Status: "ok"}})
			}
		}()
	}
	select {}
}

// SIGKILL, twenty times: nothing that was acknowledged is lost, and the log verifies.
func TestKilled(t *testing.T) {
	dir := t.TempDir()
	key := audittest.Key(t, "test.invalid/killed")
	acked := make(map[audit.RecordID]int64)
	for round := range 20 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childEnv+"="+dir, childEnv+"_KEY="+key.Private())
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines, stop := bufio.NewScanner(out), 20+rand.IntN(400)
		watchdog := time.AfterFunc(time.Minute, func() { cmd.Process.Kill() })
		n := 0
		for lines.Scan() {
			id, seq, ok := strings.Cut(lines.Text(), " ")
			number, err := strconv.ParseInt(seq, 10, 64)
			if !ok || err != nil {
				t.Fatalf("the child printed %q", lines.Text())
			}
			acked[audit.RecordID(id)] = number
			if n++; n == stop {
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		watchdog.Stop()
		if err := cmd.Wait(); err == nil || n < stop {
			t.Fatalf("round %d: the child ended by itself after %d records: %v", round, n, err)
		}
	}
	l, err := audit.Open(audit.Config{Dir: dir, Source: audittest.Source, Key: key, SegmentSize: 256 << 10})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	report, err := audit.Verify(os.DirFS(dir), &audit.Keys{Logs: []string{key.Public()}}, audit.VerifyOptions{})
	if err != nil || report.Err() != nil {
		t.Fatalf("verify: %v, %v", err, report.Err())
	}
	if report.Recoveries != 20 || len(report.Open) != 0 {
		t.Errorf("%d recoveries (want 20), open decisions: %v", report.Recoveries, report.Open)
	}
	for _, r := range audittest.Records(t, l) {
		if seq, ok := acked[r.ID]; ok {
			if seq != r.Seq {
				t.Errorf("record %s stands at %d, acknowledged at %d", r.ID, r.Seq, seq)
			}
			delete(acked, r.ID)
		}
	}
	if len(acked) != 0 {
		t.Errorf("%d acknowledged records are lost", len(acked))
	}
}
