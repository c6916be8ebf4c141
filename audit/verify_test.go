package audit_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"hash/crc32"
	"maps"
	"os"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/audit/audittest"
)

// threeSegments is a finished log, and its key.
func threeSegments(t testing.TB) (fstest.MapFS, audit.Config, []audit.Receipt) {
	t.Helper()
	d := newDisk()
	cfg := diskConfig(t, d)
	l, err := audit.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	var receipts []audit.Receipt
	for range 20 {
		rcpt := mustAppend(t, l, allow(testChain("txn")))
		receipts = append(receipts, rcpt, mustAppend(t, l, audit.Record{Decision: rcpt.RecordID, Chain: testChain("txn"), Event: &audit.Completed{Status: "ok", Rows: 1}}))
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	image := d.image()
	if len(image) < 3 {
		t.Fatalf("%d segments, the tests want three", len(image))
	}
	return image, cfg, receipts
}

const secondSegment, thirdSegment = "0000000000000001.segment", "0000000000000002.segment"

func copyOf(image fstest.MapFS) fstest.MapFS {
	out := maps.Clone(image)
	for name, f := range out {
		c := *f
		c.Data = bytes.Clone(f.Data)
		out[name] = &c
	}
	return out
}

func TestVerifyHoldsForAnUntouchedLog(t *testing.T) {
	image, cfg, receipts := threeSegments(t)
	seen := [][]byte{}
	for _, r := range receipts {
		seen = append(seen, r.Checkpoint)
	}
	report := mustVerify(t, image, cfg, audit.VerifyOptions{Seen: seen})
	if !report.Closed || report.Segments != 3 || report.Origin != cfg.Key.Origin() || len(report.Open) != 0 || report.Torn != nil {
		t.Errorf("report: %+v", report)
	}
	if report.Checkpoint == "" || report.Credentials.Records == 0 || report.Credentials.Without != report.Credentials.Records {
		t.Errorf("report: %+v", report)
	}
}

// Everything that somebody could do to a finished log with the disk in hand, but without the key.
func TestVerifyFindsTampering(t *testing.T) {
	image, cfg, receipts := threeSegments(t)
	frame := func(image fstest.MapFS, segment string, n int) (data []byte, at int) {
		data = image[segment].Data
		for at = 4096; ; at += 4096 {
			if string(data[at:at+8]) == "DPTYFRM1" {
				if n == 0 {
					return data, at
				}
				n--
			}
		}
	}
	last := receipts[len(receipts)-1]
	for name, c := range map[string]struct {
		do   func(fstest.MapFS)
		opts audit.VerifyOptions
		want audit.ProblemKind
	}{
		"a byte of a record, checksums mended": {func(m fstest.MapFS) {
			data, at := frame(m, secondSegment, 3)
			i := bytes.Index(data[at:], []byte("spiffe"))
			copy(data[at+i:], "mallor")
			mend(data[at:])
		}, audit.VerifyOptions{}, audit.ProblemTree},
		"a byte of a record": {func(m fstest.MapFS) {
			data, at := frame(m, secondSegment, 3)
			data[at+200] ^= 1
		}, audit.VerifyOptions{}, audit.ProblemFrame},
		"a signature": {func(m fstest.MapFS) {
			data, at := frame(m, secondSegment, 3)
			cp := at + 40 + int(binary.BigEndian.Uint32(data[at+20:]))
			end := cp + int(binary.BigEndian.Uint32(data[at+24:])) - 10
			data[end] = 'A' + (data[end]-'A'+1)%26
			mend(data[at:])
		}, audit.VerifyOptions{}, audit.ProblemSignature},
		"a frame taken out": {func(m fstest.MapFS) {
			data, at := frame(m, secondSegment, 3)
			copy(data[at:], data[at+4096:])
		}, audit.VerifyOptions{}, audit.ProblemTree},
		"two frames swapped": {func(m fstest.MapFS) {
			data, at := frame(m, secondSegment, 3)
			one := bytes.Clone(data[at : at+4096])
			copy(data[at:], data[at+4096:at+8192])
			copy(data[at+4096:], one)
		}, audit.VerifyOptions{}, audit.ProblemTree},
		"a segment taken out":         {func(m fstest.MapFS) { delete(m, secondSegment) }, audit.VerifyOptions{}, audit.ProblemMissing},
		"the first segment taken out": {func(m fstest.MapFS) { delete(m, firstSegment) }, audit.VerifyOptions{}, audit.ProblemPruned},
		"the last segment taken out":  {func(m fstest.MapFS) { delete(m, thirdSegment) }, audit.VerifyOptions{Seen: [][]byte{last.Checkpoint}}, audit.ProblemRolledBack},
		"the last frames wiped": {func(m fstest.MapFS) {
			data, at := frame(m, thirdSegment, 1)
			clear(data[at:])
		}, audit.VerifyOptions{Seen: [][]byte{last.Checkpoint}}, audit.ProblemRolledBack},
		"a file cut off": {func(m fstest.MapFS) { m[secondSegment].Data = m[secondSegment].Data[:9000] }, audit.VerifyOptions{}, audit.ProblemTruncated},
		"a header wiped": {func(m fstest.MapFS) { clear(m[secondSegment].Data[:4096]) }, audit.VerifyOptions{}, audit.ProblemHeader},
		"a segment of another log": {func(m fstest.MapFS) {
			other, _, _ := threeSegments(t)
			m[secondSegment] = other[secondSegment]
		}, audit.VerifyOptions{}, audit.ProblemHeader},
		"bytes behind the last frame of a finished segment": {func(m fstest.MapFS) {
			data := m[firstSegment].Data
			data[len(data)-1] = 1
		}, audit.VerifyOptions{}, audit.ProblemFrame},
	} {
		t.Run(name, func(t *testing.T) {
			m := copyOf(image)
			c.do(m)
			report, err := audit.Verify(m, keysFor(cfg), c.opts)
			if err != nil {
				t.Fatal(err)
			}
			if !errors.Is(report.Err(), audit.ErrEvidence) {
				t.Fatalf("nothing found: %+v", report)
			}
			for _, p := range report.Problems {
				if p.Kind == c.want {
					return
				}
			}
			t.Errorf("found %v, want a problem of kind %s", report.Problems, c.want)
		})
	}
}

// mend makes a frame's checksums right again.
func mend(frame []byte) {
	table := crc32.MakeTable(crc32.Castagnoli)
	used := 40 + binary.BigEndian.Uint32(frame[20:]) + binary.BigEndian.Uint32(frame[24:])
	binary.BigEndian.PutUint32(frame[28:], crc32.Checksum(frame[40:used], table))
	binary.BigEndian.PutUint32(frame[36:], crc32.Checksum(frame[:36], table))
}

func TestVerifyNeedsTheRightKey(t *testing.T) {
	image, cfg, _ := threeSegments(t)
	other := audittest.Key(t, cfg.Key.Origin())
	report, err := audit.Verify(image, &audit.Keys{Logs: []string{other.Public()}}, audit.VerifyOptions{})
	if err != nil || len(report.Problems) == 0 || report.Problems[0].Kind != audit.ProblemSignature {
		t.Fatalf("another key of the same name: %v, %+v", err, report)
	}
	if _, err := audit.Verify(image, &audit.Keys{}, audit.VerifyOptions{}); err == nil {
		t.Error("verified without any key")
	}
}

func TestPrunedLogVerifiesWhenAsked(t *testing.T) {
	image, cfg, receipts := threeSegments(t)
	delete(image, firstSegment)
	opts := audit.VerifyOptions{Pruned: true, Seen: [][]byte{receipts[0].Checkpoint, receipts[len(receipts)-1].Checkpoint}}
	report := mustVerify(t, image, cfg, opts)
	if report.FirstSeq == 0 || report.Segments != 2 {
		t.Errorf("report: %+v", report)
	}
}

func TestTornTailIsReportedExactly(t *testing.T) {
	d := newDisk()
	cfg := diskConfig(t, d)
	l, err := audit.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	mustAppend(t, l, allow(testChain("txn")))
	image := d.image()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	data := image[firstSegment].Data
	for i := 12288; i < 12288+100; i++ {
		data[i] = 7
	}
	report := mustVerify(t, image, cfg, audit.VerifyOptions{})
	if report.Torn == nil || *report.Torn != (audit.Torn{Segment: 0, Offset: 12288, Bytes: 100}) {
		t.Errorf("torn tail: %+v, want 100 bytes at offset 12288 of segment 0", report.Torn)
	}
	if report.Closed || len(report.Open) != 1 {
		t.Errorf("report: closed %v, open %v", report.Closed, report.Open)
	}
}

// The proof of one record can be checked by anybody with RFC 6962 and the checkpoint.
func TestInclusionProofStandsAlone(t *testing.T) {
	image, cfg, receipts := threeSegments(t)
	for _, i := range []int{0, 17, len(receipts) - 1} {
		report := mustVerify(t, image, cfg, audit.VerifyOptions{Record: receipts[i].RecordID})
		in := report.Inclusion
		if in == nil || in.Record.Seq != receipts[i].Seq {
			t.Fatalf("inclusion: %+v", in)
		}
		raw, err := in.Record.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		cp, err := audit.ParseCheckpoint([]byte(in.Checkpoint))
		if err != nil {
			t.Fatal(err)
		}
		var path tlog.RecordProof
		for _, text := range in.Path {
			h, err := tlog.ParseHash(text)
			if err != nil {
				t.Fatal(err)
			}
			path = append(path, h)
		}
		if err := tlog.CheckRecord(path, cp.Size, cp.Root, in.Record.Seq, tlog.RecordHash(raw)); err != nil {
			t.Errorf("record %d: %v", i, err)
		}
	}
	missing := audit.RecordID("01927f3c-8a6e-7c3b-9d52-1f0e6b7a8c9d")
	if _, err := audit.Verify(image, keysFor(cfg), audit.VerifyOptions{Record: missing}); !errors.Is(err, audit.ErrNotFound) {
		t.Errorf("a record that isn't there: %v", err)
	}
}

// Law 1, seen from outside: an effect without a decision, or a second outcome, is a finding even under a good signature (see the
// vectors). So the writer doesn't write one, whoever asks for it: no refused decision makes a whole log look wrong.
func TestNothingFollowsADecisionThatIsNotOpen(t *testing.T) {
	cfg := audittest.Config(t)
	cfg.Quota = &audit.QuotaConfig{RecordsPerSecond: 0.001, RecordBurst: 3, BytesPerSecond: 1 << 20, ByteBurst: 4 << 20, MaxTrees: 10}
	l := audittest.OpenConfig(t, cfg)
	chain := testChain("txn")
	refused := allow(chain)
	refused.Event = &audit.Decision{Effect: audit.Refuse, Class: "policy", Target: "t", Action: "a"}
	no, yes := mustAppend(t, l, refused), mustAppend(t, l, allow(chain))
	over := l.Submit(allow(chain))
	for {
		if _, err := over.Receipt(t.Context()); errors.Is(err, audit.ErrOverQuota) {
			break
		}
		over = l.Submit(allow(chain))
	}
	follow := func(id audit.RecordID, e audit.Event) error {
		_, err := l.Append(t.Context(), audit.Record{Decision: id, Chain: chain, Event: e})
		return err
	}
	ok := &audit.Completed{Status: "ok"}
	if err := follow(yes.RecordID, ok); err != nil {
		t.Fatal(err)
	}
	for name, err := range map[string]error{
		"forwarded, refused": follow(no.RecordID, &audit.Forwarded{}), "a second outcome": follow(yes.RecordID, ok),
		"forwarded behind its outcome": follow(yes.RecordID, &audit.Forwarded{}), "over quota": follow(over.ID(), ok),
		"masked, over quota": follow(over.ID(), &audit.Masked{Counts: []audit.MaskedCount{{Rule: "email", Values: 1}}}),
	} {
		if !errors.Is(err, audit.ErrNoDecision) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	report, err := audit.Verify(os.DirFS(cfg.Dir), keysFor(cfg), audit.VerifyOptions{})
	if err != nil || len(report.Problems) != 0 {
		t.Fatalf("verify: %v, %v", err, report.Problems)
	}
}

func TestVerifyShowsSilence(t *testing.T) {
	cfg := audittest.Config(t)
	clock := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	cfg.Now = func() time.Time { return clock }
	l := audittest.OpenConfig(t, cfg)
	mustAppend(t, l, audit.Record{Event: &audit.Heartbeat{Interval: 30_000_000}})
	clock = clock.Add(50 * time.Second)
	mustAppend(t, l, audit.Record{Event: &audit.Refused{Class: "tls"}})
	clock = clock.Add(time.Hour)
	mustAppend(t, l, audit.Record{Event: &audit.Refused{Class: "tls"}})
	report, err := audit.Verify(os.DirFS(cfg.Dir), keysFor(cfg), audit.VerifyOptions{})
	if err != nil || len(report.Silences) != 1 || report.Silences[0].To.Sub(report.Silences[0].From) != time.Hour {
		t.Fatalf("verify: %v, %+v", err, report)
	}
}

func TestKeysRoundTripAndRefuse(t *testing.T) {
	key := audittest.Key(t, "test.invalid/log")
	good, err := json.Marshal(&audit.Keys{Mesh: "https://b", TrustDomain: "test.invalid", Logs: []string{key.Public()},
		IdentityProviders: []audit.IdentityProvider{{Issuer: "https://idp", Keys: []byte(`{"keys":[]}`)}}})
	if err != nil {
		t.Fatal(err)
	}
	back, err := audit.ParseKeys(good)
	if err != nil || back.Logs[0] != key.Public() || back.IdentityProviders[0].Issuer != "https://idp" {
		t.Fatalf("round trip: %v, %+v", err, back)
	}
	for name, bad := range map[string]string{
		"not JSON":         `{`,
		"unknown member":   strings.Replace(string(good), `"mesh"`, `"mosh"`, 1),
		"another version":  strings.Replace(string(good), `"version":1`, `"version":2`, 1),
		"no log key":       `{"version":1,"mesh":"m","trust_domain":"t","logs":[],"certifying_keys":[],"authorities":[]}`,
		"a private key":    strings.Replace(string(good), key.Public(), key.Private(), 1),
		"not a PEM block":  strings.Replace(string(good), `"certifying_keys":[]`, `"certifying_keys":["x"]`, 1),
		"a wrong PEM kind": strings.Replace(string(good), `"authorities":[]`, `"authorities":["-----BEGIN X-----\n-----END X-----\n"]`, 1),
	} {
		if _, err := audit.ParseKeys([]byte(bad)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
