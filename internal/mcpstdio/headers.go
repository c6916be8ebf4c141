package mcpstdio

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strings"
)

const (
	versionMeta = "io.modelcontextprotocol/protocolVersion"

	versionHeader = "Mcp-Protocol-Version"
	sessionHeader = "Mcp-Session-Id"
)

// versionOf is the version that a message of the stateless protocol names; "" for any other.
func versionOf(params json.RawMessage) string {
	var p struct {
		Meta map[string]json.RawMessage `json:"_meta"`
	}
	var version string
	if json.Unmarshal(params, &p) != nil || json.Unmarshal(p.Meta[versionMeta], &version) != nil {
		return ""
	}
	return version
}

// describe sets the headers that repeat the message (SEP-2243).
func (c *Client) describe(h http.Header, m message) {
	if m.Method == "" {
		return
	}
	h.Set("Mcp-Method", m.Method)
	var p struct {
		Name, URI string
		Arguments map[string]json.RawMessage
	}
	if json.Unmarshal(m.Params, &p) != nil {
		return
	}
	switch m.Method {
	case "tools/call":
		h.Set("Mcp-Name", spell(p.Name))
		c.mu.Lock()
		defer c.mu.Unlock()
		for argument, name := range c.params[p.Name] {
			if value, there := scalar(p.Arguments[argument]); there {
				h.Set("Mcp-Param-"+name, spell(value))
			}
		}
	case "prompts/get":
		h.Set("Mcp-Name", spell(p.Name))
	case "resources/read":
		h.Set("Mcp-Name", spell(p.URI))
	}
}

// learn notes the session's version, and which arguments of tools stand in headers.
func (c *Client) learn(m message, text []byte) {
	var a struct {
		Result struct {
			ProtocolVersion string
			Tools           []struct {
				Name        string
				InputSchema struct {
					Properties map[string]json.RawMessage
				}
			}
		}
	}
	if json.Unmarshal(text, &a) != nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch m.Method {
	case "initialize":
		c.version = a.Result.ProtocolVersion
	case "tools/list":
		for _, t := range a.Result.Tools {
			delete(c.params, t.Name)
			for argument, schema := range t.InputSchema.Properties {
				var s struct {
					Header string `json:"x-mcp-header"`
				}
				if json.Unmarshal(schema, &s) != nil || !isToken(s.Header) || len(c.params) >= maxTools || len(c.params[t.Name]) >= maxParams || len(t.Name)+len(argument) > maxNames {
					continue // without its header, the server refuses the call
				}
				if c.params[t.Name] == nil {
					c.params[t.Name] = map[string]string{}
				}
				c.params[t.Name][argument] = s.Header
			}
		}
	}
}

// What a server makes the client keep: of so many tools so many arguments each, with names of so many bytes together.
const (
	maxTools  = 4096
	maxParams = 64
	maxNames  = 256
)

func isToken(s string) bool {
	return s != "" && len(s) <= 64 && strings.Trim(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_") == ""
}

// scalar is an argument as it stands in a header.
func scalar(raw json.RawMessage) (string, bool) {
	switch {
	case len(raw) == 0 || raw[0] == '{' || raw[0] == '[' || string(raw) == "null":
		return "", false
	case raw[0] == '"':
		var s string
		err := json.Unmarshal(raw, &s)
		return s, err == nil
	}
	return string(raw), true
}

// spell writes a value as a header can hold it.
func spell(s string) string {
	plain := s == strings.TrimSpace(s) && !strings.HasPrefix(s, "=?base64?")
	for _, c := range []byte(s) {
		plain = plain && c >= 0x20 && c < 0x7f
	}
	if plain {
		return s
	}
	return "=?base64?" + base64.StdEncoding.EncodeToString([]byte(s)) + "?="
}
