// Package signin is the sign-in server of `deputy dev` and of the demo: an OpenID provider with a few
// sample users, in memory, on loopback. It is for trying things by hand; it is no identity provider.
//
// The protocol is zitadel/oidc's; this package adds the users, the form and one public client that
// signs in by authorization code with PKCE (RFC 7636) to a loopback redirect (RFC 8252 §7.3).
package signin

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"html/template"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"time"

	"github.com/zitadel/oidc/v3/pkg/op"
)

// CallbackPath is the path of the client's loopback redirect; any port is accepted.
const CallbackPath = "/callback"

// maxFormBytes bounds the sign-in form.
const maxFormBytes = 16 << 10

// User is a sample user.
type User struct {
	Name     string // what is typed into the form; also the `preferred_username` claim
	Subject  string // the `sub` claim
	Password string
	Email    string
	Groups   []string // the `groups` claim
}

// Config of a sign-in server.
type Config struct {
	// Issuer is the https URL that the server is reached at, without a path.
	Issuer string
	// ClientID of the one public client.
	ClientID string
	Users    []User
	Now      func() time.Time
}

// New makes the server's handler. It keeps all state in memory and starts no goroutine.
func New(cfg Config) (http.Handler, error) {
	u, err := url.Parse(cfg.Issuer)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.Path != "" {
		return nil, fmt.Errorf("sign-in server: the issuer %q must be an https URL without a path", cfg.Issuer)
	}
	if len(cfg.Users) == 0 {
		return nil, errors.New("sign-in server: no users are configured")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making the sign-in server's key: %w", err)
	}
	var cryptoKey [32]byte
	if _, err := rand.Read(cryptoKey[:]); err != nil {
		return nil, fmt.Errorf("making the sign-in server's cookie key: %w", err)
	}
	st := newStorage(cfg, key)
	provider, err := op.NewProvider(&op.Config{
		CryptoKey:             cryptoKey,
		CryptoKeyId:           "1",
		CodeMethodS256:        true,
		SupportedScopes:       []string{"openid", "profile", "email", "groups"},
		SupportedClaims:       []string{"sub", "email", "groups", "sid", "auth_time", "nonce", "acr", "amr"},
		GrantTypeRefreshToken: false,
	}, st, op.StaticIssuer(cfg.Issuer), op.WithLogger(slog.New(slog.NewTextHandler(io.Discard, nil))))
	if err != nil {
		return nil, fmt.Errorf("starting the sign-in server: %w", err)
	}
	mux := http.NewServeMux()
	form := &form{storage: st, callback: op.AuthCallbackURL(provider)}
	mux.HandleFunc("GET /login", form.show)
	mux.Handle("POST /login", op.NewIssuerInterceptor(provider.IssuerFromRequest).HandlerFunc(form.submit))
	mux.Handle("/", provider)
	return mux, nil
}

type form struct {
	storage  *storage
	callback func(ctx ctx, id string) string
}

var page = template.Must(template.New("login").Parse(`<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Sign in to Deputy</title>
<style>body{font:16px system-ui;max-width:22rem;margin:12vh auto;padding:0 1rem}label{display:block;margin:.8rem 0}
input{font:inherit;width:100%;padding:.4rem;box-sizing:border-box}button{font:inherit;padding:.5rem 1.2rem}.e{color:#a00}</style></head>
<body><h1>Sign in</h1><p>Sample users of this machine only.</p>{{if .Error}}<p class="e">{{.Error}}</p>{{end}}
<form method="POST" action="/login"><input type="hidden" name="id" value="{{.ID}}">
<label>User <input name="username" autofocus autocomplete="username"></label>
<label>Password <input name="password" type="password" autocomplete="current-password"></label>
<button type="submit">Sign in</button></form></body></html>
`))

func (f *form) show(w http.ResponseWriter, r *http.Request) {
	f.render(w, http.StatusOK, r.URL.Query().Get("id"), "")
}

func (f *form) render(w http.ResponseWriter, status int, id, problem string) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = page.Execute(w, struct{ ID, Error string }{id, problem})
}

func (f *form) submit(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, maxFormBytes)
	if err := r.ParseForm(); err != nil {
		http.Error(w, "The form could not be read. Go back and try again.", http.StatusBadRequest)
		return
	}
	id := r.PostFormValue("id")
	if err := f.storage.signIn(id, r.PostFormValue("username"), r.PostFormValue("password")); err != nil {
		f.render(w, http.StatusUnauthorized, id, err.Error())
		return
	}
	http.Redirect(w, r, f.callback(r.Context(), id), http.StatusSeeOther)
}

// check compares in constant time, also for a user that does not exist.
func (u *User) check(password string) bool {
	want := "\x00"
	if u != nil {
		want = u.Password
	}
	return subtle.ConstantTimeCompare([]byte(want), []byte(password)) == 1 && u != nil
}
