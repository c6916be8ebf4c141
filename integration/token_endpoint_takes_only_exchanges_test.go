package integration_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/deputymesh/deputy/internal/testmesh"
)

// The token endpoint does one thing, for whoever the TLS connection says. Other grants, other clients, other encodings and other
// readings of HTTP get no token, and cost nobody else theirs.
func TestTokenEndpointTakesOnlyExchanges(t *testing.T) {
	f := newForge(t, testmesh.TwoTargets())
	x := f.trees(t, 1)[0]
	dora := f.idp.signIn(t, "dora")
	root := f.root(dora, x.planner)
	subject := join(root, dora.idToken)
	token := f.ok(f.exchange(x.planner, subject))
	orders, crm := targetID(testmesh.Target).String(), targetID(testmesh.OtherTarget).String()

	t.Run("forms", func(t *testing.T) {
		for name, c := range map[string]struct {
			body string
			code string
		}{
			"refresh_token":           {form(subject, "grant_type", "refresh_token", "refresh_token", token).Encode(), "unsupported_grant_type"},
			"client_credentials":      {form(subject, "grant_type", "client_credentials").Encode(), "unsupported_grant_type"},
			"jwt-bearer":              {form(subject, "grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer", "assertion", dora.idToken).Encode(), "unsupported_grant_type"},
			"no grant type":           {form(subject, "grant_type", "").Encode(), "invalid_request"},
			"two resources":           {form(subject).Encode() + "&resource=" + crm, "invalid_request"},
			"resource and audience":   {form(subject, "audience", testmesh.OtherTarget).Encode(), "invalid_request"},
			"two subjects":            {form(subject).Encode() + "&subject_token=" + token, "invalid_request"},
			"two grant types":         {form(subject).Encode() + "&grant_type=refresh_token", "invalid_request"},
			"an actor token":          {form(subject, "actor_token", token, "actor_token_type", "urn:ietf:params:oauth:token-type:access_token").Encode(), "invalid_request"},
			"its own actor token":     {form(subject, "actor_token", dora.idToken, "actor_token_type", "urn:ietf:params:oauth:token-type:id_token").Encode(), "invalid_request"},
			"the type of one alone":   {form(subject, "actor_token_type", "urn:ietf:params:oauth:token-type:jwt").Encode(), "invalid_request"},
			"another client":          {form(subject, "client_id", x.a.ID.String()).Encode(), "invalid_client"},
			"a user as client":        {form(subject, "client_id", "dora").Encode(), "invalid_client"},
			"a client's secret":       {form(subject, "client_secret", "x").Encode(), "invalid_client"},
			"a JWT-SVID as assertion": {form(subject, "client_assertion", token, "client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-spiffe").Encode(), "invalid_client"},
			"a refresh token wanted":  {form(subject, "requested_token_type", "urn:ietf:params:oauth:token-type:refresh_token").Encode(), "invalid_request"},
			"an ID token wanted":      {form(subject, "requested_token_type", "urn:ietf:params:oauth:token-type:id_token").Encode(), "invalid_request"},
			"a scope too many":        {form(subject, "scope", "postgres:select postgres:ddl").Encode(), "invalid_scope"},
			"a scope of everything":   {form(subject, "scope", "*").Encode(), "invalid_scope"},
			"a scope twice spaced":    {form(subject, "scope", "postgres:select  postgres:select").Encode(), "invalid_scope"},
			"offline access":          {form(subject, "scope", "openid offline_access").Encode(), "invalid_scope"},
			"wider details":           {form(subject, "authorization_details", `[{"type":"deputy_postgres","locations":["`+orders+`"],"actions":["delete"],"databases":["shop"]}]`).Encode(), "invalid_authorization_details"},
			"details without bounds":  {form(subject, "authorization_details", `[{"type":"deputy_postgres","locations":["`+orders+`"],"actions":["select"]}]`).Encode(), "invalid_authorization_details"},
			"details elsewhere":       {form(subject, "authorization_details", `[{"type":"deputy_postgres","locations":["`+crm+`"],"actions":["select"],"databases":["shop"]}]`).Encode(), "invalid_authorization_details"},
			"details of two places":   {form(subject, "authorization_details", `[{"type":"deputy_postgres","locations":["`+orders+`","`+crm+`"],"actions":["select"],"databases":["shop"]}]`).Encode(), "invalid_authorization_details"},
			"no details":              {form(subject, "authorization_details", `[]`).Encode(), "invalid_authorization_details"},
			"details twice":           {form(subject, "authorization_details", `[{"type":"deputy_postgres","type":"x"}]`).Encode(), "invalid_authorization_details"},
			"details a bomb":          {form(subject, "authorization_details", strings.Repeat("[", 20000)).Encode(), "invalid_authorization_details"},
			"another purpose":         {form(subject, "purpose", "world domination").Encode(), "invalid_request"},
			"a proxy as resource":     {form(subject, "resource", "spiffe://"+testmesh.TrustDomain+"/deputy/proxy/main").Encode(), "invalid_target"},
			"a path as resource":      {form(subject, "resource", "spiffe://"+testmesh.TrustDomain+"/target/../target/orders-db").Encode(), "invalid_target"},
			"an escape as resource":   {form(subject, "resource", "spiffe://"+testmesh.TrustDomain+"/target%2Forders-db").Encode(), "invalid_target"},
			"no subject":              {form("").Encode(), "invalid_request"},
			"half an escape":          {form(subject).Encode() + "&x=%", "invalid_request"},
			"semicolons":              {strings.ReplaceAll(form(subject).Encode(), "&", ";"), "invalid_request"},
			"60,000 parameters":       {form(subject).Encode() + strings.Repeat("&a", 20000), ""},
			"a huge form":             {form(subject).Encode() + "&x=" + strings.Repeat("x", 10<<20), "invalid_request"},
		} {
			t.Run(name, func(t *testing.T) {
				a := f.post(x.planner, "/token", c.body)
				if c.code == "" {
					return // whatever it says, nothing is said about it below
				}
				if a.Token != "" || a.Error != c.code || a.status < 400 || a.status >= 500 || strings.Contains(a.body, "refresh_token\":") {
					t.Errorf("want %s: %s", c.code, a)
				}
			})
		}
	})

	t.Run("requests", func(t *testing.T) {
		good := form(subject).Encode()
		const urlencoded = "application/x-www-form-urlencoded"
		for name, c := range map[string]struct {
			method, path, kind, body string
			headers                  map[string]string
		}{
			"GET with parameters":    {"GET", "/token?" + good, "", "", nil},
			"GET with a body":        {"GET", "/token", urlencoded, good, nil},
			"PUT":                    {"PUT", "/token", urlencoded, good, nil},
			"another method by name": {"GET", "/token", urlencoded, good, map[string]string{"X-HTTP-Method-Override": "POST"}},
			"parameters in the URL":  {"POST", "/token?" + good, urlencoded, "", nil},
			"parameters in both":     {"POST", "/token?resource=" + crm, urlencoded, good, nil},
			"JSON":                   {"POST", "/token", "application/json", `{"grant_type":"urn:ietf:params:oauth:grant-type:token-exchange"}`, nil},
			"no content type":        {"POST", "/token", "", good, nil},
			"multipart":              {"POST", "/token", "multipart/form-data; boundary=x", "--x\r\nContent-Disposition: form-data; name=\"grant_type\"\r\n\r\nx\r\n--x--", nil},
			"another charset":        {"POST", "/token", urlencoded + "; charset=utf-7", good, nil},
			"compressed":             {"POST", "/token", urlencoded, good, map[string]string{"Content-Encoding": "gzip"}},
			"basic authentication":   {"POST", "/token", urlencoded, good, map[string]string{"Authorization": "Basic eDp5"}},
			"a bearer token":         {"POST", "/token", urlencoded, good, map[string]string{"Authorization": "Bearer " + token}},
			"another path":           {"POST", "/token/", urlencoded, good, nil},
			"a path with dots":       {"POST", "/jwks/../token", urlencoded, good, nil},
			"the operators' path":    {"POST", "/operator/v1/revocations", "application/json", `{}`, nil},
			"discovery":              {"GET", "/.well-known/oauth-authorization-server", "", "", nil},
			"debugging":              {"GET", "/debug/pprof/", "", "", nil},
		} {
			t.Run(name, func(t *testing.T) {
				cl := *f.client(x.planner)
				cl.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
				a := answer{status: http.StatusTooManyRequests}
				for ; a.status == http.StatusTooManyRequests; time.Sleep(50 * time.Millisecond) { // what is limited isn't looked at
					req, err := http.NewRequest(c.method, "https://"+f.Address("token")+c.path, strings.NewReader(c.body))
					if err != nil {
						t.Fatal(err)
					}
					if c.kind != "" {
						req.Header.Set("Content-Type", c.kind)
					}
					for k, v := range c.headers {
						req.Header.Set(k, v)
					}
					resp, err := cl.Do(req)
					if err != nil {
						t.Fatal(err)
					}
					a = readAnswer(t, resp)
				}
				if a.Token != "" || a.status < 300 || a.status >= 500 {
					t.Errorf("%s", a)
				}
			})
		}
		// Identity headers of a load balancer say nothing about who calls.
		req, err := http.NewRequest("POST", "https://"+f.Address("token")+"/token", strings.NewReader(good))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", urlencoded)
		req.Header.Set("X-Forwarded-Client-Cert", "URI="+x.planner.ID.String())
		req.Header.Set("X-Client-Spiffe-Id", x.planner.ID.String())
		req.Host = "evil.example"
		resp, err := f.client(x.b).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if a := readAnswer(t, resp); a.status == http.StatusOK || !strings.Contains(a.Text, "grant.delegate") {
			t.Errorf("with headers of somebody else: %s", a)
		}
	})

	// What two readers of HTTP/1.1 would cut differently is no request, or one that ends the connection.
	t.Run("smuggling", func(t *testing.T) {
		inner := "POST /token HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 3\r\n\r\na=b"
		for name, raw := range map[string]string{
			"two lengths":               "POST /token HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nContent-Length: " + fmt.Sprint(len(inner)) + "\r\n\r\n" + inner,
			"length and chunks":         "POST /token HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + inner,
			"chunks, misspelt":          "POST /token HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
			"chunks twice":              "POST /token HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
			"a space before the colon":  "POST /token HTTP/1.1\r\nHost: x\r\nContent-Length : 3\r\n\r\na=b",
			"a folded header":           "POST /token HTTP/1.1\r\nHost: x\r\n Transfer-Encoding: chunked\r\n\r\n",
			"a negative length":         "POST /token HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
			"no host":                   "POST /token HTTP/1.1\r\n\r\n",
			"two hosts":                 "POST /token HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
			"a header of 1 MiB":         "POST /token HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 1<<20) + "\r\n\r\n",
			"a line that doesn't end":   strings.Repeat("x", 1<<20),
			"CONNECT":                   "CONNECT 127.0.0.1:" + strings.Split(f.Address("web"), ":")[1] + " HTTP/1.1\r\nHost: x\r\n\r\n",
			"HTTP/2 in plain, upgraded": "POST /token HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\nContent-Length: 0\r\n\r\n",
		} {
			t.Run(name, func(t *testing.T) {
				cfg := f.tls(x.planner)
				conn, err := tls.Dial("tcp", f.Address("token"), cfg)
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				_ = conn.SetDeadline(time.Now().Add(patience))
				_, _ = io.WriteString(conn, raw) // it may hang up before the end
				r := bufio.NewReader(conn)
				for answers := 0; ; answers++ {
					resp, err := http.ReadResponse(r, nil)
					if err != nil {
						break
					}
					body, _ := io.ReadAll(resp.Body)
					if resp.StatusCode < 400 || bytes.Contains(body, []byte("access_token")) || answers > 0 {
						t.Errorf("answer %d: HTTP %d %.100q", answers, resp.StatusCode, body)
					}
					if resp.Close || resp.StatusCode == 400 {
						break
					}
					_ = conn.SetReadDeadline(time.Now().Add(200 * time.Millisecond)) // a second answer would be the attack
				}
			})
		}
	})

	t.Run("HTTP/2 without end", func(t *testing.T) {
		cfg := f.tls(x.planner)
		cfg.NextProtos = []string{"h2"}
		conn, err := tls.Dial("tcp", f.Address("token"), cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if conn.ConnectionState().NegotiatedProtocol != "h2" {
			return // nothing to attack
		}
		before := residentPeak(t, f.Broker.Pid())
		_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
		_, _ = io.WriteString(conn, http2.ClientPreface)
		fr := http2.NewFramer(conn, conn)
		_ = fr.WriteSettings()
		go func() { _, _ = io.Copy(io.Discard, conn) }()
		var head bytes.Buffer
		enc := hpack.NewEncoder(&head)
		for _, h := range [][2]string{{":method", "POST"}, {":scheme", "https"}, {":path", "/token"}, {":authority", "x"}} {
			_ = enc.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]})
		}
		// Rapid reset (CVE-2023-44487), and headers that go on (CVE-2023-45288), until it hangs up.
		var failed error
		for id := uint32(1); id < 40_000 && failed == nil; id += 2 {
			failed = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: head.Bytes(), EndHeaders: true})
			if failed == nil {
				failed = fr.WriteRSTStream(id, http2.ErrCodeCancel)
			}
		}
		if failed == nil {
			_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 50_001, BlockFragment: head.Bytes()})
			for range 100_000 {
				if failed = fr.WriteContinuation(50_001, false, bytes.Repeat([]byte{0x00, 0x01, 'x', 0x01, 'y'}, 1000)); failed != nil {
					break
				}
			}
		}
		if failed == nil {
			t.Error("the broker listens to all of it")
		}
		if grown := residentPeak(t, f.Broker.Pid()) - before; grown > 128<<20 {
			t.Errorf("the broker grew by %d MiB", grown>>20)
		}
	})

	// It still works, for the agent whose requests these were and for others.
	f.ok(f.exchange(x.planner, subject))
	f.ok(f.exchange(x.a, join(f.pass(x.planner, x.a, root), subject)))
	f.Verify(t)
}
