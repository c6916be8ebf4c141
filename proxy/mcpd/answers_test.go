package mcpd_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/proxy"
)

// What the agent answers of a server's questions in the stateless protocol is decided with the call: a question that it never got can't be answered.
func TestAnswersWithACallAreDecided(t *testing.T) {
	up := &seen{}
	r := newRig(t, up.ServeWith(&says{result: `"result":{"content":[]}`}))
	const call = `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","inputResponses":{"a":{"roots":[]},"b":@}}}`
	for answer, verb := range map[string]string{`{"action":"accept","content":{"sure":true}}`: "elicitation", `{"role":"assistant","model":"m","content":{"type":"text","text":"loot"}}`: "sampling"} {
		for _, may := range []bool{false, true} {
			r.Set(func() {
				r.Allow = func(cmd proxy.Command) bool {
					for _, op := range cmd.Ops {
						if a, _ := op.Action.(actor.MCPAction); a.Verb == verb {
							return may
						}
					}
					return true
				}
			})
			before := len(up.bodies)
			_, text := r.post(strings.Replace(call, "@", answer, 1))
			if got := len(up.bodies) - before; strings.Contains(text, "no policy permits") == may || (got == 1) != may {
				t.Errorf("%s, allowed: %t: %s", verb, may, text)
			}
			kind := "refused"
			if may {
				kind = "decided"
			}
			all := r.All(kind)
			var got []string
			for _, op := range all[len(all)-1].Cmd.Ops {
				got = append(got, op.Action.Name())
			}
			want := []string{"mcp:call", "mcp:roots", "mcp:" + verb}
			slices.Sort(got)
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Errorf("decided %v, want %v", got, want)
			}
		}
	}
}
