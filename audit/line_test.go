package audit_test

import (
	"strings"
	"testing"

	"github.com/deputymesh/deputy/audit"
)

// What a record doesn't say leaves no gap in its line.
func TestLineSaysOnlyWhatIsThere(t *testing.T) {
	for _, c := range []struct {
		event audit.Event
		want  string
	}{
		{&audit.Completed{Status: "ok"}, " ok, 0 rows "},
		{&audit.Completed{Status: "error", Code: "42501", Rows: 1}, " error 42501, 1 row "},
		{&audit.Revoked{Kind: "task", Value: "7a11", Reason: "incident"}, " task 7a11: incident "},
		{&audit.Revoked{Kind: "task", Value: "7a11", By: "oscar", Reason: "incident"}, " task 7a11 by oscar: incident "},
		{&audit.JWTSVID{Result: audit.Accepted, Subject: "spiffe://x/app/a", Audience: []string{"https://a", "b"}}, " accepted: spiffe://x/app/a for https://a, b "},
		{&audit.Forwarded{}, "forwarded          record "},
	} {
		r := audit.Record{ID: "01927f3c-8a6e-7c3b-9d52-1f0e6b7a8c9d", Type: c.event.EventType(), Event: c.event}
		if got := strings.Join(strings.Fields(r.Line()), " "); !strings.Contains(got+" ", strings.Join(strings.Fields(c.want), " ")) || strings.Contains(got, " ,") || strings.Contains(got, "by :") {
			t.Errorf("%T: %q, want %q", c.event, got, c.want)
		}
	}
}
