package client_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/client"
	"github.com/deputymesh/deputy/internal/testca"
)

// broker is a token endpoint on mTLS; answer says what it says.
func broker(t *testing.T, ca *testca.CA, path string, answer http.HandlerFunc) client.Mesh {
	t.Helper()
	srv := httptest.NewUnstartedServer(answer)
	cfg := tlsconfig.MTLSServerConfig(ca.SVID(ca.ID(path)), ca.Bundle(), tlsconfig.AuthorizeMemberOf(ca.TrustDomain()))
	cfg.MinVersion = tls.VersionTLS13
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.Listener = tls.NewListener(srv.Listener, cfg) // not StartTLS, which brings a certificate of its own
	srv.Start()
	t.Cleanup(srv.Close)
	return client.Mesh{Name: meshURL, TokenURL: "https://" + srv.Listener.Addr().String() + "/token", Broker: ca.ID("/deputy/broker")}
}

func token(w http.ResponseWriter, value string, seconds int) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(map[string]any{
		"access_token": value, "issued_token_type": "urn:ietf:params:oauth:token-type:access_token", "token_type": "N_A", "expires_in": seconds,
	})
}

func exchanger(t *testing.T, mesh client.Mesh, src client.Source, chain client.Chain, now func() time.Time) *client.Exchanger {
	t.Helper()
	ex, err := client.NewExchanger(client.ExchangerConfig{Mesh: mesh, Source: src, Chain: func() client.Chain { return chain }, Now: now})
	if err != nil {
		t.Fatal(err)
	}
	return ex
}

func TestExchangeSendsTheWholeChainForOneTarget(t *testing.T) {
	ca := testca.New(t, "corp.test")
	src := newSource(ca, agentPath("planner"))
	var form map[string][]string
	var peer spiffeid.ID
	mesh := broker(t, ca, "/deputy/broker", func(w http.ResponseWriter, r *http.Request) {
		r.ParseForm()
		form = r.PostForm
		peer = spiffeid.RequireFromURI(r.TLS.PeerCertificates[0].URIs[0])
		token(w, "a.b.c", 300)
	})
	chain := chainFor(t, ca, src.at.ID)
	cred, err := exchanger(t, mesh, src, chain, nil).Credential(t.Context(), "orders-db", nil)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string][]string{
		"grant_type":           {"urn:ietf:params:oauth:grant-type:token-exchange"},
		"subject_token":        {chain.Grants[0] + "~" + idToken},
		"subject_token_type":   {"urn:deputy:token-type:grants"},
		"requested_token_type": {"urn:ietf:params:oauth:token-type:access_token"},
		"resource":             {"spiffe://corp.test/target/orders-db"},
	}
	if d := cmp.Diff(want, form); d != "" {
		t.Errorf("form (-want +got):\n%s", d)
	}
	if peer != src.at.ID {
		t.Errorf("the broker saw %s, want %s", peer, src.at.ID)
	}
	if got := cred.Reveal(); got != "a.b.c~"+chain.Grants[0]+"~"+idToken {
		t.Errorf("credential %q", got)
	}
	for _, s := range []string{fmt.Sprint(cred), fmt.Sprintf("%v %+v %#v %s", cred, cred, cred, cred), cred.LogValue().String()} {
		if strings.Contains(s, "a.b.c") {
			t.Errorf("a printed credential shows itself: %s", s)
		}
	}
}

func TestCredentialsAreKeptUntilTheyAgeOrTheSVIDRotates(t *testing.T) {
	ca := testca.New(t, "corp.test")
	src := newSource(ca, agentPath("planner"))
	var calls atomic.Int32
	mesh := broker(t, ca, "/deputy/broker", func(w http.ResponseWriter, r *http.Request) {
		token(w, fmt.Sprintf("t%d", calls.Add(1)), 300)
	})
	now := time.Now()
	ex := exchanger(t, mesh, src, chainFor(t, ca, src.at.ID), func() time.Time { return now })
	get := func() string {
		t.Helper()
		c, err := ex.Credential(t.Context(), "orders-db", nil)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Split(c.Reveal(), "~")[0]
	}
	if a, b := get(), get(); a != "t1" || b != "t1" {
		t.Errorf("asked at once twice: %s, %s", a, b)
	}
	now = now.Add(190 * time.Second)
	if got := get(); got != "t1" {
		t.Errorf("with over a third of its life left: %s", got)
	}
	now = now.Add(20 * time.Second)
	if got := get(); got != "t2" {
		t.Errorf("with less than a third left: %s", got)
	}
	src.rotate()
	if got := get(); got != "t3" {
		t.Errorf("after the SVID rotated: %s; cnf binds a token to the certificate", got)
	}
	narrow := actor.Details{actor.PostgresDetail{Locations: []spiffeid.ID{targetID(t, ca, "orders-db")}, Actions: []string{"select"}}}
	if _, err := ex.Credential(t.Context(), "orders-db", narrow); err != nil {
		t.Fatal(err)
	}
	if got := get(); got != "t3" {
		t.Errorf("a narrower credential took the place of the full one: %s", got)
	}
}

func TestExchangeFailures(t *testing.T) {
	ca := testca.New(t, "corp.test")
	other := testca.New(t, "other.test")
	src := newSource(ca, agentPath("planner"))
	chain := chainFor(t, ca, src.at.ID)
	reply := func(status int, ct, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", ct)
			w.WriteHeader(status)
			fmt.Fprint(w, body)
		}
	}
	ok := func(w http.ResponseWriter, _ *http.Request) { token(w, "t", 300) }
	const json = "application/json"
	tests := map[string]struct {
		mesh client.Mesh
		want string
	}{
		"refused":         {broker(t, ca, "/deputy/broker", reply(400, json, `{"error":"invalid_target","error_description":"no such target"}`)), "invalid_target: no such target"},
		"not JSON":        {broker(t, ca, "/deputy/broker", reply(502, "text/html", `<html>`)), "isn't JSON"},
		"no reason":       {broker(t, ca, "/deputy/broker", reply(500, json, `{}`)), "without saying why"},
		"no end":          {broker(t, ca, "/deputy/broker", reply(200, json, `{"access_token":"t","issued_token_type":"urn:ietf:params:oauth:token-type:access_token"}`)), "no access token with an end"},
		"tilde in token":  {broker(t, ca, "/deputy/broker", func(w http.ResponseWriter, _ *http.Request) { token(w, "t~u", 300) }), "no access token"},
		"another type":    {broker(t, ca, "/deputy/broker", reply(200, json, `{"access_token":"t","issued_token_type":"x","expires_in":5}`)), "no access token"},
		"too long":        {broker(t, ca, "/deputy/broker", reply(200, json, `{"access_token":"`+strings.Repeat("x", 70<<10)+`"}`)), "longer than"},
		"credential size": {broker(t, ca, "/deputy/broker", func(w http.ResponseWriter, _ *http.Request) { token(w, strings.Repeat("x", 40<<10), 300) }), "targets take at most"},
		"redirect": {broker(t, ca, "/deputy/broker", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "https://elsewhere.test/", http.StatusTemporaryRedirect)
		}), "isn't JSON"},
		"another role":   {broker(t, ca, "/deputy/proxy/db", ok), "unexpected ID"},
		"another domain": {broker(t, other, "/deputy/broker", ok), ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := exchanger(t, tt.mesh, src, chain, nil).Credential(t.Context(), "orders-db", nil)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("got %v, want %q", err, tt.want)
			}
			if strings.Contains(err.Error(), chain.Grants[0]) || strings.Contains(err.Error(), idToken) {
				t.Errorf("the error shows the chain: %v", err)
			}
		})
	}
	_, err := exchanger(t, tests["refused"].mesh, src, chain, nil).Credential(t.Context(), "orders-db", nil)
	var refused *client.ExchangeError
	if !errors.As(err, &refused) || refused.Code != "invalid_target" || refused.Status != 400 {
		t.Errorf("a refusal is %#v", err)
	}
	if _, err := exchanger(t, tests["refused"].mesh, src, client.Chain{}, nil).Credential(t.Context(), "orders-db", nil); err == nil {
		t.Error("an agent without grants asked the broker")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := exchanger(t, tests["refused"].mesh, src, chain, nil).Credential(ctx, "orders-db", nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestNarrowNeverWidens(t *testing.T) {
	ca := testca.New(t, "corp.test")
	src := newSource(ca, agentPath("planner"))
	parent, err := actor.ParseAgentID(src.at.ID)
	if err != nil {
		t.Fatal(err)
	}
	child, err := parent.Child("researcher", actor.NewHexID())
	if err != nil {
		t.Fatal(err)
	}
	chain := chainFor(t, ca, src.at.ID)
	got, end, err := client.Narrow(src, chain, child, client.Delegation{Left: client.LeftInherited, TTL: time.Minute}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	d, err := client.DescribeChain(got)
	if err != nil {
		t.Fatal(err)
	}
	if d.ID != child || d.Left != 2 || d.Purpose != "refunds" || d.User.Subject != "alice" || len(got.Grants) != 2 || got.IDToken != idToken {
		t.Errorf("delegated %+v", d)
	}
	if left := time.Until(end); left > time.Minute || left < 50*time.Second {
		t.Errorf("lives for %s, want a minute", left)
	}
	wider := actor.Details{actor.PostgresDetail{Locations: []spiffeid.ID{targetID(t, ca, "orders-db")}, Actions: []string{"ddl"}}}
	for name, d := range map[string]client.Delegation{"cap": {Cap: wider}, "left": {Left: 3}} {
		if _, _, err := client.Narrow(src, chain, child, d, time.Now()); err == nil {
			t.Errorf("a wider %s was signed", name)
		}
	}
	foreign := newSource(ca, agentPath("other"))
	if _, _, err := client.Narrow(foreign, chain, child, client.Delegation{}, time.Now()); err == nil {
		t.Error("an agent passed on a chain that isn't its own")
	}
}
