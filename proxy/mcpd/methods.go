package mcpd

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/policy"
	"github.com/deputymesh/deputy/proxy"
	"github.com/deputymesh/deputy/proxy/internal/hop"
)

// method says how what is asked by it is decided.
type method struct {
	verb  string
	kind  string // of the object; "" is the server
	field string // of params that names the object
	write bool
	// notice is a notification; it has no answer.
	notice bool
}

// fromClient are the methods that agents may use. All others are refused, whatever policy says.
var fromClient = map[string]method{
	"initialize":                       {verb: proxy.VerbConnect},
	"server/discover":                  {verb: proxy.VerbConnect},
	"ping":                             {verb: proxy.VerbConnect},
	"logging/setLevel":                 {verb: proxy.VerbConnect},
	"tools/list":                       {verb: "list"},
	"resources/list":                   {verb: "list"},
	"resources/templates/list":         {verb: "list"},
	"prompts/list":                     {verb: "list"},
	"tools/call":                       {verb: "call", kind: actor.MCPTool, field: "name", write: true},
	"resources/read":                   {verb: "read", kind: actor.MCPResource, field: "uri"},
	"resources/subscribe":              {verb: "subscribe", kind: actor.MCPResource, field: "uri"},
	"resources/unsubscribe":            {verb: "subscribe", kind: actor.MCPResource, field: "uri"},
	"subscriptions/listen":             {verb: "subscribe"},
	"prompts/get":                      {verb: "prompt", kind: actor.MCPPrompt, field: "name"},
	"completion/complete":              {verb: "complete"},
	"notifications/initialized":        {verb: proxy.VerbConnect, notice: true},
	"notifications/cancelled":          {verb: proxy.VerbConnect, notice: true},
	"notifications/progress":           {verb: proxy.VerbConnect, notice: true},
	"notifications/roots/list_changed": {verb: "roots", notice: true},
}

// fromServer are the requests that servers may make of agents.
var fromServer = map[string]method{
	"ping":                   {verb: proxy.VerbConnect},
	"sampling/createMessage": {verb: "sampling", write: true},
	"elicitation/create":     {verb: "elicitation", write: true},
	"roots/list":             {verb: "roots"},
}

// notices are the notifications of servers that agents get.
var notices = []string{
	"notifications/message", "notifications/progress", "notifications/cancelled", "notifications/resources/updated", "notifications/resources/list_changed",
	"notifications/tools/list_changed", "notifications/prompts/list_changed", "notifications/elicitation/complete", "notifications/subscriptions/acknowledged",
}

// named are the methods whose object stands in the header Mcp-Name, too.
var named = []string{"tools/call", "resources/read", "prompts/get"}

// inParams and inResults are the members that the protocol has in params, and those of results and of their content that are looked at here.
var (
	inParams = []string{
		"_meta", "name", "uri", "arguments", "argument", "context", "ref", "cursor", "level", "notifications", "protocolVersion", "capabilities", "clientInfo", "requestId", "reason",
		"progressToken", "progress", "total", "message", "inputResponses", "requestState", "task",
	}
	inResults = []string{
		"_meta", "tools", "resources", "resourceTemplates", "prompts", "content", "contents", "messages", "structuredContent", "isError", "nextCursor", "resultType", "inputRequests",
		"requestState", "cacheScope", "ttlMs", "protocolVersion", "task",
	}
	inContent = []string{"type", "text", "data", "blob", "resource", "uri", "mimeType", "role", "content"}
)

// op is one action on one object, both as capabilities and as policies name it.
func (e *Engine) op(verb, kind, name, arguments string, write bool) proxy.Op {
	t := e.hop.Name()
	r := policy.Service(t)
	switch kind {
	case actor.MCPTool:
		r = policy.Tool(t, name, arguments)
	case actor.MCPResource:
		r = policy.MCPResource(t, name)
	case actor.MCPPrompt:
		r = policy.Prompt(t, name, arguments)
	}
	return proxy.Op{Action: actor.MCPAction{Target: e.cfg.Target, Verb: verb, Kind: kind, Object: name}, Resource: r, Write: write}
}

// command is what a message asks for, as it is decided and recorded. known has the method.
func (e *Engine) command(m message, known method, text []byte, account string) (cmd proxy.Command, err error) {
	cmd = proxy.Command{Kind: m.method, Text: string(text), Scrubbed: m.method, Account: account, Check: demands(m.method)}
	if err = m.params.spelledAs(inParams); err != nil {
		return cmd, fmt.Errorf("params: %w", err)
	}
	if _, there := m.params["task"]; there {
		return cmd, errors.New("params: a call that goes on as a task, after its answer, can't be decided here")
	}
	answers, err := e.answers(m.params)
	if err == nil {
		err = e.object(m, known, &cmd)
	}
	cmd.Ops = append(cmd.Ops, answers...)
	return cmd, err
}

// object adds what is done to what to a command.
func (e *Engine) object(m message, known method, cmd *proxy.Command) (err error) {
	if m.method == "completion/complete" {
		if known.kind, known.field, m.params, err = reference(m.params); err != nil {
			return err
		}
	}
	if known.kind == "" {
		cmd.Ops = []proxy.Op{e.op(known.verb, "", "", "", known.write)}
		if m.method == "subscriptions/listen" {
			err = e.subscriptions(m.params, cmd)
		}
		return err
	}
	name, err := m.params.text(known.field)
	if err != nil {
		return fmt.Errorf("params: %w", err)
	}
	arguments := ""
	if _, there := m.params["arguments"]; there {
		if arguments, err = policy.Arguments(m.params["arguments"]); err != nil {
			return err
		}
	}
	cmd.Scrubbed = hop.Clip(hop.Printable(m.method+" "+name+argumentNames(arguments)), 2048)
	if known.kind == actor.MCPResource {
		if arguments, err = "", checkURI(name); err != nil {
			return err
		}
	}
	op := e.op(known.verb, known.kind, name, arguments, known.write)
	cmd.Ops = []proxy.Op{op}
	a, _ := op.Action.(actor.MCPAction)
	return a.CheckObject()
}

// answers are what a request of the stateless protocol, made again, answers of what the server asked before. Nothing says what that was but the kind
// of the answer.
func (e *Engine) answers(params object) ([]proxy.Op, error) {
	given, err := params.object("inputResponses")
	if err != nil {
		return nil, fmt.Errorf("params: %w", err)
	}
	asked := map[string]bool{}
	for _, raw := range given {
		in, err := parseObject(raw)
		if err == nil {
			err = in.spelledAs([]string{"action", "role", "roots"})
		}
		if err != nil {
			return nil, fmt.Errorf("params: inputResponses: %w", err)
		}
		known := false
		for member, name := range map[string]string{"action": "elicitation/create", "role": "sampling/createMessage", "roots": "roots/list"} {
			if _, there := in[member]; there {
				asked[name], known = true, true
			}
		}
		if !known {
			return nil, errors.New("params: inputResponses: one is no answer to sampling, elicitation or roots")
		}
	}
	var ops []proxy.Op
	for _, name := range slices.Sorted(maps.Keys(asked)) {
		known := fromServer[name]
		ops = append(ops, e.op(known.verb, "", "", "", known.write))
	}
	return ops, nil
}

// argumentNames is for the record, which keeps no values.
func argumentNames(arguments string) string {
	if arguments == "" {
		return ""
	}
	var in map[string]*string
	_ = json.Unmarshal([]byte(arguments), &in) // it is our own spelling
	var names []string
	for name := range in {
		if !strings.HasPrefix(name, "/") { // what is inside, as a rule
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return "(" + strings.Join(names, ", ") + ")"
}

// reference finds what a completion is for.
func reference(params object) (kind, field string, ref object, err error) {
	if ref, err = params.object("ref"); err != nil {
		return "", "", nil, err
	}
	t, err := ref.text("type")
	switch {
	case err != nil:
	case t == "ref/prompt":
		return actor.MCPPrompt, "name", object{"name": ref["name"]}, nil
	case t == "ref/resource":
		return actor.MCPResource, "uri", object{"uri": ref["uri"]}, nil
	default:
		err = errors.New("ref: the type is neither ref/prompt nor ref/resource")
	}
	return "", "", nil, err
}

// maxSubscriptions bounds the resources of one subscription.
const maxSubscriptions = 256

// subscriptions adds the resources that a stream of the stateless protocol is about.
func (e *Engine) subscriptions(params object, cmd *proxy.Command) error {
	about, err := params.object("notifications")
	if err != nil {
		return err
	}
	for name := range about {
		switch name {
		case "toolsListChanged", "promptsListChanged", "resourcesListChanged", "resourceSubscriptions":
		default:
			return fmt.Errorf("subscriptions to %.64q can't be decided here", name)
		}
	}
	raw, there := about["resourceSubscriptions"]
	if !there {
		return nil
	}
	var uris []string
	if err := json.Unmarshal(raw, &uris); err != nil || len(uris) > maxSubscriptions {
		return fmt.Errorf("resourceSubscriptions is no list of at most %d URIs", maxSubscriptions)
	}
	for _, uri := range uris {
		if err := checkURI(uri); err != nil {
			return err
		}
		cmd.Ops = append(cmd.Ops, e.op("subscribe", actor.MCPResource, uri, "", false))
	}
	return nil
}
