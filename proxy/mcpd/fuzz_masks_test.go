package mcpd_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/deputymesh/deputy/policy"
	"github.com/deputymesh/deputy/proxy/mcpd"
)

// Whatever a server answers, a masked result shows no member that is masked, wherever it stands, and no text that isn't JSON.
func FuzzMaskedResult(f *testing.F) {
	for _, s := range []string{
		`{"content":[{"type":"text","text":"{\"e\":\"s3cr3t\"}"}],"structuredContent":{"e":"s3cr3t","r":"[{\"e\":1}]"}}`, `{"content":[{"type":"text","text":"s3cr3t"},{"type":"image","data":"s3cr3t"}]}`,
		`{"contents":[{"uri":"a:b","text":"{}","_meta":{"e":1}},{"uri":"a:b","blob":"s3cr3t"}],"ttlMs":1}`, `{"messages":[{"role":"user","content":{"type":"resource","resource":{"uri":"a:b","text":"[]"}}}]}`,
		`{"isError":true,"more":"s3cr3t"}`, `{"resultType":"complete","content":[]}`,
	} {
		for method := range 3 {
			f.Add(method, s)
		}
	}
	rules, err := policy.ParseMasks("$..e=redact")
	if err != nil {
		f.Fatal(err)
	}
	methods := []string{"tools/call", "resources/read", "prompts/get"}
	f.Fuzz(func(t *testing.T, method int, result string) {
		out, err := mcpd.MaskForTest(methods[uint(method)%3], `{"jsonrpc":"2.0","id":1,"result":`+result+`}`, rules)
		if err != nil {
			return
		}
		var v map[string]any
		if err := json.Unmarshal(out, &v); err != nil {
			t.Fatalf("%q became %q: %v", result, out, err)
		}
		for name := range v {
			if !strings.Contains("content structuredContent isError resultType contents ttlMs cacheScope messages", name) {
				t.Fatalf("%q is kept: %s", name, out)
			}
		}
		shows(t, v)
	})
}

// shows looks for what is masked.
func shows(t *testing.T, v any) {
	t.Helper()
	switch v := v.(type) {
	case map[string]any:
		for name, in := range v {
			if strings.EqualFold(name, "e") && in != nil && in != "****" {
				t.Fatalf("%q shows %v", name, in)
			}
			if _, kept := v["blob"]; kept || v["data"] != nil && v["type"] == "image" {
				t.Fatalf("bytes are shown: %v", v)
			}
			shows(t, in)
		}
	case []any:
		for _, in := range v {
			shows(t, in)
		}
	case string:
		var in any
		if json.Unmarshal([]byte(v), &in) == nil {
			shows(t, in)
		}
	}
}
