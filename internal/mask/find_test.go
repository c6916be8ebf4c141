package mask_test

import (
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/deputymesh/deputy/internal/mask"
)

func finder(t testing.TB, rules ...mask.Finding) *mask.Finder {
	t.Helper()
	return keyed(t).Finder(rules)
}

func all(m mask.Masker) []mask.Finding {
	return []mask.Finding{{mask.DetectEmail, m}, {mask.DetectCard, m}, {mask.DetectIBAN, m}, {mask.DetectPhone, m}}
}

func TestDetectorsFindWhatTheySay(t *testing.T) {
	for _, c := range []struct {
		rules    []mask.Finding
		in, want string
	}{
		{[]mask.Finding{{mask.DetectEmail, mask.Email}}, "to ada@example.com, thanks", "to a***@example.com, thanks"},
		{[]mask.Finding{{mask.DetectEmail, mask.Email}}, "<ada@example.com>,(bob@b.example.org.)", "<a***@example.com>,(b***@b.example.org.)"},
		{[]mask.Finding{{mask.DetectEmail, mask.Redact}}, `"John Doe"@example.com, "x"`, `****, "x"`},
		{[]mask.Finding{{mask.DetectEmail, mask.Redact}}, `"said" ada@example.com`, `"said" ****`},
		{[]mask.Finding{{mask.DetectEmail, mask.Redact}}, "bounces+ada=example.org@list.example.com", "****"},
		{[]mask.Finding{{mask.DetectEmail, mask.Redact}}, "mailto:ada%40example.com;ada&#64;example.com;ada&#X40;example.com", "mailto:****;****;****"},
		{[]mask.Finding{{mask.DetectEmail, mask.Redact}}, `{\"e\":\"ada\u0040example.com\"}`, `{\"e\":\"****\"}`},
		{[]mask.Finding{{mask.DetectEmail, mask.Redact}}, "élan@exämple.com ada@[10.0.0.1] ada@[IPv6:::1]", "**** **** ****"},
		{[]mask.Finding{{mask.DetectEmail, mask.Redact}}, "one@example.com.two@example.org", "****"},
		{[]mask.Finding{{mask.DetectEmail, mask.Redact}}, "a%40b.com@c.com", "****"},
		{[]mask.Finding{{mask.DetectEmail, mask.Redact}}, strings.Repeat("a", 300) + "@example.com", strings.Repeat("a", 44) + "****"},
		{[]mask.Finding{{mask.DetectEmail, mask.Redact}}, "root@localhost @here a@ react@18.2.0 ada@\nexample.com @example.com", "root@localhost @here a@ react@18.2.0 ada@\nexample.com @example.com"},
		{[]mask.Finding{{mask.DetectEmail, mask.Hash}}, "ada@example.com=ada@example.com", "****"},

		{[]mask.Finding{{mask.DetectCard, mask.Last4}}, "4111111111111111 4111-1111-1111-1111 378282246310005", "****1111 ****1111 ****0005"},
		{[]mask.Finding{{mask.DetectCard, mask.Last4}}, "card4111 1111 1111 1111.", "card****1111."},
		{[]mask.Finding{{mask.DetectCard, mask.Last4}}, "4111\u00a01111\u00a01111\u00a01111", "****1111"},
		{[]mask.Finding{{mask.DetectCard, mask.Last4}}, "12 4111 1111 1111 1111 35", "12 ****1111 35"},
		{[]mask.Finding{{mask.DetectCard, mask.Redact}}, "4111111111111112 41111111111111111111 1111111111111117 4111  1111 1111 1111 0.4111111111111111", "4111111111111112 41111111111111111111 1111111111111117 4111  1111 1111 1111 0.4111111111111111"},

		{[]mask.Finding{{mask.DetectIBAN, mask.Last4}}, "DE89 3704 0044 0532 0130 00, gb29nwbk60161331926819;NO9386011117947", "****3000, ****6819;****7947"},
		{[]mask.Finding{{mask.DetectIBAN, mask.Last4}}, "an IBAN: MT84 MALT 0110 0001 2345 MTLC AST0 01S and more", "an IBAN: ****001S and more"},
		{[]mask.Finding{{mask.DetectIBAN, mask.Redact}}, "DE88370400440532013000 XDE89370400440532013000 DE89370400440532013000X DE8937040044", "DE88370400440532013000 XDE89370400440532013000 DE89370400440532013000X DE8937040044"},

		{[]mask.Finding{{mask.DetectPhone, mask.Redact}}, "call +49 (0) 30 1234567, tel:+1-555-010-9999, ?p=%2B4930123456", "call ****, tel:****, ?p=****"},
		{[]mask.Finding{{mask.DetectPhone, mask.Redact}}, "1+2345678901 +0123456789 +1234567; 030 1234567 +1234567890123456", "1+2345678901 +0123456789 +1234567; 030 1234567 +1234567890123456"},

		// In a JSON text that stands in a string.
		{[]mask.Finding{{mask.DetectIBAN, mask.Last4}}, `"a\nDE89 3704 0044 0532 0130 00\tGB29NWBK60161331926819", "\u00A0DE89\u00a03704\u00a00044\u00A00532 0130 00"`, `"a\n****3000\t****6819", "\u00A0****3000"`},
		{[]mask.Finding{{mask.DetectCard, mask.Last4}}, `"\u00a04111 1111 1111 1111", "\u00204111111111111111"`, `"\u00a0****1111", "\u0020****1111"`},
		{[]mask.Finding{{mask.DetectPhone, mask.Redact}}, `"\r\n+4930123456\u0009+1-555-010-9999"`, `"\r\n****\u0009****"`},
		{[]mask.Finding{{mask.DetectIBAN, mask.Redact}}, `u00a0DE89370400440532013000 \u00gaDE89370400440532013000 \xDE89370400440532013000`, `u00a0DE89370400440532013000 \u00gaDE89370400440532013000 \xDE89370400440532013000`},

		// What overlaps is replaced as one.
		{[]mask.Finding{{mask.DetectEmail, mask.Email}, {mask.DetectPhone, mask.Last4}}, "+49301234567@example.com", "****"},
		{[]mask.Finding{{mask.DetectEmail, mask.Email}, {mask.DetectCard, mask.Redact}}, "x-4111111111111111@example.com", "****"},
		{all(mask.Redact), "nothing here, 12:30, 3.14159265358979, a@b", "nothing here, 12:30, 3.14159265358979, a@b"},
		{all(mask.Redact), "", ""},
	} {
		if got := finder(t, c.rules...).Text(c.in); got != c.want {
			t.Errorf("%v of %q:\n%q, want\n%q", c.rules, c.in, got, c.want)
		}
	}
}

func TestEqualNumbersHaveOneHash(t *testing.T) {
	f := finder(t, mask.Finding{Detector: mask.DetectIBAN, Masker: mask.Hash})
	got := f.Text("de89 3704 0044 0532 0130 00\nDE89370400440532013000")
	one, two, _ := strings.Cut(got, "\n")
	if one != two || len(one) != 16 || f.Count(0) != 2 {
		t.Errorf("%q, %d found", got, f.Count(0))
	}
}

func TestMaskersOfDetectorsAndTheirNames(t *testing.T) {
	for _, name := range []string{"email", "card", "iban", "phone"} {
		if d, err := mask.ParseDetector(name); err != nil || string(d) != name {
			t.Errorf("%s: %q %v", name, d, err)
		}
	}
	for _, name := range []string{"", "Email", "name", "ssn"} {
		if _, err := mask.ParseDetector(name); err == nil {
			t.Errorf("%q is a detector", name)
		}
	}
}

// pieces are what values are made of, so that random texts hold many, whole and broken.
var pieces = []string{
	"ada@example.com", "@", "%40", "&#64;", `\u0040`, `"a b"`, "example.com", ".", "4111 1111", "4111111111111111", " 1111-1111", "DE89 3704 0044 0532 0130 00", "DE89", "3704004405320130",
	"00", "+49 ", "(0)", "301234567", "%2B", "\n", " ", "-", "\u00a0", "é", "x", strings.Repeat("a", 200), "[10.0.0.1]", "7", "\xff", `\n`, `\u00a0`, "\"\\\n\"",
}

func someText(r *rand.Rand) string {
	var b strings.Builder
	for range 1 + r.IntN(30) {
		b.WriteString(pieces[r.IntN(len(pieces))])
	}
	return b.String()
}

func inPieces(f *mask.Finder, text string, size func() int) string {
	var out []byte
	for len(text) > 0 {
		n := min(max(size(), 1), len(text))
		out = f.Append(out, []byte(text[:n]))
		text = text[n:]
	}
	return string(f.Finish(out))
}

// However a text comes, what is found is the same.
func TestPiecesMakeNoDifference(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 800 {
		text := someText(r)
		rules := all([]mask.Masker{mask.Redact, mask.Last4, mask.Hash}[r.IntN(3)])
		f := finder(t, rules...)
		want := f.Text(text)
		for _, size := range []func() int{func() int { return 1 }, func() int { return 1 + r.IntN(40) }, func() int { return 1 + r.IntN(900) }} {
			if got := inPieces(f, text, size); got != want {
				t.Fatalf("in pieces %q\nas one    %q\nof        %q", got, want, text)
			}
		}
	}
}

// What is found stays found whatever stands around it.
func TestSurroundingsHideNothing(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	values := []string{"zoe.quinn@mail.example.net", "5555555555554444", "5555 5555 5555 4444", "FR14 2004 1010 0505 0001 3M02 606", "+33 1 99 88 77 66"}
	for range 800 {
		value := values[r.IntN(len(values))]
		text := someText(r) + "\n" + strings.Repeat("a", r.IntN(700)) + "(" + value + ")" + someText(r)
		if got := inPieces(finder(t, all(mask.Redact)...), text, func() int { return 1 + r.IntN(60) }); strings.Contains(got, value) {
			t.Fatalf("%q shows %q", got, value)
		}
	}
}

func TestFinderKeepsLittleBack(t *testing.T) {
	f := finder(t, all(mask.Redact)...)
	line := f.Append(nil, []byte("a line, ada@example.com\nand a beginning"))
	if !strings.HasPrefix(string(line), "a line, ****\n") {
		t.Errorf("a whole line gave %q", line)
	}
	kept := len("and a beginning")
	for range 1000 {
		piece := []byte(strings.Repeat("4111 1111 1111 1111 ", 50))
		out := f.Append(nil, piece)
		kept += len(piece) - len(out)
	}
	_ = f.Finish(nil)
	long := strings.Repeat("a", 1<<20)
	if out := f.Append(nil, []byte(long)); len(out) < len(long)-1024 {
		t.Errorf("%d bytes are kept back", len(long)-len(out))
	}
}

func FuzzFinder(f *testing.F) {
	for _, p := range pieces {
		f.Add(p+"ada@example.com "+p, 3)
	}
	k := keyed(f)
	f.Fuzz(func(t *testing.T, text string, size int) {
		finder := k.Finder(all(mask.Redact))
		want := finder.Text(text)
		if got := inPieces(finder, text, func() int { return size % 1024 }); got != want {
			t.Fatalf("in pieces %q, as one %q, of %q", got, want, text)
		}
	})
}

func BenchmarkFinder(b *testing.B) {
	for name, text := range map[string]string{
		"prose":  strings.Repeat("The order 4711 of Ines Albrecht was sent to Lisbon on 12 May, signed by a neighbour.\n", 400),
		"base64": strings.Repeat("Q2hhaW5zIG9mIHdobyBhY3RzIG9uIHdob3NlIGJlaGFsZg+/", 700),
		"emails": strings.Repeat(`"ada@example.com","bob@example.org",`, 1000),
	} {
		b.Run(name, func(b *testing.B) {
			f := keyed(b).Finder(all(mask.Redact))
			b.SetBytes(int64(len(text)))
			for b.Loop() {
				_ = f.Text(text)
			}
		})
	}
}
