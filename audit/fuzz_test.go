package audit_test

import (
	"errors"
	"io"
	"testing"
	"testing/fstest"

	"github.com/deputymesh/deputy/audit"
)

// FuzzSegment changes a segment anywhere: whoever reads it neither crashes nor believes it.
func FuzzSegment(f *testing.F) {
	image, cfg, _ := threeSegments(f)
	whole := image[firstSegment].Data
	f.Add(0, []byte("x"))
	f.Add(4096, whole[8192:8300])
	f.Add(4096+16, []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	f.Add(8192+40, []byte{0, 0, 0, 0})
	f.Add(len(whole)-1, []byte{1})
	f.Fuzz(func(t *testing.T, at int, patch []byte) {
		if at < 0 || at >= len(whole) || len(patch) > len(whole)-at {
			return
		}
		data := append([]byte(nil), whole...)
		copy(data[at:], patch)
		m := fstest.MapFS{firstSegment: &fstest.MapFile{Data: data}}
		report, err := audit.Verify(m, keysFor(cfg), audit.VerifyOptions{})
		if err == nil && string(data) != string(whole) && report.Err() == nil && report.Torn == nil && report.Records > 0 {
			// What changed must have been cut away whole, never changed in place.
			r := audit.NewReader(m)
			before := audit.NewReader(fstest.MapFS{firstSegment: &fstest.MapFile{Data: whole}})
			for {
				got, err := r.Next()
				if errors.Is(err, io.EOF) {
					return
				}
				want, werr := before.Next()
				if err != nil || werr != nil || got.ID != want.ID {
					t.Fatalf("a changed segment verifies: %v %v", err, werr)
				}
			}
		}
	})
}

// FuzzParseRecord: what parses is written back with the same meaning.
func FuzzParseRecord(f *testing.F) {
	image, _, _ := threeSegments(f)
	for i, r := range readAll(f, image) {
		raw, err := r.MarshalJSON()
		if err != nil {
			f.Fatal(err)
		}
		if i < 5 {
			f.Add(raw)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := audit.ParseRecord(data)
		if err != nil {
			return
		}
		if raw, err := r.MarshalJSON(); err != nil || string(raw) != string(data) {
			t.Fatalf("parsed %q and wrote %q (%v)", data, raw, err)
		}
		if r.Line() == "" || r.Event.EventType() != r.Type {
			t.Fatalf("record without a line or of two types: %q", data)
		}
	})
}

// FuzzParseCheckpoint: what parses has one reading.
func FuzzParseCheckpoint(f *testing.F) {
	f.Add([]byte("test.invalid/log\n3\nAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n\n— test.invalid/log AAAA\n"))
	f.Add([]byte("x\n03\nAAAA\n\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		cp, err := audit.ParseCheckpoint(data)
		if err == nil && (cp.Size < 0 || cp.Origin == "") {
			t.Fatalf("%q parsed as %+v", data, cp)
		}
	})
}

// FuzzParseKeys must not crash.
func FuzzParseKeys(f *testing.F) {
	f.Add([]byte(`{"version":1,"mesh":"m","trust_domain":"t","logs":["a+1234+AAAA"],"certifying_keys":[],"authorities":[]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if k, err := audit.ParseKeys(data); err == nil && len(k.Logs) == 0 {
			t.Fatal("a list without a log key was accepted")
		}
	})
}
