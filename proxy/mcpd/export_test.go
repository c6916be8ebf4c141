package mcpd

import "io"

// ParseForTest gives the method of a message that is accepted.
func ParseForTest(data []byte) (method string, request bool, err error) {
	m, err := parseMessage(data)
	return m.method, m.kind == isRequest, err
}

// EventsForTest gives the data of all events of a stream.
func EventsForTest(r io.Reader) ([]string, error) {
	s := newEvents(r, func() bool { return true })
	var out []string
	for {
		data, err := s.next()
		if err != nil {
			return out, err
		}
		if data != nil {
			out = append(out, string(data))
		}
	}
}
