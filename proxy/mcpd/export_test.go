package mcpd

import (
	"bytes"
	"strconv"
	"time"

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

// SessionsForTest are sessions of one chain.
type SessionsForTest struct{ s *sessions }

// NewSessionsForTest makes them with a clock.
func NewSessionsForTest(now func() time.Time) SessionsForTest {
	return SessionsForTest{newSessions(now)}
}

// Begin begins one.
func (s SessionsForTest) Begin() string { return s.s.begin("up", [32]byte{}, nil, "2025-11-25").id }

// Find begins a use of one, if it is there.
func (s SessionsForTest) Find(id string) bool { return s.s.find(id, [32]byte{}) != nil }

// Over says whether one would be ended for not being used.
func (s SessionsForTest) Over() bool { return len(s.s.over(false)) > 0 }

// UnansweredForTest says how many of n requests that get no answer a session takes.
func UnansweredForTest(n int) (taken int) {
	s := newSessions(time.Now).begin("up", [32]byte{}, nil, "2025-11-25")
	for i := range n {
		if s.open("n"+strconv.Itoa(i)) == "" {
			taken++
		}
	}
	return taken
}
