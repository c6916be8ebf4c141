package httpd_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/internal/testca"
	"github.com/deputymesh/deputy/policy"
	"github.com/deputymesh/deputy/proxy"
	"github.com/deputymesh/deputy/proxy/httpd"
)

// echo answers with what the service saw.
func echo(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	w.Header().Set("Content-Type", "application/json")
	to := json.NewEncoder(w)
	to.SetEscapeHTML(false)
	_ = to.Encode(seen{r.Method, r.RequestURI, r.Host, r.Header, string(body)})
}

type seen struct {
	Method, URI, Host string
	Header            http.Header
	Body              string
}

func (r *rig) seen(method, path string, body io.Reader, headers ...string) seen {
	r.t.Helper()
	a, text := r.do(method, path, body, headers...)
	var s seen
	if err := json.Unmarshal([]byte(text), &s); err != nil || a.StatusCode != 200 {
		r.t.Fatalf("%s %s: %d %s", method, path, a.StatusCode, text)
	}
	return s
}

func TestRequestsAreDecidedRecordedAndSentOn(t *testing.T) {
	r := newRig(t, http.HandlerFunc(echo))
	s := r.seen("POST", "/v1/invoices?page=2&state=open%20now", strings.NewReader("hello"), "X-Request-Id", "7")
	if s.Method != "POST" || s.URI != "/v1/invoices?page=2&state=open%20now" || s.Body != "hello" || s.Header.Get("X-Request-Id") != "7" {
		t.Errorf("the service saw %+v", s)
	}
	if s.Header.Get("Authorization") != "Bearer the-services-own-secret" || strings.Contains(fmt.Sprint(s), goodCredential) {
		t.Errorf("the service saw the credential %q", s.Header.Values("Authorization"))
	}
	d := r.Await(t, "decided", "POST /v1/invoices")
	if d.Cmd.Scrubbed != "POST /v1/invoices?page=…&state=…" || d.Cmd.Ops[0].Action.Name() != "http:post" || d.Cmd.Ops[0].Resource != policy.Endpoint("billing", "/v1/invoices", "page&state") || d.Cmd.Account != "reader" || d.Cmd.ReadOnly {
		t.Errorf("decided %+v", d.Cmd)
	}
	out := r.Await(t, "completed", "POST /v1/invoices").Out
	if out.Status != "ok" || out.Code != "200" || out.Sent != 5 || out.Bytes == 0 {
		t.Errorf("the outcome %+v", out)
	}
	// A second request, and one with a fresh credential, run in the same session.
	r.seen("GET", "/again", nil)
	q := r.request("GET", "/renewed", nil)
	q.Header.Set("Authorization", "Bearer "+nextCredential)
	a, err := r.client.Do(q)
	if err != nil || a.StatusCode != 200 || a.Header.Get("Deputy-Session") != "s1" || r.Opened.Load() != 1 {
		t.Errorf("renewed: %v %v, %d sessions", a, err, r.Opened.Load())
	}
	_ = a.Body.Close()
}

func TestWhatAgentsSayAboutThemselvesIsTakenAway(t *testing.T) {
	r := newRig(t, http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		w.Header().Set("Set-Cookie", "session=the-accounts-own")
		w.Header().Set("Deputy-Record", "forged")
		w.Header().Set("Alt-Svc", `h3=":443"`)
		echo(w, q)
	}), func(c *httpd.Config) { c.Accounts[0].Headers = map[string]string{"X-Api-Key": "the-key"} })
	var headers []string
	for _, name := range []string{
		"X-Forwarded-For", "X-Forwarded-User", "Forwarded", "Via", "X-Real-Ip", "X-Remote-User", "X-Auth-Request-Email", "X-Original-Url", "X-Rewrite-Url", "Deputy-Chain",
		"Impersonate-User", "X_Forwarded_For", "Remote_user", "Cookie", "X-Api-Key", "Proxy-Authorization", "X-Ssl-Client-Cert", "Client-Cert", "X-Envoy-Original-Path",
		"Ssl-Client-Verify", "Ssl-Client-S-Dn", "Wl-Proxy-Client-Ip", "Fly-Client-Ip", "X-Originating-Ip", "X-Original-For", "X-Original-Forwarded-For", "X-Azure-Clientip", "X-Client-Dn", "X-Client-Verified", "X-Tls-Client-Subject",
	} {
		headers = append(headers, name, "1.2.3.4")
	}
	s := r.seen("GET", "/", nil, headers...)
	for name, values := range s.Header {
		if strings.Contains(strings.Join(values, ","), "1.2.3.4") {
			t.Errorf("%s got through", name)
		}
	}
	if s.Header.Get("X-Api-Key") != "the-key" {
		t.Errorf("the account's header is %q", s.Header.Values("X-Api-Key"))
	}
	a, _ := r.do("GET", "/", nil)
	if a.Header.Get("Set-Cookie") != "" || a.Header.Get("Alt-Svc") != "" || a.Header.Get("Deputy-Record") != "rec-decided" || len(a.Header.Values("Deputy-Record")) != 1 {
		t.Errorf("the answer's headers: %v", a.Header)
	}
}

// The service can check by itself who asks, through whom, and that it is about this very request.
func TestServicesAreToldTheChain(t *testing.T) {
	r := newRig(t, http.HandlerFunc(echo))
	s := r.seen("PUT", "/caf%C3%A9/1?x=y", nil)
	raw := s.Header.Get("Deputy-Chain")
	call := actor.ChainCall{
		Bundles: r.ca.Bundle(), Proxy: r.ca.ID("/deputy/proxy/main"), Target: r.ca.ID("/target/billing"), Method: "PUT", Path: "/café/1", Now: time.Now(),
	}
	got, err := actor.VerifyChain(raw, call)
	if err != nil {
		t.Fatal(err)
	}
	if got.User.Subject != "ada" || len(got.Actors) != 1 || got.Actors[0].ID.String() != agentID || got.Actors[0].Grade != actor.Attested || got.Purpose != "q3 refunds" || got.Record != "rec-decided" || got.RootEvidence != actor.RootVerified {
		t.Errorf("%+v", got)
	}
	other := testca.New(t, "test.example")
	for name, change := range map[string]func(*actor.ChainCall){
		"another method": func(c *actor.ChainCall) { c.Method = "GET" }, "another path": func(c *actor.ChainCall) { c.Path = "/caf" },
		"another service": func(c *actor.ChainCall) { c.Target = r.ca.ID("/target/other") }, "another proxy": func(c *actor.ChainCall) { c.Proxy = r.ca.ID("/deputy/proxy/other") },
		"later": func(c *actor.ChainCall) { c.Now = c.Now.Add(actor.ChainLife + actor.Skew + time.Second) }, "another authority": func(c *actor.ChainCall) { c.Bundles = other.Bundle() },
	} {
		c := call
		change(&c)
		if _, err := actor.VerifyChain(raw, c); actor.ClassOf(err) != actor.ClassChain {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, forged := range map[string]string{
		"nothing": "", "a byte less": raw[:len(raw)-1], "another payload": strings.Replace(raw, ".", ".e30", 1), "a credential": goodCredential,
	} {
		if _, err := actor.VerifyChain(forged, call); actor.ClassOf(err) != actor.ClassChain {
			t.Errorf("%s: %v", name, err)
		}
	}
	// An agent's SVID is of the same authority, and makes no proxy.
	agent := r.ca.SVID(spiffeid.RequireFromString(agentID))
	lie := got
	lie.User.Subject = "eve"
	if _, err := actor.SignChain(agent.PrivateKey, agent.Certificates, lie); err == nil {
		t.Error("an agent signed as the proxy")
	}
	lie.Issuer = agent.ID
	if raw, err := actor.SignChain(agent.PrivateKey, agent.Certificates, lie); err == nil {
		t.Errorf("an agent states chains: %s", raw)
	}
}

// What can't be told to the service isn't sent to it.
func TestNoRequestGoesWithoutItsChain(t *testing.T) {
	var reached atomic.Int64
	r := newRig(t, http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) { reached.Add(1); echo(w, q) }), func(c *httpd.Config) { c.SVID = noSVID{} })
	if a, text := r.do("GET", "/", nil); a.StatusCode != 503 || reached.Load() != 0 {
		t.Errorf("%d %s", a.StatusCode, text)
	}
	if out := r.Await(t, "completed", "GET /").Out; out.Status != "not_sent" {
		t.Errorf("%+v", out)
	}
}

type noSVID struct{}

func (noSVID) GetX509SVID() (*x509svid.SVID, error) { return nil, errors.New("none") }

func TestRefusalsSpeakHTTP(t *testing.T) {
	var reached atomic.Int64
	r := newRig(t, http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) { reached.Add(1); echo(w, q) }))
	t.Run("without a credential", func(t *testing.T) {
		q := r.request("GET", "/", nil)
		q.Header.Del("Authorization")
		a, err := r.client.Do(q)
		if err != nil {
			t.Fatal(err)
		}
		defer a.Body.Close()
		if say := a.Header.Get("WWW-Authenticate"); a.StatusCode != 401 || !strings.Contains(say, `Bearer realm="billing"`) || !strings.Contains(say, "resource_metadata=") || strings.Contains(say, "error=") {
			t.Errorf("%d %q", a.StatusCode, say)
		}
	})
	t.Run("with another one", func(t *testing.T) {
		a, text := r.do("GET", "/", nil, "Authorization", "Bearer other")
		if a.StatusCode != 401 {
			t.Errorf("two headers: %d %s", a.StatusCode, text)
		}
		q := r.request("GET", "/", nil)
		q.Header.Set("Authorization", "Bearer other")
		a, err := r.client.Do(q)
		if err != nil {
			t.Fatal(err)
		}
		defer a.Body.Close()
		body, _ := io.ReadAll(a.Body)
		if say := a.Header.Get("WWW-Authenticate"); a.StatusCode != 401 || !strings.Contains(say, `error="invalid_token"`) || !strings.Contains(string(body), "record: rec-open") {
			t.Errorf("%d %q %s", a.StatusCode, say, body)
		}
	})
	t.Run("by policy", func(t *testing.T) {
		r.Set(func() { r.Allow = func(c proxy.Command) bool { return !strings.Contains(c.Scrubbed, "/secret") } })
		a, text := r.do("DELETE", "/secret", nil)
		if a.StatusCode != 403 || !strings.Contains(a.Header.Get("WWW-Authenticate"), `error="insufficient_scope"`) || !strings.Contains(text, "record: rec-refused") || a.Header.Get("Content-Type") != "application/problem+json" || a.Header.Get("Deputy-Record") != "rec-refused" {
			t.Errorf("%d %v %s", a.StatusCode, a.Header, text)
		}
	})
	t.Run("a mask that can't be put on", func(t *testing.T) {
		r.Set(func() { r.Ob = policy.Obligations{Masks: []policy.MaskRule{{}}} })
		defer r.Set(func() { r.Ob = policy.Obligations{} })
		if a, text := r.do("GET", "/masked", nil); a.StatusCode != 403 || !strings.Contains(text, "masks a table's column") {
			t.Errorf("%d %s", a.StatusCode, text)
		}
	})
	if reached.Load() != 0 {
		t.Errorf("%d refused requests reached the service", reached.Load())
	}
	t.Run("metadata", func(t *testing.T) {
		q := r.request("GET", "/.well-known/oauth-protected-resource", nil)
		q.Header.Del("Authorization")
		a, err := r.client.Do(q)
		if err != nil {
			t.Fatal(err)
		}
		defer a.Body.Close()
		var m map[string]any
		if err := json.NewDecoder(a.Body).Decode(&m); err != nil || m["resource"] != "spiffe://test.example/target/billing" || fmt.Sprint(m["authorization_servers"]) != "[https://broker.test]" {
			t.Errorf("%v %v", m, err)
		}
	})
	t.Run("no account for the role", func(t *testing.T) {
		r := newRig(t, http.HandlerFunc(echo), func(c *httpd.Config) { c.Accounts[0].Roles = []string{"auditor"} })
		if a, text := r.do("GET", "/", nil); a.StatusCode != 403 || !strings.Contains(text, "none of the user's roles has an account") {
			t.Errorf("%d %s", a.StatusCode, text)
		}
	})
	t.Run("the service refuses the proxy", func(t *testing.T) {
		r := newRig(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("WWW-Authenticate", `Basic realm="inner"`)
			w.WriteHeader(401)
		}))
		if a, text := r.do("GET", "/", nil); a.StatusCode != 502 || a.Header.Get("WWW-Authenticate") != "" || !strings.Contains(text, "proxy's own credential") {
			t.Errorf("%d %v %s", a.StatusCode, a.Header, text)
		}
		if out := r.Await(t, "completed", "GET /").Out; out.Status != "error" || out.Code != "401" {
			t.Errorf("%+v", out)
		}
	})
}

// A decision that isn't durable has no effect, and one that never will be is a refusal.
func TestEvidenceBeforeEffect(t *testing.T) {
	var reached atomic.Int64
	r := newRig(t, http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) { reached.Add(1); echo(w, q) }))
	waiting, release := make(chan struct{}), make(chan error)
	r.Set(func() {
		r.Durable = func(context.Context) error {
			waiting <- struct{}{}
			return <-release
		}
	})
	answer := make(chan *http.Response)
	ask := func() {
		a, err := r.client.Do(r.request("GET", "/", nil))
		if err != nil {
			t.Error(err)
		} else {
			_ = a.Body.Close()
		}
		answer <- a
	}
	go ask()
	<-waiting
	if reached.Load() != 0 {
		t.Error("the service was asked before the decision was durable")
	}
	release <- nil
	if a := <-answer; a.StatusCode != 200 || reached.Load() != 1 {
		t.Errorf("%d", a.StatusCode)
	}
	go ask()
	<-waiting
	release <- &proxy.Refusal{Class: proxy.ClassEvidence, Reason: "the decision couldn't be recorded"}
	if a := <-answer; a.StatusCode != 503 || a.Header.Get("Deputy-Record") != "none" || reached.Load() != 1 {
		t.Errorf("%d %v, %d reached the service", a.StatusCode, a.Header, reached.Load())
	}
}

// When the engine has ended, so have its sessions, and their records say why.
func TestShutdownEndsEverySession(t *testing.T) {
	r := newRig(t, http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		w.WriteHeader(http.StatusOK)
		w.(http.Flusher).Flush()
		<-q.Context().Done()
	}))
	const conns = 8
	for range conns {
		transport := &http.Transport{TLSClientConfig: r.tls.Clone(), ForceAttemptHTTP2: true}
		t.Cleanup(transport.CloseIdleConnections)
		a, err := transport.RoundTrip(r.request("GET", "/endless", nil))
		if err != nil {
			t.Fatal(err)
		}
		defer a.Body.Close()
	}
	r.stop()
	closed := r.All("closed")
	if len(closed) != conns {
		t.Errorf("%d sessions of %d were closed", len(closed), conns)
	}
	for _, c := range closed {
		if !strings.Contains(c.Why, "shutdown") {
			t.Errorf("a session was closed by %q", c.Why)
		}
	}
}

// More strangers than may wait push one another out, and hold nobody up.
func TestStrangersHoldNobodyUp(t *testing.T) {
	r := newRig(t, http.HandlerFunc(echo))
	for range 300 {
		c, err := net.Dial("tcp", r.address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	r.seen("GET", "/x", nil)
	// Nor does an agent that opens more connections than it may without a credential.
	for range 130 {
		c, err := tls.Dial("tcp", r.address, r.tls)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	r.seen("GET", "/y", nil)
}

func TestConnectionsAreBounded(t *testing.T) {
	r := newRig(t, http.HandlerFunc(echo), func(c *httpd.Config) { c.MaxConnections = 1; c.StartupTimeout = 500 * time.Millisecond })
	r.seen("GET", "/first", nil)
	other := &http.Client{Transport: &http.Transport{TLSClientConfig: r.tls.Clone(), DisableKeepAlives: true}}
	a, err := other.Do(r.request("GET", "/second", nil))
	if err != nil || a.StatusCode != 429 {
		t.Fatalf("%v %v", a, err)
	}
	_ = a.Body.Close()
	// The place is free again when the first connection has ended.
	r.client.CloseIdleConnections()
	r.Await(t, "closed", "s1 client")
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		a, err := other.Do(r.request("GET", "/third", nil))
		if err != nil {
			t.Fatal(err)
		}
		_ = a.Body.Close()
		if a.StatusCode == 200 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("still %d", a.StatusCode)
		}
	}
	// A header that doesn't end, and too large a one.
	cfg := r.tls.Clone()
	cfg.NextProtos = []string{"http/1.1"}
	c, err := tls.Dial("tcp", r.address, cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n")
	_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.ReadAll(c); err != nil && strings.Contains(err.Error(), "timeout") {
		t.Errorf("a header that doesn't end: %v", err)
	}
	if out := r.raw("GET / HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 80<<10) + "\r\n\r\n"); out != "" && !strings.HasPrefix(out, "HTTP/1.1 431") {
		t.Errorf("%.80q", out)
	}
	// Credentials that are refused over and over.
	for i := range 5 {
		q := r.request("GET", "/", nil)
		q.Header.Set("Authorization", fmt.Sprint("Bearer wrong", i))
		if a, err := r.client.Do(q); err == nil {
			_ = a.Body.Close()
			if a.StatusCode == 200 {
				t.Error("a wrong credential was taken")
			}
		}
	}
}
