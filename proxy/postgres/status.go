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

// parameter passes a ParameterStatus on. What carries the meaning of SQL doesn't change within a session: if the target says that
// it did, by a function, a pooler or a lie, what was decided isn't what will run.
func (s *session) parameter(body []byte) error {
	p := parts{b: body}
	name, value := p.cstring(), p.cstring()
	if !p.done() {
		return protocolError("the target sent a parameter that can't be read")
	}
	key := strings.ToLower(name)
	if strings.HasPrefix(key, ownParameter) {
		return protocolError("the target says something about %q, which only this proxy may", clip(name, 64))
	}
	if isPinned(key) && key != "application_name" { // which means nothing, and poolers change it
		before, said := s.up.params[name]
		if value != before && !(pinnedSame(key, value) && (!said || pinnedSame(key, before))) {
			return &fault{
				code: codeProtocol, fatal: true, message: fmt.Sprintf("the target changed %q to %q, which is pinned here", clip(name, 64), clip(value, 64)),
				hint: "Connect again. If it stays so, something at the target sets it behind this proxy's back.",
			}
		}
	}
	s.out.frame('S', body)
	return nil
}
