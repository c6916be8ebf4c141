package proxy_test

import (
	"strings"
	"testing"
	"time"

	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/audit/audittest"
	"github.com/deputymesh/deputy/proxy"
)

// TestATargetCannotMakeItsOutcomeTooLargeToRecord: names of columns, the command tag and the error code come from the target.
func TestATargetCannotMakeItsOutcomeTooLargeToRecord(t *testing.T) {
	m := serving(t)
	s := m.open(m.flow())
	p, err := s.Authorize(t.Context(), m.command("select", "customers"))
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Use(); err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("x", 1<<20)
	var masked []audit.MaskedCount
	for range 1664 {
		masked = append(masked, audit.MaskedCount{Rule: "withheld", Column: long, Values: 2})
	}
	if err := p.Completed(t.Context(), proxy.Outcome{Status: "error", Command: long, Code: long, Masked: masked}); err != nil {
		t.Fatal(err)
	}
	found := false
	for _, r := range audittest.Records(t, m.log) {
		e, ok := r.Event.(*audit.Completed)
		if !ok || r.Decision != p.RecordID() {
			continue
		}
		found = true
		var sum int64
		for _, c := range e.Masked {
			sum += c.Values
		}
		if len(e.Code) > 32 || len(e.Command) > 256 || len(e.Masked) > 256 || sum != 2*1664 {
			t.Errorf("code of %d bytes, command of %d, %d counts that come to %d", len(e.Code), len(e.Command), len(e.Masked), sum)
		}
	}
	if !found {
		t.Error("the outcome isn't recorded")
	}
}

// TestACommandThatTakesLongIsRecordedAsForwarded: a crash must not leave a slow command looking as if it had never left.
func TestACommandThatTakesLongIsRecordedAsForwarded(t *testing.T) {
	m := serving(t)
	s := m.open(m.flow())
	p, err := s.Authorize(t.Context(), m.command("select", "customers"))
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Use(); err != nil {
		t.Fatal(err)
	}
	p.Forwarded(77)
	recorded := func(kind audit.Type) *audit.Record {
		for _, r := range audittest.Records(t, m.log) {
			if r.Decision == p.RecordID() && r.Type == kind {
				return r
			}
		}
		return nil
	}
	for start := time.Now(); recorded(audit.TypeForwarded) == nil; time.Sleep(5 * time.Millisecond) {
		if time.Since(start) > 20*time.Second {
			t.Fatal("no record says that the command has left")
		}
	}
	if err := p.Completed(t.Context(), proxy.Outcome{Status: "ok"}); err != nil {
		t.Fatal(err)
	}
	s.Close("client", "")
	for start := time.Now(); recorded(audit.TypeCompleted) == nil; time.Sleep(5 * time.Millisecond) {
		if time.Since(start) > 20*time.Second {
			t.Fatal("no outcome")
		}
	}
	if e := recorded(audit.TypeCompleted).Event.(*audit.Completed); e.BytesIn != 77 {
		t.Errorf("completed %+v", e)
	}
	if e := recorded(audit.TypeForwarded).Event.(*audit.Forwarded); e.Bytes != 77 {
		t.Errorf("forwarded %+v", e)
	}
}

// TestARecordingBelongsToItsDecision: a piece is durable when Keep returns, and none comes behind the outcome.
func TestARecordingBelongsToItsDecision(t *testing.T) {
	m := serving(t)
	s := m.open(m.flow())
	p, err := s.Authorize(t.Context(), m.command("select", "customers"))
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Use(); err != nil {
		t.Fatal(err)
	}
	for _, piece := range []string{"one", "two", "two"} {
		if err := p.Keep(t.Context(), []byte(piece)); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Completed(t.Context(), proxy.Outcome{Status: "ok"}); err != nil {
		t.Fatal(err)
	}
	if err := p.Keep(t.Context(), []byte("three")); err == nil {
		t.Error("a piece behind the outcome is taken")
	}
	kept := ""
	for _, r := range audittest.Records(t, m.log) {
		if e, ok := r.Event.(*audit.Evidence); ok && e.Kind == audit.KindRecording && r.Decision == p.RecordID() {
			kept += string(e.Data) + " "
		}
	}
	if kept != "one two two " {
		t.Errorf("kept %q", kept)
	}
}
