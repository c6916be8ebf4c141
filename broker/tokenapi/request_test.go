package tokenapi

import (
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/internal/target"
)

// FuzzReadExchange: whatever comes, it is a request about a configured target with one subject, or a refusal
// whose text is fit for RFC 6749.
func FuzzReadExchange(f *testing.F) {
	td := spiffeid.RequireTrustDomainFromString("corp.example")
	orders, err := target.ParseName("orders-db")
	if err != nil {
		f.Fatal(err)
	}
	peer, err := actor.NewAgentID(td, "planner", actor.NewHexID())
	if err != nil {
		f.Fatal(err)
	}
	a := &API{cfg: Config{TrustDomain: td, Targets: map[target.Name]Target{orders: {}}}}
	good := "grant_type=" + grantTypeExchange + "&subject_token=a.b.c&subject_token_type=" + typeGrants + "&audience=orders-db"
	f.Add(good)
	f.Add(good + "&scope=postgres:select&authorization_details=%5B%5D")
	f.Add(good + "&audience=crm&actor_token=x")
	f.Add("%zz;")
	f.Fuzz(func(t *testing.T, body string) {
		r := httptest.NewRequest("POST", "/token", strings.NewReader(body))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		req, err := a.readExchange(httptest.NewRecorder(), r, peer)
		if err != nil {
			ref := classify(err)
			if ref.status < 400 || ref.code == "" || ref.class == "" {
				t.Errorf("refusal %+v", ref)
			}
			w := httptest.NewRecorder()
			ref.write(w, "")
			for _, c := range describe(ref.reason) {
				if c < 0x20 || c > 0x7e || c == '"' || c == '\\' {
					t.Errorf("error_description holds %q", c)
				}
			}
			return
		}
		if req.target != orders || req.subject == "" || len(req.purpose) > maxPurpose {
			t.Errorf("request %+v", req)
		}
	})
}

func TestDescribeKeepsTheRecord(t *testing.T) {
	got := describe(strings.Repeat("a\"\\\n", 500) + " (record: 0192)")
	if !strings.HasSuffix(got, "(record: 0192)") || len(got) > 700 || strings.ContainsAny(got, "\"\\\n") {
		t.Errorf("%q", got)
	}
}
