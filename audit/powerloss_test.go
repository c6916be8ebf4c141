package audit_test

import (
	"fmt"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/audit/audittest"
)

// traced is a disk that keeps everything that was done to the files of a log, in order.
type traced struct {
	*disk
	steps *[]step
}

// step is one write, or (with data nil) an fdatasync, of one file.
type step struct {
	name string
	off  int64
	data []byte
	ack  *audit.Receipt // or an acknowledgement that came after all steps before
}

type tracedFile struct {
	audit.File
	name string
	d    *traced
}

func (d *traced) OpenFile(name string, flag int) (audit.File, error) {
	f, err := d.disk.OpenFile(name, flag)
	if err != nil {
		return nil, err
	}
	return &tracedFile{f, name, d}, nil
}

func (d *traced) note(s step) {
	d.mu.Lock()
	defer d.mu.Unlock()
	*d.steps = append(*d.steps, s)
}

func (f *tracedFile) WriteAt(p []byte, off int64) (int, error) {
	n, err := f.File.WriteAt(p, off)
	f.d.note(step{name: f.name, off: off, data: append([]byte{}, p...)})
	return n, err
}

func (f *tracedFile) Datasync() error {
	err := f.File.Datasync()
	f.d.note(step{name: f.name})
	return err
}

// The power fails after each step of a log's life, and of what wasn't synced then any part may be on the disk: none of it, all of
// it, and every subset of its blocks. Each time the log opens, has everything that was acknowledged, verifies, and
// holds nothing but what was submitted, in order.
func TestPowerFailsAfterEachStep(t *testing.T) {
	var steps []step
	d := &traced{newDisk(), &steps}
	cfg := diskConfig(t, d.disk)
	cfg.FS = d
	l, err := audit.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	var all []audit.Receipt
	submit := func(r audit.Record) audit.Receipt {
		rcpt := mustAppend(t, l, r)
		all = append(all, rcpt)
		d.note(step{ack: &rcpt})
		return rcpt
	}
	chain := testChain("txn")
	for n := range 12 { // into a second segment
		open := submit(allow(chain))
		big := allow(chain)
		big.Event.(*audit.Decision).Statement.Scrubbed = fmt.Sprintf("SELECT '%0*d'", 3000+3700*(n%4), n) // frames of two to four blocks
		submit(big)
		submit(audit.Record{Decision: open.RecordID, Chain: chain, Event: &audit.Completed{Status: "ok"}})
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}

	tried := 0
	synced, pending := map[string][]byte{}, map[string][]diskWrite{}
	acked := 0
	check := func(at int, what string, survives func(block int) bool) {
		t.Helper()
		tried++
		after := newDisk()
		block := 0
		for name, durable := range synced {
			data := append([]byte{}, durable...)
			for _, w := range pending[name] {
				for from := 0; from < len(w.data); from += 4096 {
					part := w.data[from:min(from+4096, len(w.data))]
					block++
					if !survives(block - 1) {
						continue
					}
					end := int(w.off) + from + len(part)
					for len(data) < end {
						data = append(data, 0)
					}
					copy(data[int(w.off)+from:], part)
				}
			}
			after.files[name] = &diskFile{d: after, data: data, durable: append([]byte{}, data...)}
			after.names[name] = true
		}
		cfg := cfg
		cfg.FS = after
		l, err := audit.Open(cfg)
		if err != nil {
			t.Fatalf("power lost after step %d (%s): %v", at, what, err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		image := after.image()
		records := readAll(t, image)
		for i, a := range all[:acked] {
			if int(a.Seq) >= len(records) || records[a.Seq].ID != a.RecordID {
				t.Fatalf("power lost after step %d (%s): acknowledged record %d isn't where it was", at, what, i)
			}
		}
		if tried%7 == 0 {
			report := mustVerify(t, image, cfg, audit.VerifyOptions{})
			if len(report.Open) != 0 || report.Torn != nil {
				t.Fatalf("power lost after step %d (%s): open %v, torn %v", at, what, report.Open, report.Torn)
			}
		}
		if got := len(audittest.Of[*audit.LogOpened](records)); got > 2 {
			t.Fatalf("power lost after step %d (%s): %d starts", at, what, got)
		}
	}
	blocks := func() int {
		n := 0
		for _, ws := range pending {
			for _, w := range ws {
				n += (len(w.data) + 4095) / 4096
			}
		}
		return n
	}
	for at, s := range steps {
		switch {
		case s.ack != nil:
			acked++
			continue
		case s.data == nil:
			data := synced[s.name]
			for _, w := range pending[s.name] {
				for len(data) < int(w.off)+len(w.data) {
					data = append(data, 0)
				}
				copy(data[w.off:], w.data)
			}
			synced[s.name] = data
			delete(pending, s.name)
			check(at, "all synced", func(int) bool { return false })
			continue
		default:
			if _, ok := synced[s.name]; !ok {
				synced[s.name] = nil // its name may survive before its contents do
			}
			pending[s.name] = append(pending[s.name], diskWrite{s.off, s.data})
		}
		n := blocks()
		if n > 5 { // the zeros of a segment that is being made: some of them are as good as all subsets
			for _, every := range []int{1, 2, 3, n} {
				check(at, fmt.Sprintf("each %d-th of %d blocks", every, n), func(b int) bool { return b%every == 0 })
			}
			continue
		}
		for set := range 1 << n {
			check(at, fmt.Sprintf("blocks %0*b of %d", n, set, n), func(b int) bool { return set>>b&1 == 1 })
		}
	}
	if tried < 200 || acked != len(all) {
		t.Errorf("%d ways were tried, %d of %d acknowledgements", tried, acked, len(all))
	}
}

// The clock may go back, by a step of NTP or by somebody's hand: order and proof rest on positions, never on time, and nothing is
// refused for it.
func TestTheClockGoesBack(t *testing.T) {
	cfg := audittest.Config(t)
	start := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	var minutes atomic.Int64 // that the clock went back
	cfg.Now = func() time.Time { return start.Add(-time.Duration(minutes.Load()) * time.Minute) }
	l := audittest.OpenConfig(t, cfg)
	chain := testChain("txn")
	var last audit.Receipt
	for i := range 40 {
		minutes.Store(int64(i))
		open := mustAppend(t, l, allow(chain))
		minutes.Store(int64(i + 1))
		last = mustAppend(t, l, audit.Record{Decision: open.RecordID, Chain: chain, Event: &audit.Completed{Status: "ok"}})
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	report, err := audit.Verify(os.DirFS(cfg.Dir), keysFor(cfg), audit.VerifyOptions{Seen: [][]byte{last.Checkpoint}})
	if err != nil || report.Err() != nil {
		t.Fatalf("verify: %v, %v", err, report.Err())
	}
	if len(report.Silences) != 0 || len(report.Open) != 0 {
		t.Errorf("silences %v, open %v", report.Silences, report.Open)
	}
}
