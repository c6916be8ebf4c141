package mcpd_test

import (
	"bytes"
	"encoding/json"
	"testing"

	"github.com/deputymesh/deputy/proxy/mcpd"
)

// A message that is accepted has the same method for a lenient parser, which takes the last of duplicates and any case.
func FuzzMessage(f *testing.F) {
	for _, s := range []string{
		begin, `{"jsonrpc":"2.0","id":"a","method":"tools/call","params":{"name":"x","arguments":{"a":[1,2.5e3,null,true]}}}`, `{"jsonrpc":"2.0","id":1,"result":{}}`,
		`{"jsonrpc":"2.0","id":1,"error":{"code":1,"message":"x"}}`, `[{"jsonrpc":"2.0"}]`, `{"jsonrpc":"2.0","method":"a","Method":"b"}`, "\ufeff{}", `{"jsonrpc":"2.0","\u006dethod":"a","id":null}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		method, request, err := mcpd.ParseForTest(data)
		if err != nil {
			return
		}
		var lenient struct {
			Method string
			ID     json.RawMessage
			Params json.RawMessage
		}
		if err := json.Unmarshal(data, &lenient); err != nil || lenient.Method != method || request && len(lenient.ID) == 0 {
			t.Errorf("%q: ours %q, theirs %q %v", data, method, lenient.Method, err)
		}
		if p := bytes.TrimSpace(lenient.Params); len(p) > 0 && p[0] != '{' {
			t.Errorf("%q: params %q", data, p)
		}
	})
}
