package policy_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/deputymesh/deputy/policy"
)

// Every value of a call's arguments stands under one name or pointer, and what is read back along it is that value: nothing looks like something else.
func FuzzArguments(f *testing.F) {
	for _, s := range []string{`{"a":{"b":["x",{"*":1},{"0":true}]},"/a/b":"y","a/b":null,"":{"":"z"},"~1":{"~":"w"}}`, `{"a":[[],{},[[]]]}`, `{"a":"b"}`, `{}`, `{"0":{"0":["0"]}}`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		flat, err := policy.Arguments([]byte(text))
		var in map[string]any
		if err != nil || json.Unmarshal([]byte(text), &in) != nil || len(in) == 0 {
			return
		}
		var got map[string]*string
		if err := json.Unmarshal([]byte(flat), &got); err != nil {
			t.Fatalf("%q: %q: %v", text, flat, err)
		}
		want := 0
		for _, v := range in {
			want += 1 + inside(v)
		}
		if len(got) != want {
			t.Fatalf("%q: %d of %d values in %q", text, len(got), want, flat)
		}
		for name, value := range got {
			v, ok := along(in, name)
			s, is := v.(string)
			if !ok || is != (value != nil && isString(v)) || is && s != *value {
				t.Fatalf("%q: %q leads to %v", text, name, v)
			}
		}
	})
}

func isString(v any) bool { _, is := v.(string); return is }

// inside counts what has nothing inside itself.
func inside(v any) (n int) {
	var parts []any
	switch v := v.(type) {
	case map[string]any:
		for _, p := range v {
			parts = append(parts, p)
		}
	case []any:
		parts = v
	}
	for _, p := range parts {
		if k := inside(p); k > 0 {
			n += k
		} else {
			n++
		}
	}
	return n
}

// along reads a value back.
func along(in map[string]any, name string) (any, bool) {
	if !strings.HasPrefix(name, "/") {
		v, ok := in[name]
		return v, ok
	}
	var v any = in
	for _, s := range strings.Split(name, "/")[1:] {
		switch at := v.(type) {
		case map[string]any:
			s = strings.TrimPrefix(s, "~3")
			for _, r := range [][2]string{{"~1", "/"}, {"~2", "*"}, {"~0", "~"}} {
				s = strings.ReplaceAll(s, r[0], r[1])
			}
			var ok bool
			if v, ok = at[s]; !ok {
				return nil, false
			}
		case []any:
			i := slices.Index([]string{"0", "1", "2", "3", "4", "5", "6", "7", "8", "9"}, s)
			if i < 0 && len(s) > 1 {
				_ = json.Unmarshal([]byte(s), &i)
			}
			if i < 0 || i >= len(at) {
				return nil, false
			}
			v = at[i]
		default:
			return nil, false
		}
	}
	return v, true
}
