package mcpd_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/deputymesh/deputy/proxy/mcpd"
)

// What could be read in two ways, or isn't known, never reaches the server.
func TestMessagesThatCanBeReadTwoWaysAreRefused(t *testing.T) {
	up := &seen{}
	r := newRig(t, up.ServeWith(era(true, true)))
	call := `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","arguments":{"text":"x"}}}`
	meta := `"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientInfo":{"name":"a","version":"1"},"io.modelcontextprotocol/clientCapabilities":{}}`
	modern := `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{` + meta + `,"name":"echo","arguments":{"text":"x"}}}`
	now := []string{"Mcp-Protocol-Version", "2026-07-28"}
	deep := strings.Repeat("[", 500) + strings.Repeat("]", 500)
	for name, c := range map[string]struct {
		body    string
		headers []string
		want    string
	}{
		"a batch":                 {"[" + call + "]", nil, "-32600"},
		"two messages":            {call + call, nil, "-32700"},
		"two lines":               {call + "\n" + call, nil, "-32700"},
		"nothing":                 {" ", nil, "-32700"},
		"method twice":            {strings.Replace(call, `"id"`, `"method":"ping","id"`, 1), nil, "-32600"},
		"method in another case":  {strings.Replace(call, `"id"`, `"Method":"ping","id"`, 1), nil, "-32600"},
		"Method alone":            {strings.Replace(call, `"method"`, `"Method"`, 1), nil, "-32600"},
		"name twice":              {strings.Replace(call, `"name":"echo"`, `"name":"echo","name":"wipe"`, 1), nil, "-32600"},
		"name by an escape":       {strings.Replace(call, `"name":"echo"`, `"name":"echo","n\u0061me":"wipe"`, 1), nil, "-32600"},
		"an argument twice":       {strings.Replace(call, `"text":"x"`, `"text":"x","text":"y"`, 1), nil, "-32600"},
		"no such member":          {strings.Replace(call, `"id"`, `"more":1,"id"`, 1), nil, "-32600"},
		"params in a list":        {`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":["echo"]}`, nil, "-32600"},
		"version 1":               {strings.Replace(call, "2.0", "1.0", 1), nil, "-32600"},
		"no id":                   {strings.Replace(call, `"id":1,`, "", 1), nil, "-32601"},
		"a null id":               {strings.Replace(call, `"id":1`, `"id":null`, 1), nil, "-32600"},
		"both":                    {strings.Replace(call, `"id"`, `"result":{},"id"`, 1), nil, "-32600"},
		"deep":                    {strings.Replace(call, `"x"`, deep, 1), nil, "-32600"},
		"an unknown method":       {`{"jsonrpc":"2.0","id":1,"method":"tasks/list"}`, nil, "-32601"},
		"a server's method":       {`{"jsonrpc":"2.0","id":1,"method":"sampling/createMessage","params":{}}`, nil, "-32601"},
		"an answer to nobody":     {`{"jsonrpc":"2.0","id":1,"result":{}}`, nil, "-32600"},
		"a path around":           {`{"jsonrpc":"2.0","id":1,"method":"resources/read","params":{"uri":"memo:///public/../secret/b"}}`, nil, "-32602"},
		"a file with one slash":   {`{"jsonrpc":"2.0","id":1,"method":"resources/read","params":{"uri":"file:/secret/b"}}`, nil, "-32602"},
		"a file without":          {`{"jsonrpc":"2.0","id":1,"method":"resources/read","params":{"uri":"file:secret/b"}}`, nil, "-32602"},
		"a file of this host":     {`{"jsonrpc":"2.0","id":1,"method":"resources/read","params":{"uri":"file://localhost/secret/b"}}`, nil, "-32602"},
		"a web page's own port":   {`{"jsonrpc":"2.0","id":1,"method":"resources/read","params":{"uri":"https://h.example:443/b"}}`, nil, "-32602"},
		"a port of an address":    {`{"jsonrpc":"2.0","id":1,"method":"resources/read","params":{"uri":"https://[fe80:0443::1]:443/b"}}`, nil, "-32602"},
		"a port with a zero":      {`{"jsonrpc":"2.0","id":1,"method":"resources/read","params":{"uri":"https://h.example:0443/b"}}`, nil, "-32602"},
		"a web page with a user":  {`{"jsonrpc":"2.0","id":1,"method":"resources/read","params":{"uri":"https://a@h.example/b"}}`, nil, "-32602"},
		"a host by an escape":     {`{"jsonrpc":"2.0","id":1,"method":"resources/read","params":{"uri":"https://h%C3%A4.example/b"}}`, nil, "-32602"},
		"a web page without //":   {`{"jsonrpc":"2.0","id":1,"method":"resources/subscribe","params":{"uri":"https:h.example/b"}}`, nil, "-32602"},
		"one of several":          {`{"jsonrpc":"2.0","id":1,"method":"subscriptions/listen","params":{"notifications":{"resourceSubscriptions":["file:///a","file:/secret/b"]}}}`, nil, "-32602"},
		"a template's":            {`{"jsonrpc":"2.0","id":1,"method":"completion/complete","params":{"ref":{"type":"ref/resource","uri":"file:/secret/{x}"},"argument":{"name":"x","value":""}}}`, nil, "-32602"},
		"an escaped path":         {`{"jsonrpc":"2.0","id":1,"method":"resources/read","params":{"uri":"memo:///%73ecret/b"}}`, nil, "-32602"},
		"another header":          {call, []string{"Mcp-Method", "ping"}, "-32020"},
		"another name":            {call, []string{"Mcp-Name", "wipe"}, "-32020"},
		"another name, encoded":   {call, []string{"Mcp-Name", "=?base64?d2lwZQ==?="}, "-32020"},
		"no method header":        {modern, append([]string{"Mcp-Name", "echo"}, now...), "-32020"},
		"no name header":          {modern, append([]string{"Mcp-Method", "tools/call"}, now...), "-32020"},
		"only the header is new":  {call, append([]string{"Mcp-Method", "tools/call", "Mcp-Name", "echo"}, now...), "-32602"},
		"a method that is gone":   {strings.Replace(strings.Replace(modern, "tools/call", "initialize", 1), `"name":"echo",`, "", 1), append([]string{"Mcp-Method", "initialize"}, now...), "-32601"},
		"only the message is new": {modern, []string{"Mcp-Method", "tools/call", "Mcp-Name", "echo"}, "-32020"},
		"another version":         {modern, []string{"Mcp-Method", "tools/call", "Mcp-Name", "echo", "Mcp-Protocol-Version", "2025-11-25"}, "-32020"},
		"a parameter of no one":   {modern, append([]string{"Mcp-Method", "tools/call", "Mcp-Name", "echo", "Mcp-Param-Text", "y"}, now...), "-32020"},
		"a header twice":          {call, []string{"Mcp-Name", "echo", "Mcp-Name", "wipe"}, "-32600"},
		"an unknown version":      {call, []string{"Mcp-Protocol-Version", "2031-01-01"}, "-32022"},
		"a page in a browser":     {call, []string{"Origin", "https://evil.example"}, "-32600"},
		"the page null":           {call, []string{"Origin", "null"}, "-32600"},
		"arguments by case":       {strings.Replace(call, "arguments", "Arguments", 1), nil, "-32602"},
		"arguments by a sign":     {strings.Replace(call, "arguments", "argument\u017f", 1), nil, "-32602"},
		"a name by case":          {strings.Replace(call, `"name"`, `"NAME"`, 1), nil, "-32602"},
		"subscriptions by case":   {`{"jsonrpc":"2.0","id":1,"method":"subscriptions/listen","params":{"Notifications":{"resourceSubscriptions":["memo:///secret/b"]}}}`, nil, "-32602"},
		"_meta by case":           {strings.Replace(modern, "_meta", "_Meta", 1), append([]string{"Mcp-Method", "tools/call", "Mcp-Name", "echo"}, now...), "-32602"},
		"a task":                  {strings.Replace(call, `"name"`, `"task":{"ttl":60000},"name"`, 1), nil, "-32602"},
		"an answer of no kind":    {strings.Replace(call, `"name"`, `"inputResponses":{"k":{"loot":1}},"name"`, 1), nil, "-32602"},
		"an answer by case":       {strings.Replace(call, `"name"`, `"inputResponses":{"k":{"roots":[],"Action":"accept"}},"name"`, 1), nil, "-32602"},
		"answers by case":         {strings.Replace(call, `"name"`, `"InputResponses":{},"name"`, 1), nil, "-32602"},
		"a byte order mark":       {"\ufeff" + call, nil, "-32700"},
		"a zero byte after it":    {call + "\x00", nil, "-32700"},
		"UTF-16":                  {"{\x00\"\x00j\x00", nil, "-32700"},
		"half a character":        {strings.Replace(call, `"x"`, `"\ud83d"`, 1), nil, "-32600"},
		"bytes of no character":   {strings.Replace(call, `"x"`, "\"\xff\"", 1), nil, "-32600"},
		"a zero in a name":        {strings.Replace(call, `"echo"`, `"echo\u0000wipe"`, 1), nil, "-32602"},
		"a comment":               {strings.Replace(call, `"x"`, `"x"/*y*/`, 1), nil, "-32700"},
		"an id with a fraction":   {strings.Replace(call, `"id":1`, `"id":1.0`, 1), nil, "-32600"},
		"a very large id":         {strings.Replace(call, `"id":1`, `"id":92233720368547758080`, 1), nil, "-32600"},
		"a long id":               {strings.Replace(call, `"id":1`, `"id":"`+strings.Repeat("1", 200)+`"`, 1), nil, "-32600"},
		"one level too many":      {strings.Replace(call, `"x"`, strings.Repeat("[", 14)+strings.Repeat("]", 14), 1), nil, "-32600"},
		"a number of no end":      {strings.Replace(call, `"x"`, "1e", 1), nil, "-32700"},
		"too long":                {strings.Replace(call, `"x"`, `"`+strings.Repeat("x", 4<<20)+`"`, 1), nil, "-32600"},
		"encoded":                 {call, []string{"Content-Encoding", "gzip"}, "-32600"},
	} {
		a, body := r.post(c.body, c.headers...)
		var e struct {
			Error struct {
				Code int
				Data struct{ Reason, Record string }
			}
		}
		if err := json.Unmarshal([]byte(body), &e); err != nil || fmt.Sprint(e.Error.Code) != c.want || e.Error.Data.Record != "rec-refused" || e.Error.Data.Reason == "" {
			t.Errorf("%s: %d %.300s", name, a.StatusCode, body)
		}
	}
	for name, path := range map[string]string{"another path": "/", "a query": mcpd.Path + "?a=1", "the server's own": "/up", "two slashes": "/" + mcpd.Path} {
		if a, body := r.send(r.client, http.MethodPost, path, call); a.StatusCode != 404 {
			t.Errorf("%s: %d %s", name, a.StatusCode, body)
		}
	}
	if up.mu.Lock(); len(up.bodies) > 0 {
		t.Errorf("the server got %q", up.bodies)
	}
	up.mu.Unlock()
	good := append([]string{"Mcp-Method", "tools/call", "Mcp-Name", "echo", "Mcp-Param-Text", "x"}, now...)
	if a, body := r.post(modern, good...); a.StatusCode != 200 || !strings.Contains(body, "echo: x") {
		t.Errorf("what is in order: %d %s", a.StatusCode, body)
	}
	if !up.got(modern) {
		t.Error("the message changed on its way")
	}
}
