package httpd_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"

	"github.com/deputymesh/deputy/internal/testca"
	"github.com/deputymesh/deputy/proxy/httpd"
)

// What an account signs in with is put in by the proxy, and replaces what an agent sends.
func TestAccountsSignInAtTheService(t *testing.T) {
	var asked atomic.Int64
	tokens := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		id, secret, _ := q.BasicAuth()
		if q.FormValue("grant_type") != "client_credentials" || id != "deputy" || secret != "s3cret" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		asked.Add(1)
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]any{"access_token": "fetched", "token_type": "Bearer", "expires_in": 300})
	}))
	defer tokens.Close()
	conf := clientcredentials.Config{ClientID: "deputy", ClientSecret: "s3cret", TokenURL: tokens.URL}
	wrong := clientcredentials.Config{ClientID: "deputy", ClientSecret: "wrong", TokenURL: tokens.URL}
	for name, c := range map[string]struct {
		account httpd.Account
		want    string
	}{
		"basic":              {httpd.Account{Name: "x", User: "u", Password: "p"}, "Basic dTpw"},
		"bearer":             {httpd.Account{Name: "x", Bearer: "b"}, "Bearer b"},
		"client credentials": {httpd.Account{Name: "x", Tokens: conf.TokenSource(context.Background())}, "Bearer fetched"},
		"nobody":             {httpd.Account{Name: "x"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, http.HandlerFunc(echo), func(cfg *httpd.Config) { cfg.Accounts = []httpd.Account{c.account} })
			for range 3 {
				if s := r.seen("GET", "/", nil); s.Header.Get("Authorization") != c.want {
					t.Errorf("the service saw %q, want %q", s.Header.Values("Authorization"), c.want)
				}
			}
		})
	}
	if asked.Load() != 1 {
		t.Errorf("%d tokens were fetched", asked.Load())
	}
	t.Run("no token", func(t *testing.T) {
		var reached atomic.Int64
		r := newRig(t, http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) { reached.Add(1); echo(w, q) }), func(cfg *httpd.Config) {
			cfg.Accounts = []httpd.Account{{Name: "x", Tokens: wrong.TokenSource(context.Background())}}
		})
		if a, text := r.do("GET", "/", nil); a.StatusCode != 502 || reached.Load() != 0 || strings.Contains(text, "wrong") {
			t.Errorf("%d %s", a.StatusCode, text)
		}
	})
	t.Run("two ways at once", func(t *testing.T) {
		if _, err := httpd.New(httpd.Config{Accounts: []httpd.Account{{Name: "x", Bearer: "b", User: "u"}}}); err == nil {
			t.Error("the engine was made")
		}
	})
}

// A renewal that takes a role away takes its account away, too.
func TestALostRoleLosesItsAccount(t *testing.T) {
	r := newRig(t, http.HandlerFunc(echo), func(cfg *httpd.Config) {
		cfg.Accounts = []httpd.Account{{Name: "writer", Bearer: "w", Roles: []string{"lead"}}, {Name: "reader", Bearer: "r", Roles: []string{"analyst"}}}
	})
	r.Set(func() { r.Roles = []string{"analyst", "lead"} })
	if s := r.seen("GET", "/", nil); s.Header.Get("Authorization") != "Bearer w" {
		t.Errorf("with both roles: %v", s.Header)
	}
	r.Set(func() { r.Roles = []string{"analyst"} })
	if s := r.seen("GET", "/", nil); s.Header.Get("Authorization") != "Bearer r" || r.Opened.Load() != 1 {
		t.Errorf("with one role: %v, %d sessions", s.Header, r.Opened.Load())
	}
	r.Set(func() { r.Roles = nil })
	if a, text := r.do("GET", "/", nil); a.StatusCode != 403 || !strings.Contains(text, "none of the user's roles has an account") {
		t.Errorf("with none: %d %s", a.StatusCode, text)
	}
}

// A service that demands a client certificate gets the account's, and one whose own can't be verified gets nothing.
func TestServicesAreVerifiedAndSeeACertificate(t *testing.T) {
	theirs := testca.New(t, "web.test")
	client := theirs.SVID(theirs.ID("/client"))
	up := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		w.Header().Set("X-Peer", q.TLS.PeerCertificates[0].URIs[0].String())
		echo(w, q)
	}))
	pool := x509.NewCertPool()
	pool.AddCert(theirs.Certificate())
	up.TLS = &tls.Config{MinVersion: tls.VersionTLS12, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool}
	up.StartTLS()
	defer up.Close()
	u, err := url.Parse(up.URL)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(up.Certificate())
	with := func(cfg *httpd.Config) {
		cfg.Accounts = []httpd.Account{{Name: "x", Certificate: func() (*tls.Certificate, error) {
			return &tls.Certificate{Certificate: [][]byte{client.Certificates[0].Raw}, PrivateKey: client.PrivateKey}, nil
		}}}
	}
	r := rigFor(t, httpd.Upstream{URL: u, RootCAs: roots, ServerName: "example.com"}, with)
	if a, text := r.do("GET", "/", nil); a.StatusCode != 200 || a.Header.Get("X-Peer") != client.ID.String() {
		t.Errorf("%d %s %s", a.StatusCode, a.Header.Get("X-Peer"), text)
	}
	for name, upstream := range map[string]httpd.Upstream{
		"another CA":   {URL: u, RootCAs: pool, ServerName: "example.com"},
		"another name": {URL: u, RootCAs: roots, ServerName: "other.example"},
	} {
		r := rigFor(t, upstream, with)
		if a, text := r.do("GET", "/", nil); a.StatusCode != 502 {
			t.Errorf("%s: %d %s", name, a.StatusCode, text)
		}
	}
	for _, bad := range []string{"http://billing.example", "https://u:p@billing.example", "https://billing.example/path", "https://billing.example?x", "ftp://127.0.0.1", ""} {
		u, err := url.Parse(bad)
		if err != nil {
			t.Fatal(err)
		}
		cfg := httpd.Config{Core: r.Ledger, Target: r.ca.ID("/target/billing"), Mesh: "https://broker.test", TLS: r.tls, Accounts: []httpd.Account{{Name: "x"}}, Upstream: httpd.Upstream{URL: u}}
		cfg.SVID = noSVID{}
		cfg.TLS = r.tls.Clone()
		cfg.TLS.VerifyConnection = func(tls.ConnectionState) error { return nil }
		if _, err := httpd.New(cfg); err == nil || !strings.Contains(err.Error(), "upstream") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// hanging is an endpoint of tokens that doesn't answer until it is released.
type hanging struct {
	asked    atomic.Int64
	release  chan struct{}
	answered error
}

func (h *hanging) Token() (*oauth2.Token, error) {
	h.asked.Add(1)
	<-h.release
	return &oauth2.Token{AccessToken: "late", Expiry: time.Now().Add(time.Hour)}, h.answered
}

// However many requests need a token, one fetch is under way; a request that is over doesn't wait for it, and the others don't wait one after the other.
func TestAHangingTokenEndpointHoldsNobodyTwice(t *testing.T) {
	source := &hanging{release: make(chan struct{})}
	r := newRig(t, http.HandlerFunc(echo), func(cfg *httpd.Config) { cfg.Accounts = []httpd.Account{{Name: "x", Tokens: source}} })
	ctx, cancel := context.WithCancel(context.Background())
	gone := make(chan error, 1)
	go func() {
		_, err := r.client.Do(r.request("GET", "/gone", nil).WithContext(ctx))
		gone <- err
	}()
	r.Await(t, "forwarded", "GET /gone")
	cancel()
	if err := <-gone; err == nil {
		t.Error("a request that is over was answered")
	}
	if out := r.Await(t, "completed", "GET /gone").Out; out.Status == "ok" {
		t.Errorf("%+v", out)
	}
	const others = 8
	answers := make(chan int, others)
	for range others {
		go func() {
			a, err := r.client.Do(r.request("GET", "/waits", nil))
			if err != nil {
				answers <- 0
				return
			}
			_ = a.Body.Close()
			answers <- a.StatusCode
		}()
	}
	for len(r.All("forwarded")) < others+1 {
		runtime.Gosched()
	}
	close(source.release)
	for range others {
		if status := <-answers; status != 200 {
			t.Errorf("status %d", status)
		}
	}
	if n := source.asked.Load(); n != 1 {
		t.Errorf("%d fetches", n)
	}
}
