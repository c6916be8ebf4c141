package strictjson_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/deputymesh/deputy/internal/strictjson"
	"github.com/google/go-cmp/cmp"
)

type inner struct {
	N int64 `json:"n"`
}

type name string

func (n *name) UnmarshalText(b []byte) error {
	if string(b) == "bad" {
		return errors.New("a bad name")
	}
	*n = name("<" + string(b) + ">")
	return nil
}

type object struct {
	Sub    string          `json:"sub"`
	Opt    string          `json:"opt,omitempty"`
	N      int             `json:"n"`
	U      uint8           `json:"u,omitzero"`
	B      bool            `json:"b,omitempty"`
	List   []string        `json:"list,omitempty"`
	Inner  *inner          `json:"inner,omitempty"`
	Raw    json.RawMessage `json:"raw,omitempty"`
	Name   name            `json:"name,omitempty"`
	Hidden string          `json:"-"`
}

func TestGoodInputHasOneReading(t *testing.T) {
	in := " {\t\"sub\" : \"\\u00fc\\ud83d\\ude00\\n\\/\\\"\", \"n\": -7, \"u\":255, \"b\":true,\r\n\"list\":[\"a\",\"\"]," +
		`"inner":{"n":9223372036854775807},"raw":{"x" : [1.5e3,null]},"name":"x"} `
	var got object
	if err := strictjson.Unmarshal([]byte(in), &got); err != nil {
		t.Fatal(err)
	}
	want := object{Sub: "ü😀\n/\"", N: -7, U: 255, B: true, List: []string{"a", ""}, Inner: &inner{math.MaxInt64},
		Raw: json.RawMessage(`{"x" : [1.5e3,null]}`), Name: "<x>"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestBadInputHasNone(t *testing.T) {
	deep := func(n int) string { return strings.Repeat(`[`, n) + strings.Repeat(`]`, n) }
	for _, c := range []struct {
		in   string
		want error
	}{
		{``, strictjson.ErrSyntax},
		{`{`, strictjson.ErrSyntax},
		{`{"sub"}`, strictjson.ErrSyntax},
		{`{"sub":}`, strictjson.ErrSyntax},
		{`{"sub":"a","n":1,}`, strictjson.ErrSyntax},
		{`{sub:"a","n":1}`, strictjson.ErrSyntax},
		{`{"sub":'a',"n":1}`, strictjson.ErrSyntax},
		{`{"sub":"a","n":01}`, strictjson.ErrSyntax},
		{`{"sub":"a","n":+1}`, strictjson.ErrSyntax},
		{`{"sub":"a","n":.5}`, strictjson.ErrSyntax},
		{`{"sub":"a","n":1.}`, strictjson.ErrSyntax},
		{`{"sub":"a","n":1e}`, strictjson.ErrSyntax},
		{`{"sub":"a","n":Infinity}`, strictjson.ErrSyntax},
		{`{"sub":"a","n":tru}`, strictjson.ErrSyntax},
		{`{"sub":"a` + "\n" + `","n":1}`, strictjson.ErrSyntax},
		{`{"sub":"a` + "\\\x00" + `","n":1}`, strictjson.ErrSyntax},
		{`{"sub":"\x41","n":1}`, strictjson.ErrSyntax},
		{`{"sub":"\u00g0","n":1}`, strictjson.ErrSyntax},
		{`{"sub":"\u00`, strictjson.ErrSyntax},
		{`{"sub":"\`, strictjson.ErrSyntax},
		{"\ufeff" + `{"sub":"a","n":1}`, strictjson.ErrSyntax},
		{"{\v\"sub\":\"a\",\"n\":1}", strictjson.ErrSyntax},
		{`{"sub":"` + "\xff" + `","n":1}`, strictjson.ErrUTF8},
		{`{"sub":"` + "\xed\xa0\x80" + `","n":1}`, strictjson.ErrUTF8},
		{`{"sub":"\ud800","n":1}`, strictjson.ErrUTF8},
		{`{"sub":"\udc00\ud800","n":1}`, strictjson.ErrUTF8},
		{`{"sub":"\ud800\u0041","n":1}`, strictjson.ErrUTF8},
		{`{"sub":"a","n":1}x`, strictjson.ErrTrailing},
		{`{"sub":"a","n":1}{}`, strictjson.ErrTrailing},
		{`{"sub":"a","n":1}` + "\x00", strictjson.ErrTrailing},
		{`{"sub":"a","n":1,"sub":"b"}`, strictjson.ErrDuplicate},
		{`{"sub":"a","n":1,"\u0073ub":"b"}`, strictjson.ErrDuplicate},
		{`{"sub":"a","n":1,"raw":{"x":1,"x":2}}`, strictjson.ErrDuplicate},
		{`{"sub":"a","n":1,"SUB":"b"}`, strictjson.ErrCase},
		{`{"sub":"a","n":1,"ſub":"b"}`, strictjson.ErrCase},
		{`{"Sub":"a","n":1}`, strictjson.ErrCase},
		{`{"sub":"a","n":1,"OPT":"b"}`, strictjson.ErrCase},
		{`{"sub":"a","n":1,"raw":{"k":1,"` + "\u212a" + `":2}}`, strictjson.ErrCase},
		{`{"sub":"a","n":1,"other":1}`, strictjson.ErrUnknown},
		{`{"sub":"a","n":1,"Hidden":"x"}`, strictjson.ErrUnknown},
		{`{"sub":"a","n":1,"":1}`, strictjson.ErrUnknown},
		{`{"sub":"a","n":1,"inner":{"n":1,"m":1}}`, strictjson.ErrUnknown},
		{`{"n":1}`, strictjson.ErrMissing},
		{`{"sub":"a","n":1,"inner":{}}`, strictjson.ErrMissing},
		{`[]`, strictjson.ErrType},
		{`null`, strictjson.ErrType},
		{`{"sub":null,"n":1}`, strictjson.ErrType},
		{`{"sub":1,"n":1}`, strictjson.ErrType},
		{`{"sub":"a","n":"1"}`, strictjson.ErrType},
		{`{"sub":"a","n":true}`, strictjson.ErrType},
		{`{"sub":"a","n":1,"b":1}`, strictjson.ErrType},
		{`{"sub":"a","n":1,"list":"a"}`, strictjson.ErrType},
		{`{"sub":"a","n":1,"list":null}`, strictjson.ErrType},
		{`{"sub":"a","n":1,"list":["a",1]}`, strictjson.ErrType},
		{`{"sub":"a","n":1,"inner":null}`, strictjson.ErrType},
		{`{"sub":"a","n":1,"name":1}`, strictjson.ErrType},
		{`{"sub":"a","n":1.0}`, strictjson.ErrRange},
		{`{"sub":"a","n":1e3}`, strictjson.ErrRange},
		{`{"sub":"a","n":-0}`, strictjson.ErrRange},
		{`{"sub":"a","n":9223372036854775808}`, strictjson.ErrRange},
		{`{"sub":"a","n":1,"u":256}`, strictjson.ErrRange},
		{`{"sub":"a","n":1,"u":-1}`, strictjson.ErrRange},
		{`{"sub":"a","n":1,"raw":` + deep(16) + `}`, strictjson.ErrDepth},
		{deep(100000), strictjson.ErrDepth},
	} {
		var got object
		err := strictjson.Unmarshal([]byte(c.in), &got)
		if !errors.Is(err, c.want) {
			t.Errorf("%.60q: %v, want %v", c.in, err, c.want)
		}
	}
	var got object
	if err := strictjson.Unmarshal([]byte(`{"sub":"a","n":1,"raw":`+deep(15)+`}`), &got); err != nil {
		t.Errorf("sixteen levels: %v", err)
	}
	if err := strictjson.Unmarshal([]byte(`{"sub":"a","n":1,"name":"bad"}`), &got); err == nil || !strings.Contains(err.Error(), "name: a bad name") {
		t.Errorf("a type's own refusal: %v", err)
	}
	if err := strictjson.Unmarshal([]byte(`{}`), object{}); err == nil {
		t.Error("decoded into a value")
	}
}

func TestMembersOfOthersAreFoundByExactName(t *testing.T) {
	in := []byte(`{"alg":"RS256","kid":1}`)
	if v, err := strictjson.StringMember(in, "alg"); err != nil || v != "RS256" {
		t.Errorf("alg %q, %v", v, err)
	}
	if _, err := strictjson.StringMember(in, "kid"); !errors.Is(err, strictjson.ErrType) {
		t.Errorf("kid: %v", err)
	}
	if _, err := strictjson.StringMember(in, "Alg"); !errors.Is(err, strictjson.ErrCase) {
		t.Errorf("Alg: %v", err)
	}
	if _, err := strictjson.StringMember(in, "typ"); !errors.Is(err, strictjson.ErrMissing) {
		t.Errorf("typ: %v", err)
	}
	if err := checkMembers(in, "Alg", "typ"); !errors.Is(err, strictjson.ErrCase) {
		t.Errorf("alg for Alg: %v", err)
	}
	if err := checkMembers(in, "alg", "typ"); err != nil {
		t.Error(err)
	}
	if !strictjson.HasMember(in, "kid") || strictjson.HasMember(in, "KID") || strictjson.HasMember([]byte(`[]`), "kid") {
		t.Error("HasMember finds the wrong members")
	}
	if err := strictjson.Check([]byte(`[1]`)); !errors.Is(err, strictjson.ErrType) {
		t.Errorf("array: %v", err)
	}
	if err := strictjson.Check([]byte(`{"x":[null,1.5]}`)); err != nil {
		t.Error(err)
	}
}

// time.Time and types with their own UnmarshalJSON would take null for "as it was", and a time in any zone.
func TestTimesAndOwnTypesHaveOneForm(t *testing.T) {
	type record struct {
		At    time.Time       `json:"at"`
		Until *time.Time      `json:"until,omitempty"`
		Own   json.RawMessage `json:"own,omitempty"`
		Name  own             `json:"name,omitempty"`
	}
	for in, want := range map[string]error{
		`{"at":"2026-11-25T18:05:21Z"}`:                                            nil,
		`{"at":"2026-11-25T18:05:21.123456789Z","until":"2026-11-25T18:05:21.1Z"}`: nil,
		`{"at":"2026-11-25T18:05:21.1234567890Z"}`:                                 strictjson.ErrType,
		`{"at":"2026-11-25T19:05:21+01:00"}`:                                       strictjson.ErrType,
		`{"at":"2026-11-25T18:05:21+00:00"}`:                                       strictjson.ErrType,
		`{"at":"2026-11-25 18:05:21Z"}`:                                            strictjson.ErrType,
		`{"at":"2026-11-25T18:05:61Z"}`:                                            strictjson.ErrType,
		`{"at":""}`:                                                                strictjson.ErrType,
		`{"at":1795176120}`:                                                        strictjson.ErrType,
		`{"at":null}`:                                                              strictjson.ErrType,
		`{"at":"2026-11-25T18:05:21Z","until":null}`:                               strictjson.ErrType,
		`{"at":"2026-11-25T18:05:21Z","name":null}`:                                strictjson.ErrType,
	} {
		var got record
		if err := strictjson.Unmarshal([]byte(in), &got); !errors.Is(err, want) || (err == nil) != (want == nil) {
			t.Errorf("%s: %v, want %v", in, err, want)
		}
	}
}

type own string

func (o *own) UnmarshalJSON(data []byte) error { return json.Unmarshal(data, (*string)(o)) }

func TestEveryByteStringHasOneBase64(t *testing.T) {
	for n := range 70 {
		in := []byte(strings.Repeat("\xfb", n))
		s := strictjson.EncodeBase64URL(in)
		if got, err := strictjson.DecodeBase64URL(s); err != nil || string(got) != string(in) {
			t.Errorf("%d bytes: %x, %v", n, got, err)
		}
	}
	for _, bad := range []string{"AA==", "A", "AB", "AAB", "AA\n", "A\rA", "AA ", "A+", "A/", "ü", "AA\x00"} {
		if got, err := strictjson.DecodeBase64URL(bad); !errors.Is(err, strictjson.ErrBase64) {
			t.Errorf("%q: %x, %v", bad, got, err)
		}
	}
}

// FuzzUnmarshal holds the decoder against encoding/json: what it accepts means
// the same there.
func FuzzUnmarshal(f *testing.F) {
	f.Add([]byte(`{"sub":"\u00fc","n":1,"raw":[{"a":null}],"list":["x"]}`))
	f.Add([]byte(`{"sub":"a","SUB":"b","n":1e2}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var got, want object
		if err := strictjson.Unmarshal(data, &got); err != nil {
			return
		}
		if err := json.Unmarshal(data, &want); err != nil {
			t.Fatalf("%q: accepted here, refused there: %v", data, err)
		}
		if string(compact(got.Raw)) != string(compact(want.Raw)) {
			t.Errorf("raw %q and %q", got.Raw, want.Raw)
		}
		got.Raw, want.Raw = nil, nil
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%q: %s", data, diff)
		}
		if err := strictjson.Check(data); err != nil {
			t.Errorf("%q: Unmarshal accepts, Check refuses: %v", data, err)
		}
	})
}

func compact(raw json.RawMessage) []byte {
	var v any
	if json.Unmarshal(raw, &v) != nil {
		return nil
	}
	return fmt.Append(nil, v)
}

func FuzzDecodeBase64URL(f *testing.F) {
	f.Add("AAEC")
	f.Fuzz(func(t *testing.T, s string) {
		b, err := strictjson.DecodeBase64URL(s)
		if err == nil && strictjson.EncodeBase64URL(b) != s {
			t.Errorf("%q decodes to %x, which encodes to %q", s, b, strictjson.EncodeBase64URL(b))
		}
	})
}

// Small objects and large ones are searched for equal names in two ways.
func TestNamesAreComparedInObjectsOfEverySize(t *testing.T) {
	for n := 1; n <= 40; n++ {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, `"m\u017f%d":%d,`, i, i) // ſ
		}
		members := b.String()
		if err := strictjson.Check([]byte("{" + members + `"last":0}`)); err != nil {
			t.Errorf("%d members and one: %v", n, err)
		}
		for i := range n {
			if err := strictjson.Check(fmt.Appendf(nil, `{%s"mſ%d":0}`, members, i)); !errors.Is(err, strictjson.ErrDuplicate) {
				t.Errorf("member %d of %d again: %v", i, n, err)
			}
			if err := strictjson.Check(fmt.Appendf(nil, `{%s"Ms%d":0}`, members, i)); !errors.Is(err, strictjson.ErrCase) {
				t.Errorf("member %d of %d in another case: %v", i, n, err)
			}
		}
	}
}

func checkMembers(data []byte, names ...string) error {
	o, err := strictjson.ParseObject(data)
	if err != nil {
		return err
	}
	return o.CheckMembers(names...)
}

// foreign refuses whatever it gets, in its own words.
type foreign struct{}

func (*foreign) UnmarshalJSON([]byte) error { return errors.New("not mine") }

func TestErrorsSayWhere(t *testing.T) {
	type inner struct {
		B []int     `json:"b,omitempty"`
		F []foreign `json:"f,omitempty"`
	}
	type outer struct {
		A []inner `json:"a,omitempty"`
		I *inner  `json:"i,omitempty"`
	}
	for in, want := range map[string]string{
		`{"a":[{},{"b":[1,2,"x"]}]}`: "wrong JSON type: string where a integer is needed in a[1].b[2]",
		`{"i":{"b":[1.5]}}`:          "number out of range or not an integer: 1.5 in i.b[0]",
		`{"i":{"c":1}}`:              `unknown member: "c" in i`,
		`{"a":[{"B":[]}]}`:           `member name differs only in case: "B" instead of "b" in a[0]`,
		`{"a":[{"f":[1]}]}`:          "a[0].f[0]: not mine",
		`{"z":1}`:                    `unknown member: "z"`,
	} {
		err := strictjson.Unmarshal([]byte(in), new(outer))
		if err == nil || err.Error() != want {
			t.Errorf("%s: got %v, want %s", in, err, want)
		}
	}
	var rows [][]int
	if err := strictjson.Unmarshal([]byte(`[[1],[2,true]]`), &rows); err == nil || !strings.HasSuffix(err.Error(), " in [1][1]") {
		t.Errorf("got %v", err)
	}
}
