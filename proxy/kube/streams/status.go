package streams

import (
	"encoding/base64"
	"encoding/json"
	"strconv"
	"sync"
)

// Exit is how a command ended, as the API server says.
type Exit struct {
	// Code is the command's; -1 where it couldn't be run, or where its end isn't known by a number.
	Code int
	// Message is the API server's.
	Message string
}

// status collects what comes on the error stream.
type status struct {
	mu   sync.Mutex
	text []byte
}

func (s *status) add(b []byte) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.text)+len(b) > maxStatus {
		return false
	}
	s.text = append(s.text, b...)
	return true
}

// exit reads it: a Status since version 4 of the protocol, before that a text, and nothing after a success.
func (s *status) exit() *Exit {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.text) == 0 {
		return nil
	}
	var said struct {
		Status  string `json:"status"`
		Message string `json:"message"`
		Reason  string `json:"reason"`
		Details struct {
			Causes []struct {
				Reason  string `json:"reason"`
				Message string `json:"message"`
			} `json:"causes"`
		} `json:"details"`
	}
	if json.Unmarshal(s.text, &said) != nil || said.Status == "" {
		return &Exit{Code: -1, Message: string(s.text)}
	}
	if said.Status == "Success" {
		return &Exit{}
	}
	e := &Exit{Code: -1, Message: said.Message}
	for _, c := range said.Details.Causes {
		if n, err := strconv.Atoi(c.Message); err == nil && said.Reason == "NonZeroExitCode" && c.Reason == "ExitCode" && n > 0 {
			e.Code = n
		}
	}
	return e
}

// failure is a Status that says why a command was cut off.
func failure(reason string) []byte {
	text, _ := json.Marshal(map[string]any{
		"kind": "Status", "apiVersion": "v1", "metadata": map[string]any{}, "status": "Failure", "reason": "InternalError", "code": 500, "message": reason,
	})
	return text
}

// size reads a terminal's new size.
func size(b []byte) (width, height uint32, ok bool) {
	var z struct{ Width, Height uint16 }
	if len(b) > 256 || json.Unmarshal(b, &z) != nil {
		return 0, 0, false
	}
	return uint32(z.Width), uint32(z.Height), true
}

func goodKey(values []string) bool {
	if len(values) != 1 {
		return false
	}
	raw, err := base64.StdEncoding.DecodeString(values[0])
	return err == nil && len(raw) == 16
}
