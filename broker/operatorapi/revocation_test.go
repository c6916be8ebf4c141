package operatorapi

import (
	"testing"
	"time"

	"github.com/deputymesh/deputy/internal/feed"
	"github.com/deputymesh/deputy/internal/strictjson"
)

func TestRevocationsOutliveWhatTheyCover(t *testing.T) {
	const session = 12 * time.Hour
	for kind, tc := range map[feed.Kind]struct {
		asked string
		want  time.Duration
	}{
		feed.User:    {"1s", shortestLife},
		feed.Target:  {"1h", time.Hour},
		feed.Agent:   {"1h", session + shortestLife},
		feed.Grant:   {"", session + shortestLife},
		feed.Session: {"48h", 48 * time.Hour},
	} {
		if got, err := (revocationRequest{For: tc.asked}).life(kind, session); err != nil || got != tc.want {
			t.Errorf("%s for %q: %s %v, want %s", kind, tc.asked, got, err, tc.want)
		}
	}
	for _, bad := range []string{"-1h", "0", "9999999h", "soon"} {
		if got, err := (revocationRequest{For: bad}).life(feed.User, session); err == nil {
			t.Errorf("%q became %s", bad, got)
		}
	}
}

func FuzzRevocationRequest(f *testing.F) {
	f.Add([]byte(`{"kind":"user","iss":"https://a","sub":"b","reason":"c","for":"1h"}`))
	f.Add([]byte(`{"kind":"edge","value":"a#b","delegate":"spiffe://t/agent/a/0123456789abcdef0123456789abcdef"}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		var q revocationRequest
		if strictjson.Unmarshal(body, &q) != nil {
			return
		}
		m, err := q.match()
		if err == nil && (m.Check() != nil || m.Value == "") {
			t.Errorf("%s became %+v", body, m)
		}
	})
}
