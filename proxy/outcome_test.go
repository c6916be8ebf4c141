package proxy_test

import (
	"strings"
	"testing"

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
