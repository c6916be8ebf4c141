package postgres

import (
	"fmt"
	"strings"
)

// ownParameter begins the names of parameters that this proxy itself tells agents.
const ownParameter = "deputy."

// checkSettings refuses a target that says at the start that SQL means something else there than what is decided here.
func checkSettings(params map[string]string) error {
	for _, name := range []string{"standard_conforming_strings", "client_encoding"} {
		if v, said := params[name]; said && !pinnedSame(name, v) {
			return fmt.Errorf("the server says that %s is %q, although it was told %q", name, clip(v, 64), pinned[name])
		}
	}
	for name := range params {
		if strings.HasPrefix(strings.ToLower(name), ownParameter) {
			return fmt.Errorf("the server says something about %q, which only this proxy may", clip(name, 64))
		}
	}
	return nil
}

// parameter passes ParameterStatus on. What carries the meaning of SQL doesn't change within a session: if the target says that
// it did, by code that ran there, a pooler or a lie, what the parser takes for granted doesn't hold any more.
func (s *session) parameter(body []byte) error {
	p := parts{b: body}
	name, value := p.cstring(), p.cstring()
	if !p.done() {
		return protocolError("the target reported a setting that can't be read")
	}
	key := strings.ToLower(name)
	if strings.HasPrefix(key, ownParameter) {
		return protocolError("the target says something about %q, which only this proxy may", clip(name, 64))
	}
	// application_name means nothing for a decision, and triggers set it for logs of their own.
	if isPinned(key) && key != "application_name" {
		if old, said := s.up.params[name]; said && value != old || !said && !pinnedSame(key, value) {
			return &fault{
				code: codePrivilege, fatal: true, message: fmt.Sprintf("%q was changed at the target, and it is pinned at this proxy", clip(name, 64)),
				hint: "Connect again. If it stays so, something at the target sets it behind this proxy's back.",
			}
		}
	}
	s.out.frame('S', body)
	return nil
}
