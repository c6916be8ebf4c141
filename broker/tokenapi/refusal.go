package tokenapi

import (
	"encoding/json"
	"errors"
	"net/http"
	"strings"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/broker/session"
)

// The error codes of RFC 6749, 8693, 8707 and 9396 that are used.
const (
	codeRequest     = "invalid_request"
	codeClient      = "invalid_client"
	codeUnauthor    = "unauthorized_client"
	codeGrantType   = "unsupported_grant_type"
	codeTarget      = "invalid_target"
	codeScope       = "invalid_scope"
	codeDetails     = "invalid_authorization_details"
	codeServer      = "server_error"
	codeUnavailable = "temporarily_unavailable"
)

// refusal is what the caller is told, and which class the record gets.
type refusal struct {
	status int
	code   string
	class  string
	reason string
	cause  error // for the broker's own log only
}

func (r *refusal) Error() string { return r.code + ": " + r.reason }

func bad(code, class, reason string) *refusal {
	return &refusal{status: http.StatusBadRequest, code: code, class: class, reason: reason}
}

func unavailable(class, reason string, cause error) *refusal {
	return &refusal{status: http.StatusServiceUnavailable, code: codeUnavailable, class: class, reason: reason, cause: cause}
}

// classify turns a failure of verification or session into what the caller is told. RFC 8693 §2.2.2:
// an invalid subject token is invalid_request.
func classify(err error) *refusal {
	var done *refusal
	if errors.As(err, &done) {
		return done
	}
	var s *session.Refusal
	if errors.As(err, &s) {
		if s.Class == session.ClassPermission {
			return bad(codeUnauthor, string(s.Class), s.Reason)
		}
		return bad(codeRequest, string(s.Class), s.Reason)
	}
	var a *actor.Error
	if !errors.As(err, &a) {
		return &refusal{status: http.StatusInternalServerError, code: codeServer, class: "internal", reason: "the broker failed", cause: err}
	}
	r := bad(codeRequest, string(a.Class), a.Error())
	switch a.Class {
	case actor.ClassNotAgent, actor.ClassPeerCertificate, actor.ClassPeerTrustDomain:
		r.code = codeUnauthor
	case actor.ClassTokenDetails, actor.ClassDetails, actor.ClassWider:
		r.code = codeDetails
	case actor.ClassRevocationUnknown:
		return unavailable(string(a.Class), "the broker doesn't know at the moment what is revoked; try again", err)
	}
	return r
}

// write answers with an RFC 6749 §5.2 error that names the record.
func (r *refusal) write(w http.ResponseWriter, record audit.RecordID) {
	writeJSON(w, r.status, map[string]string{
		"error":             r.code,
		"error_description": describe(r.reason + " (record: " + record.String() + ")"),
	})
}

// describe keeps to the characters that RFC 6749 §5.2 allows in error_description.
func describe(s string) string {
	const most = 600
	if len(s) > most {
		// The record's id stands at the end.
		tail := s[strings.LastIndexByte(s, '('):]
		s = s[:most] + "... " + tail
	}
	return strings.Map(func(c rune) rune {
		switch {
		case c == '"':
			return '\''
		case c < 0x20 || c > 0x7e || c == '\\':
			return '?'
		}
		return c
	}, s)
}

func writeJSON(w http.ResponseWriter, status int, body any) {
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	h.Set("Pragma", "no-cache")
	w.WriteHeader(status)
	// A client that is gone can't be told.
	_ = json.NewEncoder(w).Encode(body)
}
