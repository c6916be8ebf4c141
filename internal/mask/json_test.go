package mask_test

import (
	stdjson "encoding/json"
	"strings"
	"testing"

	"github.com/deputymesh/deputy/internal/mask"
	"github.com/deputymesh/deputy/policy"
)

func paths(t testing.TB, rules string) *mask.JSON {
	t.Helper()
	parsed, err := policy.ParseMasks(rules)
	if err != nil {
		t.Fatal(err)
	}
	return mask.NewJSON(parsed, keyed(t))
}

func TestPathsLeadToWhatIsMasked(t *testing.T) {
	m := paths(t, "$.email=email, $.items[*].iban=last4, $..pin=redact")
	out, err := m.Bytes([]byte(`{"email":"ada@example.com","items":[{"iban":"DE0012345678","x":{"PIN":1}}],"a":{"email":"b@example.com"}}`))
	if err != nil || string(out) != `{"email":"a***@example.com","items":[{"iban":"****5678","x":{"PIN":"****"}}],"a":{"email":"b@example.com"}}` {
		t.Errorf("%s %v", out, err)
	}
	if _, err := m.Bytes([]byte(`{"email":"ada@example.com"}`)); err != nil {
		t.Error(err)
	}
	counts := m.Counts()
	if len(counts) != 3 || counts[1].Column != "$.email" || counts[1].Values != 2 {
		t.Errorf("%+v", counts)
	}
}

func TestTextsWithinStringsAreMasked(t *testing.T) {
	deep := `{"email":"ada@example.com"}`
	for range 4 {
		quoted, err := stdjson.Marshal(deep)
		if err != nil {
			t.Fatal(err)
		}
		deep = `{"r":` + string(quoted) + `}`
	}
	for in, want := range map[string]string{
		`{"result":"{\"email\": \"ada@example.com\", \"x\":1}"}`:    `{"result":"{\"email\":\"a***@example.com\",\"x\":1}"}`,
		`{"result":" [{\"email\":\"ada@example.com\"}]"}`:           `{"result":"[{\"email\":\"ada@example.com\"}]"}`,
		`{"result":"{\"email\":\"ada@example.com\"} and more"}`:     `{"result":"****"}`,
		`{"result":"\ufeff{\"email\":\"ada@example.com\"}"}`:        `{"result":"****"}`,
		`{"result":"{\"email\":\"a@b.c\"}\n{\"email\":\"d@e.f\"}"}`: `{"result":"****"}`,
		`{"result":"plain","n":1}`:                                  `{"result":"plain","n":1}`,
	} {
		if out, err := paths(t, "$.email=email").Within().Bytes([]byte(in)); err != nil || string(out) != want {
			t.Errorf("%s: %s %v, want %s", in, out, err, want)
		}
	}
	if out, err := paths(t, "$.email=email").Within().Bytes([]byte(deep)); err != nil || strings.Contains(string(out), "ada") {
		t.Errorf("%s %v", out, err)
	}
}

// FuzzJSON holds the invariants: what comes out is one JSON text without the secret, or an error.
func FuzzJSON(f *testing.F) {
	for _, s := range []string{`{"e":"s3cr3t"}`, `[{"E":["s3cr3t"]},{"e":{"x":"s3cr3t"}}]`, `{"e":"s3cr3t"`, `{"e":1}{"e":2}`, `{"\u0065":"s3cr3t"}`, `""`, ` [[[]]] `} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		out, err := paths(t, "$..e=redact").Within().Bytes([]byte(text))
		if err != nil {
			return
		}
		if !stdjson.Valid(out) {
			t.Fatalf("%q became %q", text, out)
		}
		var v any
		if err := stdjson.Unmarshal(out, &v); err != nil {
			t.Fatal(err)
		}
		look(t, v)
	})
}

// look finds members that should be masked.
func look(t *testing.T, v any) {
	switch v := v.(type) {
	case map[string]any:
		for name, in := range v {
			if strings.EqualFold(name, "e") && in != nil && in != "****" {
				t.Fatalf("%q shows %v", name, in)
			}
			look(t, in)
		}
	case []any:
		for _, in := range v {
			look(t, in)
		}
	case string:
		var in any
		if stdjson.Unmarshal([]byte(v), &in) == nil {
			look(t, in)
		}
	}
}
