package tokenapi

import (
	"errors"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strings"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/internal/target"
)

const (
	grantTypeExchange = "urn:ietf:params:oauth:grant-type:token-exchange"
	typeGrants        = "urn:deputy:token-type:grants"
	typeIDToken       = "urn:ietf:params:oauth:token-type:id_token"
	typeAccessToken   = "urn:ietf:params:oauth:token-type:access_token"

	// maxBody is a subject of the greatest size with every byte escaped that a form may escape, and room
	// for the other parameters.
	maxBody    = actor.MaxSize + 32<<10
	maxPurpose = 200
	maxScopes  = 32
)

// exchangeRequest is a well-formed request, before anything of it was verified.
type exchangeRequest struct {
	subject string
	bare    bool // subject_token_type says a bare ID token
	target  target.Name
	scopes  []string
	details actor.Details // nil if not asked for
	purpose string
}

// readForm reads a form of bounded size whose known parameters come once.
func readForm(w http.ResponseWriter, r *http.Request, known ...string) (url.Values, error) {
	if ct, params, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || ct != "application/x-www-form-urlencoded" ||
		len(params) > 1 || len(params) == 1 && !strings.EqualFold(params["charset"], "utf-8") {
		return nil, bad(codeRequest, "request.content-type", "send a form: Content-Type: application/x-www-form-urlencoded")
	}
	if r.Header.Get("Content-Encoding") != "" {
		return nil, &refusal{status: http.StatusUnsupportedMediaType, code: codeRequest, class: "request.content-type", reason: "send the form as it is, without Content-Encoding"}
	}
	if len(r.TransferEncoding) > 0 {
		return nil, &refusal{status: http.StatusLengthRequired, code: codeRequest, class: "request.size", reason: "send the form with its Content-Length"}
	}
	if r.URL.RawQuery != "" {
		return nil, bad(codeRequest, "request.query", "parameters belong in the body, not in the URL")
	}
	if r.Header.Get("Authorization") != "" {
		// RFC 6749 §2.3: one method of client authentication, and it is mTLS.
		return nil, &refusal{status: http.StatusUnauthorized, code: codeClient, class: "request.authorization", reason: "clients authenticate by mTLS with their SVID and by nothing else"}
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		var large *http.MaxBytesError
		if errors.As(err, &large) {
			return nil, &refusal{status: http.StatusRequestEntityTooLarge, code: codeRequest, class: "request.size", reason: "the request is too large"}
		}
		return nil, bad(codeRequest, "request.body", "the body could not be read")
	}
	form, err := url.ParseQuery(string(body))
	if err != nil {
		return nil, bad(codeRequest, "request.form", "the body is not a form")
	}
	for _, name := range known {
		if len(form[name]) > 1 {
			return nil, bad(codeRequest, "request.duplicate", name+" appears more than once")
		}
	}
	for _, name := range []string{"client_secret", "client_assertion", "client_assertion_type"} {
		if form.Has(name) {
			return nil, &refusal{status: http.StatusUnauthorized, code: codeClient, class: "request.authorization", reason: "clients authenticate by mTLS with their SVID and by nothing else"}
		}
	}
	return form, nil
}

// readExchange reads RFC 8693 §2.1.
func (a *API) readExchange(w http.ResponseWriter, r *http.Request, peer actor.AgentID) (exchangeRequest, error) {
	var out exchangeRequest
	form, err := readForm(w, r, "grant_type", "resource", "audience", "scope", "requested_token_type", "subject_token", "subject_token_type",
		"actor_token", "actor_token_type", "client_id", "authorization_details", "purpose")
	if err != nil {
		return out, err
	}
	switch v := form.Get("grant_type"); v {
	case grantTypeExchange:
	case "":
		return out, bad(codeRequest, "request.grant-type", "grant_type is missing")
	default:
		return out, bad(codeGrantType, "request.grant-type", "grant_type must be "+grantTypeExchange)
	}
	if id := form.Get("client_id"); id != "" && id != peer.String() {
		return out, &refusal{status: http.StatusUnauthorized, code: codeClient, class: "request.client-id", reason: "client_id is not the SPIFFE ID of this connection"}
	}
	// The actor is the peer of the connection. A token that names somebody else could splice two flows, one
	// that names the peer says nothing new.
	if form.Has("actor_token") || form.Has("actor_token_type") {
		return out, bad(codeRequest, "request.actor-token", "actor_token is not taken: the actor is the peer of the connection")
	}
	if v := form.Get("requested_token_type"); v != "" && v != typeAccessToken {
		return out, bad(codeRequest, "request.token-type", "requested_token_type must be "+typeAccessToken)
	}
	if out.subject = form.Get("subject_token"); out.subject == "" {
		return out, bad(codeRequest, "request.subject", "subject_token is missing")
	}
	switch form.Get("subject_token_type") {
	case typeGrants:
	case typeIDToken:
		out.bare = true
	case "":
		return out, bad(codeRequest, "request.subject-type", "subject_token_type is missing")
	default:
		return out, bad(codeRequest, "request.subject-type", "subject_token_type must be "+typeGrants+" or "+typeIDToken)
	}
	if out.target, err = a.readTarget(form.Get("resource"), form.Get("audience")); err != nil {
		return out, err
	}
	if v := form.Get("scope"); v != "" {
		out.scopes = strings.Split(v, " ")
		if len(out.scopes) > maxScopes {
			return out, bad(codeScope, "request.scope", "scope has too many values")
		}
	}
	if v := form.Get("authorization_details"); v != "" {
		if out.details, err = actor.ParseDetails([]byte(v)); err != nil {
			return out, bad(codeDetails, string(actor.ClassOf(err)), "authorization_details: "+err.Error())
		}
	}
	out.purpose = form.Get("purpose")
	if len(out.purpose) > maxPurpose {
		return out, bad(codeRequest, "request.purpose", "purpose is too long")
	}
	return out, nil
}

// readTarget takes the one target that resource or audience names.
func (a *API) readTarget(resource, audience string) (target.Name, error) {
	if (resource == "") == (audience == "") {
		return target.Name{}, bad(codeRequest, "request.target", "exactly one of resource and audience must name the target")
	}
	name, err := target.FromID(a.cfg.TrustDomain, resource+audience)
	if err != nil && audience != "" {
		// RFC 8693: audience is a logical name, so the bare one is fine as well.
		name, err = target.ParseName(audience)
	}
	if err != nil {
		return target.Name{}, bad(codeTarget, "target.name", "resource or audience names no target: want spiffe://"+a.cfg.TrustDomain.Name()+"/target/<name>")
	}
	if _, ok := a.cfg.Targets[name]; !ok {
		return target.Name{}, bad(codeTarget, "target.unknown", "there is no target "+name.String())
	}
	return name, nil
}
