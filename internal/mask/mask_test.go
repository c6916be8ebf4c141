package mask_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/deputymesh/deputy/internal/mask"
)

func keyed(t testing.TB) *mask.Keyed {
	t.Helper()
	k, err := mask.New(bytes.Repeat([]byte{7}, mask.MinKey))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

const (
	text, varchar, bpchar, name, unknown = 25, 1043, 1042, 19, 705
	json, jsonb                          = 114, 3802
)

func TestApplyKeepsOnlyWhatTheMaskerSays(t *testing.T) {
	k := keyed(t)
	tests := []struct {
		masker mask.Masker
		oid    uint32
		in     string
		want   string
	}{
		{mask.Email, text, "alice@example.com", "a***@example.com"},
		{mask.Email, varchar, "Al.Ice+tag@sub.example.co.uk", "A***@sub.example.co.uk"},
		{mask.Email, bpchar, "bob@example.org      ", "b***@example.org"},
		{mask.Email, text, "a@example.com", "***@example.com"},
		{mask.Email, text, "é@example.com", "***@example.com"},
		{mask.Email, text, "élan@example.com", "é***@example.com"},
		{mask.Email, text, `"a@b"@example.com`, "***@example.com"},
		{mask.Email, text, "+x@example.com", "***@example.com"},
		{mask.Email, text, "not an address", "****"},
		{mask.Email, text, "mail bob@example.com for it", "****"},
		{mask.Email, text, "<bob@example.com>", "****"},
		{mask.Email, text, "bob@example.com,eve@example.com", "****"},
		{mask.Email, text, "bob@", "****"},
		{mask.Email, text, "@example.com", "****"},
		{mask.Email, text, "bob@se cret", "****"},
		{mask.Email, text, "bob@secret/path", "****"},
		{mask.Email, text, "bob@a..b", "****"},
		{mask.Email, text, "bob@" + strings.Repeat("a.", 200) + "b", "****"},
		{mask.Email, text, "\xff\xfe@example.com", "***@example.com"},
		{mask.Email, text, "", "****"},
		{mask.Redact, text, "secret", "****"},
		{mask.Redact, name, "", "****"},
		{mask.Redact, unknown, "x", "****"},
		{mask.Last4, text, "4111111111111234", "****1234"},
		{mask.Last4, bpchar, "4111111111111234    ", "****1234"},
		{mask.Last4, text, "12345678", "****5678"},
		{mask.Last4, text, "1234567", "****"},
		{mask.Last4, text, "ééééüüüü", "****üüüü"},
		{mask.Last4, text, "1234567\xff", "****"},
		{mask.Redact, json, `{"a":1}`, `"****"`},
		{mask.Email, json, `"alice@example.com"`, `"****"`},
		{mask.Last4, jsonb, `"12345678"`, `"****"`},
	}
	for _, tt := range tests {
		for _, format := range []mask.Format{mask.Text, mask.Binary} {
			in, want := tt.in, tt.want
			if tt.oid == jsonb && format == mask.Binary {
				in, want = "\x01"+in, "\x01"+want
			}
			got, null, err := k.Apply(tt.masker, []byte(in), format, tt.oid)
			if err != nil || null || string(got) != want {
				t.Errorf("Apply(%s, %q, %d, %d) = %q, %t, %v; want %q", tt.masker, in, format, tt.oid, got, null, err, want)
			}
		}
	}
}

func TestApplyGivesNullForWhatItCannotTreat(t *testing.T) {
	k := keyed(t)
	for _, m := range []mask.Masker{mask.Email, mask.Redact, mask.Last4, mask.Hash, mask.Null} {
		// int4, int8, numeric, bool, bytea, uuid, text[], record, xml, "char", citext of some server
		for _, oid := range []uint32{23, 20, 1700, 16, 17, 2950, 1009, 2249, 142, 18, 16385, 0} {
			for _, format := range []mask.Format{mask.Text, mask.Binary} {
				if out, null, err := k.Apply(m, []byte("12345678"), format, oid); out != nil || !null || err != nil {
					t.Errorf("Apply(%s, type %d, format %d) = %q, %t, %v; want NULL", m, oid, format, out, null, err)
				}
			}
		}
		if out, null, err := k.Apply(m, nil, mask.Text, text); out != nil || !null || err != nil {
			t.Errorf("Apply(%s, NULL) = %q, %t, %v; want NULL", m, out, null, err)
		}
	}
	if out, null, err := k.Apply(mask.Null, []byte("x"), mask.Text, text); out != nil || !null || err != nil {
		t.Errorf("Apply(null) = %q, %t, %v; want NULL", out, null, err)
	}
}

func TestApplyRefusesWhatItDoesNotKnow(t *testing.T) {
	k := keyed(t)
	if out, null, err := k.Apply("rot13", []byte("x"), mask.Text, text); err == nil || !null || out != nil {
		t.Errorf("an unknown masker gave %q, %t, %v", out, null, err)
	}
	if out, null, err := k.Apply(mask.Redact, []byte("x"), 2, text); err == nil || !null || out != nil {
		t.Errorf("an unknown format gave %q, %t, %v", out, null, err)
	}
	if out, null, err := k.Apply(mask.Redact, []byte("\x02{}"), mask.Binary, jsonb); err == nil || !null || out != nil {
		t.Errorf("an unknown jsonb version gave %q, %t, %v", out, null, err)
	}
	if _, err := mask.Parse("Email"); err == nil {
		t.Error("Parse took a masker in another case")
	}
	if _, err := mask.New(make([]byte, mask.MinKey-1)); err == nil {
		t.Error("New took a short key")
	}
}

func TestHashIsKeyedAndStable(t *testing.T) {
	k := keyed(t)
	hash := func(k *mask.Keyed, v string, f mask.Format, oid uint32) string {
		out, null, err := k.Apply(mask.Hash, []byte(v), f, oid)
		if err != nil || null {
			t.Fatalf("hashing %q: %t, %v", v, null, err)
		}
		return string(out)
	}
	a := hash(k, "alice", mask.Text, text)
	if len(a) != 16 || strings.Trim(a, "0123456789abcdef") != "" {
		t.Errorf("hash = %q, want 16 hex digits", a)
	}
	if b := hash(k, "alice", mask.Binary, varchar); a != b {
		t.Errorf("equal values differ by format: %s, %s", a, b)
	}
	if b := hash(k, "bob", mask.Text, text); a == b {
		t.Error("different values have one hash")
	}
	other := mask.Random()
	b := hash(other, "alice", mask.Text, text)
	if a == b || b != hash(other, "alice", mask.Text, text) {
		t.Error("the hash isn't one of the value and the key")
	}
	if c := hash(mask.Random(), "alice", mask.Text, text); b == c {
		t.Error("two random keys are one")
	}
	if x, y := hash(k, `{"a": 1}`, mask.Text, jsonb), hash(k, "\x01"+`{"a": 1}`, mask.Binary, jsonb); y != "\x01"+x {
		t.Errorf("jsonb differs by format: %q, %q", x, y)
	}
}

func TestKeyIsCopied(t *testing.T) {
	key := bytes.Repeat([]byte{7}, mask.MinKey)
	k, err := mask.New(key)
	if err != nil {
		t.Fatal(err)
	}
	before, _, _ := k.Apply(mask.Hash, []byte("x"), mask.Text, text)
	clear(key)
	after, _, _ := k.Apply(mask.Hash, []byte("x"), mask.Text, text)
	if !bytes.Equal(before, after) {
		t.Error("wiping the caller's key changed the hash")
	}
}

func TestScrubShowsNothingOfTheServer(t *testing.T) {
	for state, want := range map[string]string{
		"23505": "a unique constraint is violated",
		"23P01": "a constraint is violated",
		"22P02": "a value is malformed for its type",
		"P0001": "a function raised an error",
	} {
		if got := mask.Scrub(state); !strings.HasPrefix(got, want) || !strings.Contains(got, "withheld") {
			t.Errorf("Scrub(%q) = %q, want %q", state, got, want)
		}
	}
	for _, state := range []string{"", "x", "alice@example.com", "ZZ999"} {
		if got := mask.Scrub(state); got != mask.Withheld {
			t.Errorf("Scrub(%q) = %q, want %q", state, got, mask.Withheld)
		}
	}
}

// FuzzApply holds the invariant: what comes out shows no more of what went in than the masker keeps.
func FuzzApply(f *testing.F) {
	f.Add("alice@example.com", int16(0), uint32(text))
	f.Add("4111111111111234", int16(1), uint32(varchar))
	f.Add("\x01{}", int16(1), uint32(jsonb))
	f.Add("a b@c", int16(0), uint32(bpchar))
	k := keyed(f)
	f.Fuzz(func(t *testing.T, in string, format int16, oid uint32) {
		for _, m := range []mask.Masker{mask.Email, mask.Redact, mask.Last4, mask.Hash, mask.Null} {
			out, null, err := k.Apply(m, []byte(in), mask.Format(format), oid)
			if (err != nil || null) && out != nil {
				t.Fatalf("%s gave bytes with null or an error", m)
			}
			if err != nil || null {
				continue
			}
			shown := strings.Trim(string(out), "*\"\x01")
			switch m {
			case mask.Email:
				first, domain, _ := strings.Cut(shown, "***@")
				if len([]rune(first)) > 1 && domain != "" || !strings.HasSuffix(strings.TrimRight(in, " "), domain) {
					t.Fatalf("email of %q shows %q", in, out)
				}
			case mask.Last4:
				if n := len([]rune(shown)); n > 4 || n > 0 && len([]rune(in)) < 8 {
					t.Fatalf("last4 of %q shows %q", in, out)
				}
			case mask.Redact:
				if shown != "" {
					t.Fatalf("redact of %q shows %q", in, out)
				}
			case mask.Hash:
				if len(shown) != 16 {
					t.Fatalf("hash of %q is %q", in, out)
				}
			case mask.Null:
				t.Fatalf("null of %q shows %q", in, out)
			}
		}
	})
}
