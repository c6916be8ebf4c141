package signin

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"net/url"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/zitadel/oidc/v3/pkg/oidc"
	"github.com/zitadel/oidc/v3/pkg/op"
)

type ctx = context.Context

const (
	// maxRequests bounds the sign-ins that are under way at once.
	maxRequests = 1000
	// requestLife is how long a person may take to fill in the form.
	requestLife = 10 * time.Minute
	// idTokenLife covers a working session at a desk.
	idTokenLife = time.Hour
)

var (
	errNotFound    = errors.New("this sign-in is not known or has expired; start again")
	errCredentials = errors.New("user or password is wrong")
	errUnsupported = oidc.ErrUnsupportedGrantType().WithDescription("only the authorization code is offered here")
)

// storage implements op.Storage: requests by id, codes by value.
type storage struct {
	op.Storage // nil: what isn't implemented below isn't offered by the configuration

	cfg Config
	key *ecdsa.PrivateKey

	mu       sync.Mutex
	requests map[string]*request
	codes    map[string]string
}

func newStorage(cfg Config, key *ecdsa.PrivateKey) *storage {
	return &storage{cfg: cfg, key: key, requests: map[string]*request{}, codes: map[string]string{}}
}

// request is one sign-in; it implements op.AuthRequest.
type request struct {
	*oidc.AuthRequest
	id       string
	made     time.Time
	user     *User
	authTime time.Time
	sid      string
}

func (r *request) GetID() string          { return r.id }
func (r *request) GetACR() string         { return "0" }
func (r *request) GetAMR() []string       { return []string{"pwd"} }
func (r *request) GetAudience() []string  { return []string{r.ClientID} }
func (r *request) GetAuthTime() time.Time { return r.authTime }
func (r *request) GetClientID() string    { return r.ClientID }
func (r *request) GetCodeChallenge() *oidc.CodeChallenge {
	return &oidc.CodeChallenge{Challenge: r.CodeChallenge, Method: r.CodeChallengeMethod}
}
func (r *request) GetNonce() string                   { return r.Nonce }
func (r *request) GetRedirectURI() string             { return r.RedirectURI }
func (r *request) GetResponseType() oidc.ResponseType { return r.ResponseType }
func (r *request) GetResponseMode() oidc.ResponseMode { return r.ResponseMode }
func (r *request) GetScopes() []string                { return r.Scopes }
func (r *request) GetState() string                   { return r.State }
func (r *request) Done() bool                         { return r.user != nil }
func (r *request) GetSubject() string {
	if r.user == nil {
		return ""
	}
	return r.user.Subject
}

func (s *storage) CreateAuthRequest(_ ctx, req *oidc.AuthRequest, _ string) (op.AuthRequest, error) {
	if req.CodeChallenge == "" || req.CodeChallengeMethod != oidc.CodeChallengeMethodS256 {
		return nil, oidc.ErrInvalidRequest().WithDescription("PKCE with S256 is required")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.cfg.Now()
	for id, r := range s.requests {
		if now.Sub(r.made) > requestLife {
			delete(s.requests, id)
		}
	}
	if len(s.requests) >= maxRequests {
		return nil, oidc.ErrServerError().WithDescription("too many sign-ins are under way; try again in some minutes")
	}
	r := &request{AuthRequest: req, id: randomHex(), made: now}
	s.requests[r.id] = r
	return r, nil
}

func (s *storage) find(id string) (*request, error) {
	r, ok := s.requests[id]
	if !ok || s.cfg.Now().Sub(r.made) > requestLife {
		return nil, errNotFound
	}
	return r, nil
}

func (s *storage) AuthRequestByID(_ ctx, id string) (op.AuthRequest, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.find(id)
}

func (s *storage) AuthRequestByCode(_ ctx, code string) (op.AuthRequest, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id, ok := s.codes[code]
	if !ok {
		return nil, oidc.ErrInvalidGrant().WithDescription("the code is not known or was used")
	}
	delete(s.codes, code)
	return s.find(id)
}

func (s *storage) SaveAuthCode(_ ctx, id, code string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.find(id); err != nil {
		return err
	}
	s.codes[code] = id
	return nil
}

func (s *storage) DeleteAuthRequest(_ ctx, id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.requests, id)
	for code, of := range s.codes {
		if of == id {
			delete(s.codes, code)
		}
	}
	return nil
}

// signIn marks a request as done when the password is right.
func (s *storage) signIn(id, name, password string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, err := s.find(id)
	if err != nil {
		return err
	}
	var user *User
	for i := range s.cfg.Users {
		if s.cfg.Users[i].Name == name {
			user = &s.cfg.Users[i]
		}
	}
	if !user.check(password) {
		return errCredentials
	}
	r.user, r.authTime, r.sid = user, s.cfg.Now(), randomHex()
	return nil
}

func (s *storage) CreateAccessToken(_ ctx, _ op.TokenRequest) (string, time.Time, error) {
	return randomHex(), s.cfg.Now().Add(time.Minute), nil
}

func (s *storage) CreateAccessAndRefreshTokens(ctx, op.TokenRequest, string) (string, string, time.Time, error) {
	return "", "", time.Time{}, errUnsupported
}

func (s *storage) TokenRequestByRefreshToken(ctx, string) (op.RefreshTokenRequest, error) {
	return nil, errUnsupported
}

func (s *storage) TerminateSession(ctx, string, string) error { return nil }

func (s *storage) RevokeToken(ctx, string, string, string) *oidc.Error { return nil }

func (s *storage) GetRefreshTokenInfo(ctx, string, string) (string, string, error) {
	return "", "", op.ErrInvalidRefreshToken
}

func (s *storage) SetUserinfoFromScopes(ctx, *oidc.UserInfo, string, string, []string) error {
	return nil
}

// SetUserinfoFromRequest puts the sample user's claims and the session id into the ID token.
func (s *storage) SetUserinfoFromRequest(_ ctx, info *oidc.UserInfo, req op.IDTokenRequest, _ []string) error {
	r, ok := req.(*request)
	if !ok || r.user == nil {
		return errNotFound
	}
	info.Subject = r.user.Subject
	info.AppendClaims("sid", r.sid)
	info.AppendClaims("groups", r.user.Groups)
	info.AppendClaims("email", r.user.Email)
	info.AppendClaims("preferred_username", r.user.Name)
	return nil
}

func (s *storage) SetUserinfoFromToken(ctx, *oidc.UserInfo, string, string, string) error {
	return errUnsupported
}

func (s *storage) SetIntrospectionFromToken(ctx, *oidc.IntrospectionResponse, string, string, string) error {
	return errUnsupported
}

func (s *storage) GetPrivateClaimsFromScopes(ctx, string, string, []string) (map[string]any, error) {
	return nil, nil
}

func (s *storage) GetKeyByIDAndClientID(ctx, string, string) (*jose.JSONWebKey, error) {
	return nil, errUnsupported
}

func (s *storage) ValidateJWTProfileScopes(ctx, string, []string) ([]string, error) {
	return nil, errUnsupported
}

func (s *storage) Health(ctx) error { return nil }

func (s *storage) SignatureAlgorithms(ctx) ([]jose.SignatureAlgorithm, error) {
	return []jose.SignatureAlgorithm{jose.ES256}, nil
}

func (s *storage) SigningKey(ctx) (op.SigningKey, error) { return signingKey{s.key}, nil }

func (s *storage) KeySet(ctx) ([]op.Key, error) { return []op.Key{publicKey{s.key}}, nil }

const keyID = "signin-1"

type signingKey struct{ key *ecdsa.PrivateKey }

func (signingKey) SignatureAlgorithm() jose.SignatureAlgorithm { return jose.ES256 }
func (k signingKey) Key() any                                  { return k.key }
func (signingKey) ID() string                                  { return keyID }

type publicKey struct{ key *ecdsa.PrivateKey }

func (publicKey) ID() string                         { return keyID }
func (publicKey) Algorithm() jose.SignatureAlgorithm { return jose.ES256 }
func (publicKey) Use() string                        { return "sig" }
func (k publicKey) Key() any                         { return k.key.Public() }

func (s *storage) GetClientByClientID(_ ctx, id string) (op.Client, error) {
	if id != s.cfg.ClientID {
		return nil, oidc.ErrInvalidClient().WithDescription("the client is not known")
	}
	return client{id: id}, nil
}

func (s *storage) AuthorizeClientIDSecret(ctx, string, string) error {
	return oidc.ErrInvalidClient().WithDescription("the client has no secret")
}

// client is the one public native client.
type client struct{ id string }

func (c client) GetID() string { return c.id }
func (client) RedirectURIs() []string {
	return []string{"http://127.0.0.1" + CallbackPath, "http://localhost" + CallbackPath}
}
func (client) PostLogoutRedirectURIs() []string    { return nil }
func (client) ApplicationType() op.ApplicationType { return op.ApplicationTypeNative }
func (client) AuthMethod() oidc.AuthMethod         { return oidc.AuthMethodNone }
func (client) ResponseTypes() []oidc.ResponseType {
	return []oidc.ResponseType{oidc.ResponseTypeCode}
}
func (client) GrantTypes() []oidc.GrantType { return []oidc.GrantType{oidc.GrantTypeCode} }
func (client) LoginURL(id string) string    { return "/login?id=" + url.QueryEscape(id) }
func (client) AccessTokenType() op.AccessTokenType {
	return op.AccessTokenTypeBearer
}
func (client) IDTokenLifetime() time.Duration { return idTokenLife }
func (client) DevMode() bool                  { return false }
func (client) RestrictAdditionalIdTokenScopes() func([]string) []string {
	return func(s []string) []string { return s }
}
func (client) RestrictAdditionalAccessTokenScopes() func([]string) []string {
	return func(s []string) []string { return s }
}
func (client) IsScopeAllowed(scope string) bool     { return scope == "groups" }
func (client) IDTokenUserinfoClaimsAssertion() bool { return true }
func (client) ClockSkew() time.Duration             { return 0 }

func randomHex() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return hex.EncodeToString(b[:])
}
