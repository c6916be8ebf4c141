package hop

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"unicode/utf8"

	"google.golang.org/grpc/codes"

	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/proxy"
)

// Classes of refusals of engines that speak HTTP, beside those of the core.
const (
	ClassUnsupported = "unsupported" // not spoken here, whatever policy says
	ClassMalformed   = "malformed"   // servers could read it in different ways
)

// metadataPath is where a resource server says what it wants (RFC 9728 §3). It is the engine's, whatever stands there at the target.
const metadataPath = "/.well-known/oauth-protected-resource"

// serveMetadata tells which tokens are wanted. It needs an SVID, as everything here does, and no credential.
func (h *Hop) serveMetadata(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		w.WriteHeader(http.StatusMethodNotAllowed)
		return
	}
	writeJSON(w, "application/json", http.StatusOK, map[string]any{
		"resource": h.cfg.Target.String(), "authorization_servers": []string{h.cfg.Mesh}, "bearer_methods_supported": []string{"header"},
		"tls_client_certificate_bound_access_tokens": true, "authorization_details_types_supported": []string{h.cfg.DetailType},
	})
}

// Refuse is what an agent hears: the status, RFC 6750's error code if it is one of those, and the refusal.
func (h *Hop) Refuse(w http.ResponseWriter, r *http.Request, err error) {
	h.RefuseWith(w, r, err, h.cfg.Problem)
}

// RefuseWith is Refuse with the words of the engine's protocol, unless it is a call of gRPC.
func (h *Hop) RefuseWith(w http.ResponseWriter, r *http.Request, err error, write func(http.ResponseWriter, int, *proxy.Refusal)) {
	var no *proxy.Refusal
	if !errors.As(err, &no) {
		no = &proxy.Refusal{Class: ClassUnsupported, Reason: err.Error()}
	}
	status, code := statusOf(no)
	header := w.Header()
	if code != "" {
		header.Set("WWW-Authenticate", "Bearer "+strings.Join([]string{
			"realm=" + quote(h.name), "error=" + quote(code), "error_description=" + quote(no.Error()), "resource_metadata=" + quote("https://"+host(r)+metadataPath),
		}, ", "))
	}
	if status == http.StatusServiceUnavailable || status == http.StatusTooManyRequests {
		header.Set("Retry-After", "1")
	}
	header.Set("Deputy-Record", no.RecordID.String())
	// In HTTP/2 http.Server closes behind that without a look at what the agent still sends, which takes the answer away from it: there the connection ends with its session.
	if errors.Is(err, errStrikes) || no.Ended && r.ProtoMajor < 2 {
		header.Set("Connection", "close")
	}
	if strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") && r.ProtoMajor == 2 {
		RefuseGRPC(w, status, no)
		return
	}
	write(w, status, no)
}

// Over is the refusal of what was under way when its session ended.
func Over(core Session, record audit.RecordID) *proxy.Refusal {
	var why *proxy.Ended
	if !errors.As(context.Cause(core.Context()), &why) {
		why = &proxy.Ended{Class: proxy.ClassClosed, Reason: "the session is over"}
	}
	return &proxy.Refusal{Class: why.Class, Reason: why.Reason, Ended: true, RecordID: record}
}

// WriteProblem is RFC 9457.
func WriteProblem(w http.ResponseWriter, status int, no *proxy.Refusal) {
	writeJSON(w, "application/problem+json", status, map[string]any{
		"title": http.StatusText(status), "status": status, "detail": no.Error(), "class": no.Class, "record": no.RecordID.String(),
	})
}

func writeJSON(w http.ResponseWriter, kind string, status int, v any) {
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the status says it all if this fails
}

// RefuseGRPC answers without a message: gRPC's status stands in the header (gRPC over HTTP/2, "Trailers-Only").
func RefuseGRPC(w http.ResponseWriter, status int, no *proxy.Refusal) {
	code := codes.PermissionDenied
	switch status {
	case http.StatusUnauthorized:
		code = codes.Unauthenticated
	case http.StatusServiceUnavailable, http.StatusBadGateway:
		code = codes.Unavailable
	case http.StatusTooManyRequests:
		code = codes.ResourceExhausted
	case http.StatusBadRequest:
		code = codes.InvalidArgument
	}
	h := w.Header()
	h.Set("Content-Type", "application/grpc")
	h.Set("Grpc-Status", strconv.Itoa(int(code)))
	h.Set("Grpc-Message", grpcMessage(no.Error()))
	w.WriteHeader(http.StatusOK)
}

// grpcMessage encodes as gRPC demands: printable ASCII stays, but for the percent sign.
func grpcMessage(s string) string {
	const hex = "0123456789ABCDEF"
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; c >= 0x20 && c < 0x7f && c != '%' {
			b.WriteByte(c)
		} else {
			b.WriteString("%" + string(hex[c>>4]) + string(hex[c&15]))
		}
	}
	return b.String()
}

func statusOf(no *proxy.Refusal) (status int, code string) {
	switch no.Class {
	case proxy.ClassPolicy, proxy.ClassCapability, proxy.ClassUndecided:
		return http.StatusForbidden, "insufficient_scope"
	case proxy.ClassNotReady, proxy.ClassStale, proxy.ClassEvidence, proxy.ClassClosed:
		return http.StatusServiceUnavailable, ""
	case proxy.ClassQuota:
		return http.StatusTooManyRequests, ""
	case ClassMalformed:
		return http.StatusBadRequest, ""
	case ClassUnsupported:
		return http.StatusForbidden, ""
	}
	// A refused, expired or revoked credential.
	return http.StatusUnauthorized, "invalid_token"
}

// unauthenticated asks for a credential (RFC 6750 §3: without one there is no error code).
func (h *Hop) unauthenticated(w http.ResponseWriter, r *http.Request) {
	h.cfg.Core.Count("no_credential")
	w.Header().Set("WWW-Authenticate", "Bearer realm="+quote(h.name)+", resource_metadata="+quote("https://"+host(r)+metadataPath))
	h.cfg.Problem(w, http.StatusUnauthorized, &proxy.Refusal{Class: "no_credential", Reason: "a delegated credential is expected as the bearer token; agents get one from the broker, or use their run's listener"})
}

// host is how the agent calls the proxy, where that is plain enough to be repeated.
func host(r *http.Request) string {
	for i := range len(r.Host) {
		if c := r.Host[i]; (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && !strings.ContainsRune(".-:[]", rune(c)) {
			return "localhost"
		}
	}
	return r.Host
}

// quote is a quoted-string (RFC 9110 §5.6.4) of what may stand in one.
func quote(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, c := range s {
		switch {
		case c == '"' || c == '\\':
			b.WriteByte('\'')
		case c < 0x20 || c > 0x7e:
			b.WriteByte('?')
		default:
			b.WriteRune(c)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// Clip cuts a text.
func Clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "…"
}

// Printable replaces what a terminal would obey.
func Printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 || r >= 0x7f && r <= 0x9f || r == utf8.RuneError || r >= 0x2028 && r <= 0x202e || r >= 0x2066 && r <= 0x2069 {
			return '?'
		}
		return r
	}, s)
}
