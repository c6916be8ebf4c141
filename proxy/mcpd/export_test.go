package mcpd

import (
	"bytes"
	"io"

	"github.com/deputymesh/deputy/internal/mask"
	"github.com/deputymesh/deputy/policy"
)

// MaskForTest gives the result of a response with masks on.
func MaskForTest(method, response string, rules []policy.MaskRule) ([]byte, error) {
	m, err := parseMessage([]byte(response))
	if err != nil {
		return nil, err
	}
	keyed, err := mask.New(bytes.Repeat([]byte{7}, mask.MinKey))
	if err != nil {
		return nil, err
	}
	m, err = (&masks{json: mask.NewJSON(rules, keyed).Within()}).response(method, m)
	return m.result, err
}

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
