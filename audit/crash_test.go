package audit_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/audit/audittest"
)

const firstSegment = "0000000000000000.segment"

func diskConfig(t testing.TB, d *disk) audit.Config {
	cfg := audittest.Config(t)
	cfg.Dir, cfg.FS, cfg.SegmentSize = "/log", d, 64<<10
	return cfg
}

func keysFor(cfg audit.Config) *audit.Keys { return &audit.Keys{Logs: []string{cfg.Key.Public()}} }

func readAll(t testing.TB, image fstest.MapFS) []*audit.Record {
	t.Helper()
	r := audit.NewReader(image)
	defer r.Close()
	var all []*audit.Record
	for rec, err := range r.All() {
		if err != nil {
			t.Fatalf("reading back: %v", err)
		}
		all = append(all, rec)
	}
	return all
}

func mustVerify(t testing.TB, image fstest.MapFS, cfg audit.Config, opts audit.VerifyOptions) *audit.Report {
	t.Helper()
	report, err := audit.Verify(image, keysFor(cfg), opts)
	if err != nil {
		t.Fatalf("verify: %v", err)
	}
	if report.Err() != nil {
		t.Fatalf("verify: %v\n%v", report.Err(), report.Problems)
	}
	return report
}

// A file that ends, in zeros or for good, at any of its bytes: the log opens, keeps every frame before that byte, and says
// what became of the decisions in them.
func TestCrashAtAnyByte(t *testing.T) {
	d := newDisk()
	cfg := diskConfig(t, d)
	l, err := audit.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	chain := testChain("txn")
	var receipts []audit.Receipt
	for range 3 {
		receipts = append(receipts, mustAppend(t, l, allow(chain)))
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	whole := d.image()[firstSegment].Data
	// Where the n-th receipt's frame ends: its size is in the frames, which are found by their magic.
	var ends []int
	for at := 4096; at < len(whole); at += 4096 {
		if string(whole[at:at+8]) == "DPTYFRM1" || allZero(whole[at:]) {
			ends = append(ends, at)
			if allZero(whole[at:]) {
				break
			}
		}
	}
	ends = ends[1:] // the first frame begins there

	tried := 0
	for k := 4096; k <= ends[len(ends)-1]; k++ {
		if k > 4096 && whole[k-1] == 0 {
			continue // the same file as one byte less
		}
		// Every byte of one frame's header and checkpoint, samples of its records and of the other frames, which are made alike.
		one := k >= ends[1] && k <= ends[1]+60 || k >= lastByte(whole, ends[1], ends[2])-120 && k <= ends[2]
		if !one && k%41 != 0 {
			continue
		}
		tried++
		for _, cut := range []bool{false, true} {
			if cut && tried%16 != 0 {
				continue
			}
			torn := append([]byte(nil), whole...)
			clear(torn[k:])
			if cut {
				torn = torn[:k]
			}
			after := newDisk()
			name := filepath.Join("/log", firstSegment)
			after.files[name] = &diskFile{d: after, data: torn, durable: append([]byte(nil), torn...)}
			after.names[name] = true
			cfg := cfg
			cfg.FS = after
			l, err := audit.Open(cfg)
			if err != nil {
				t.Fatalf("torn at byte %d (cut off: %v): %v", k, cut, err)
			}
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			image := after.image()
			if tried%8 == 0 {
				mustVerify(t, image, cfg, audit.VerifyOptions{})
			}
			records := readAll(t, image)
			unknown := len(audittest.Of[*audit.OutcomeUnknown](records))
			decisions := len(audittest.Of[*audit.Decision](records))
			// The frame with the n-th decision is the (n+1)-th after log_opened.
			want := 0
			for i := range receipts {
				if lastByte(whole, ends[i], ends[i+1]) <= k {
					want++
				}
			}
			if decisions != want || unknown != want {
				t.Fatalf("torn at byte %d: %d decisions and %d unknown outcomes, want %d of each", k, decisions, unknown, want)
			}
		}
	}
}

// lastByte returns the end of the last byte in [from, to) that isn't zero.
func lastByte(b []byte, from, to int) int {
	for to > from && b[to-1] == 0 {
		to--
	}
	return to
}

func allZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// A disk that loses, tears and reorders whatever came after the last sync: every acknowledged record survives, and the log verifies.
func TestPowerFailsAnywhere(t *testing.T) {
	for seed := range uint64(12) {
		for _, p := range []float64{0, 0.5, 0.9, 1} {
			t.Run(fmt.Sprintf("seed=%d,survive=%v", seed, p), func(t *testing.T) {
				r := rand.New(rand.NewPCG(seed, uint64(p*10)))
				d := newDisk()
				cfg := diskConfig(t, d)
				var acked []audit.Receipt
				for range 3 { // crashes of one log
					at := 3 + r.IntN(12)
					d.failSync = func(n int) fault {
						if n == at {
							return powerFails
						}
						return fine
					}
					cfg.FS = d
					acked = append(acked, runUntilItFails(t, cfg, r.IntN(4)+1)...)
					d = d.crash(coin(r, p))
				}
				cfg.FS = d
				l, err := audit.Open(cfg)
				if err != nil {
					t.Fatalf("opening after the crash: %v", err)
				}
				if err := l.Close(); err != nil {
					t.Fatal(err)
				}
				seen := [][]byte{}
				byID := make(map[audit.RecordID]int64)
				for _, rec := range readAll(t, d.image()) {
					byID[rec.ID] = rec.Seq
				}
				for _, a := range acked {
					if seq, ok := byID[a.RecordID]; !ok || seq != a.Seq {
						t.Fatalf("acknowledged record %s at %d isn't there (found: %v, %d)", a.RecordID, a.Seq, ok, seq)
					}
					seen = append(seen, a.Checkpoint)
				}
				report := mustVerify(t, d.image(), cfg, audit.VerifyOptions{Seen: seen})
				if len(report.Open) != 0 || report.Torn != nil {
					t.Errorf("after recovery: open %v, torn %+v", report.Open, report.Torn)
				}
			})
		}
	}
}

// runUntilItFails lets writers append until the log refuses, and returns what was acknowledged.
func runUntilItFails(t *testing.T, cfg audit.Config, writers int) []audit.Receipt {
	t.Helper()
	l, err := audit.Open(cfg)
	if err != nil {
		if errors.Is(err, errPower) {
			return nil
		}
		t.Fatalf("open: %v", err)
	}
	var mu sync.Mutex
	var acked []audit.Receipt
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			chain := testChain(fmt.Sprintf("txn-%d", w))
			for range 200 {
				rcpt, err := l.Append(context.Background(), allow(chain))
				if err != nil {
					if !errors.Is(err, audit.ErrPoisoned) {
						t.Errorf("append on a dead disk: %v, want ErrPoisoned", err)
					}
					return
				}
				mu.Lock()
				acked = append(acked, rcpt)
				mu.Unlock()
				l.Submit(audit.Record{Decision: rcpt.RecordID, Chain: chain, Event: &audit.Completed{Status: "ok"}})
			}
		})
	}
	wg.Wait()
	if err := l.Close(); !errors.Is(err, audit.ErrPoisoned) {
		t.Errorf("closing a poisoned log: %v", err)
	}
	return acked
}

// fdatasync fails in both ways: nothing durable, or everything durable and reported as failed. The log is poisoned, never
// tries again, and after a restart what was acknowledged is there.
func TestFailedSyncPoisons(t *testing.T) {
	for name, how := range map[string]fault{"failed": syncFails, "done but reported failed": syncDone} {
		t.Run(name, func(t *testing.T) {
			d := newDisk()
			cfg := diskConfig(t, d)
			l, err := audit.Open(cfg)
			if err != nil {
				t.Fatal(err)
			}
			good := mustAppend(t, l, allow(testChain("txn")))
			failed := 0
			d.mu.Lock()
			d.failSync = func(int) fault {
				failed++
				return how
			}
			d.mu.Unlock()
			lost := l.Submit(allow(testChain("txn")))
			if _, err := lost.Receipt(context.Background()); !errors.Is(err, audit.ErrPoisoned) {
				t.Fatalf("append with a failing fdatasync: %v, want ErrPoisoned", err)
			}
			for range 5 {
				if _, err := l.Append(context.Background(), allow(testChain("txn"))); !errors.Is(err, audit.ErrPoisoned) {
					t.Fatalf("append to a poisoned log: %v", err)
				}
			}
			if !errors.Is(l.Err(), audit.ErrPoisoned) {
				t.Errorf("Err: %v", l.Err())
			}
			if err := l.Close(); !errors.Is(err, audit.ErrPoisoned) {
				t.Errorf("Close: %v", err)
			}
			if failed != 1 {
				t.Errorf("fdatasync was called %d times after it failed; it must not be retried", failed-1)
			}

			d = d.crash(func() bool { return false })
			cfg.FS = d
			if l, err = audit.Open(cfg); err != nil {
				t.Fatal(err)
			}
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			mustVerify(t, d.image(), cfg, audit.VerifyOptions{Seen: [][]byte{good.Checkpoint}})
			unknown := map[audit.RecordID]bool{}
			for _, r := range audittest.Of[*audit.OutcomeUnknown](readAll(t, d.image())) {
				unknown[r.Decision] = true
			}
			if !unknown[good.RecordID] || unknown[lost.ID()] != (how == syncDone) || len(unknown) > 2 {
				t.Errorf("unknown outcomes after the restart: %v (acknowledged %s, failed %s)", unknown, good.RecordID, lost.ID())
			}
		})
	}
}

// A full disk refuses new records with nothing half-written, still takes the outcomes that are owed, and passes.
func TestFullDiskRefuses(t *testing.T) {
	d := newDisk()
	cfg := diskConfig(t, d)
	d.space = cfg.SegmentSize + cfg.SegmentSize/2 // one segment, no second
	cfg.Heartbeat = 5 * time.Millisecond          // refused as well, with the counts that come along
	l, err := audit.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	chain := testChain("txn")
	var open []audit.Receipt
	for range 1000 {
		rcpt, err := l.Append(context.Background(), allow(chain))
		if errors.Is(err, audit.ErrFull) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, rcpt)
	}
	if len(open) == 0 || len(open) == 1000 {
		t.Fatalf("%d records before the disk was full", len(open))
	}
	before := len(audittest.Of[*audit.Decision](readAll(t, d.image())))
	if _, err := l.Append(context.Background(), allow(chain)); !errors.Is(err, audit.ErrFull) {
		t.Fatalf("append on a full disk: %v, want ErrFull", err)
	}
	mustVerify(t, d.image(), cfg, audit.VerifyOptions{})
	if after := len(audittest.Of[*audit.Decision](readAll(t, d.image()))); after != before {
		t.Fatalf("a refused decision is in the log: %d of them after %d", after, before)
	}
	mustAppend(t, l, audit.Record{Decision: open[0].RecordID, Chain: chain, Event: &audit.Completed{Status: "ok"}})
	if l.Err() != nil {
		t.Fatalf("a full disk poisoned the log: %v", l.Err())
	}

	// A restart doesn't need room: it takes what is owed, and refuses the rest.
	if err := l.Close(); err != nil {
		t.Fatalf("closing while the disk is full: %v", err)
	}
	if l, err = audit.Open(cfg); err != nil {
		t.Fatalf("opening while the disk is full: %v", err)
	}
	// What was owed took less than was kept for it, so a few may still find room.
	for i := 0; ; i++ {
		var rcpt audit.Receipt
		if rcpt, err = l.Append(context.Background(), allow(chain)); err != nil || i > 100 {
			break
		}
		open = append(open, rcpt)
	}
	if !errors.Is(err, audit.ErrFull) {
		t.Fatalf("append on a full disk after a restart: %v, want ErrFull", err)
	}
	l.Count("tls") // can't be recorded now, and isn't forgotten
	waitABit()

	d.mu.Lock()
	d.space = -1
	d.mu.Unlock()
	for range 100 { // the log looks again from time to time
		rcpt, err := l.Append(context.Background(), allow(chain))
		if err == nil {
			open = append(open, rcpt)
			break
		}
		if !errors.Is(err, audit.ErrFull) {
			t.Fatal(err)
		}
		waitABit()
	}
	if err := l.Close(); err != nil {
		t.Fatalf("closing after there is room again: %v", err)
	}
	report := mustVerify(t, d.image(), cfg, audit.VerifyOptions{Seen: [][]byte{open[len(open)-1].Checkpoint}})
	if !report.Closed || report.Unknown != len(open)-1 {
		t.Errorf("closed %v, %d unknown outcomes, want %d", report.Closed, report.Unknown, len(open)-1)
	}
	counted := int64(0)
	for _, r := range audittest.Of[*audit.Refused](readAll(t, d.image())) {
		counted += r.Event.(*audit.Refused).Count
	}
	if counted != 1 {
		t.Errorf("%d refusals were counted, want the one from when the disk was full", counted)
	}
}

// Damage that no crash leaves behind isn't repaired.
func TestDamageIsRefused(t *testing.T) {
	d := newDisk()
	cfg := diskConfig(t, d)
	cfg.SegmentSize = 64 << 10
	l, err := audit.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	for range 10 { // one segment and a part of the second
		d := mustAppend(t, l, allow(testChain("txn")))
		mustAppend(t, l, audit.Record{Decision: d.RecordID, Event: &audit.Completed{Status: "ok"}})
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	second := filepath.Join("/log", "0000000000000001.segment")
	for name, damage := range map[string]func(map[string]*diskFile){
		"a flipped bit in a frame before others": func(f map[string]*diskFile) { f[second].data[4096+100] ^= 1 },
		"a frame that was wiped before others":   func(f map[string]*diskFile) { clear(f[second].data[4096:8192]) },
		"a header that was wiped":                func(f map[string]*diskFile) { clear(f[second].data[:4096]) },
		"a header of another segment":            func(f map[string]*diskFile) { copy(f[second].data[:4096], f["/log/"+firstSegment].data) },
		"a missing segment in the middle":        func(f map[string]*diskFile) { f["/log/0000000000000009.segment"] = f[second]; delete(f, second) },
		"a frame of the log's past put in again": func(f map[string]*diskFile) { replay(f[second].data) },
	} {
		t.Run(name, func(t *testing.T) {
			broken := d.crash(func() bool { return true })
			damage(broken.files)
			cfg := cfg
			cfg.FS = broken
			if l, err := audit.Open(cfg); !errors.Is(err, audit.ErrCorrupt) {
				if err == nil {
					l.Close()
				}
				t.Fatalf("open: %v, want ErrCorrupt", err)
			}
		})
	}
}

// replay copies a segment's first frame behind its last.
func replay(b []byte) {
	for at := 4096; at < len(b); at += 4096 {
		if allZero(b[at : at+4096]) {
			copy(b[at:], b[4096:8192])
			return
		}
	}
}

func TestRolledBackLogDoesNotStart(t *testing.T) {
	d := newDisk()
	cfg := diskConfig(t, d)
	l, err := audit.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	mustAppend(t, l, allow(testChain("txn")))
	old := d.crash(func() bool { return true })
	seen := mustAppend(t, l, allow(testChain("txn"))).Checkpoint
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	cfg.Seen = seen
	again, err := audit.Open(cfg)
	if err != nil {
		t.Fatalf("a log that contains what was seen: %v", err)
	}
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
	for name, d := range map[string]*disk{"cut back": old, "begun anew": newDisk()} {
		cfg.FS = d
		if _, err := audit.Open(cfg); !errors.Is(err, audit.ErrRolledBack) {
			t.Errorf("%s: %v, want ErrRolledBack", name, err)
		}
	}
	// Grown again with other records: as long as the one that was seen, but another log.
	cfg.FS, cfg.Seen = old, nil
	if l, err = audit.Open(cfg); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		mustAppend(t, l, allow(testChain("other")))
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	cfg.Seen = seen
	if _, err := audit.Open(cfg); !errors.Is(err, audit.ErrRolledBack) {
		t.Errorf("forked: %v, want ErrRolledBack", err)
	}
	report, err := audit.Verify(old.image(), keysFor(cfg), audit.VerifyOptions{Seen: [][]byte{seen}})
	if err != nil || len(report.Problems) == 0 || report.Problems[0].Kind != audit.ProblemRolledBack {
		t.Errorf("verify of the fork: %v, %+v", err, report)
	}
}
