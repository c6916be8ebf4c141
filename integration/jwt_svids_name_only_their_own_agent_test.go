package integration_test

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/internal/testmesh"
)

// Programs in an agent get JWT-SVIDs by go-spiffe's own client: of that agent and no other, for services that aren't Deputy's,
// each on record before it is there. Nothing in the mesh takes one for a statement of its own.
func TestJWTSVIDsNameOnlyTheirOwnAgent(t *testing.T) {
	f := newForge(t)
	alice := f.Login(t, "alice")
	dir, probe := openFolder(t, f.Mesh), testmesh.Program(t, "agentprobe")
	bundle, err := jwtbundle.Parse(spiffeid.RequireTrustDomainFromString(testmesh.TrustDomain), f.readFile(t, "public", "jwt-bundle.json"))
	if err != nil {
		t.Fatal(err)
	}

	get := func(t *testing.T, name string, agents ...string) *jwtsvid.SVID {
		t.Helper()
		file := filepath.Join(dir, name)
		script := "export A_ISSUER=" + f.IssuerSocket() + " A_BROKER=" + f.meshURL() + "\nexec " + probe + " jwt " + file + " spiffe://test.example/deputy/broker spiffe://test.example/app/x"
		r := alice.Run(t, agents, "sh", "-c", script)
		own := strings.Count(r.Stdout, "\tSERVED")
		refused := 2 + 6 + 1 // names, audiences, the issuer itself
		if len(agents) > 1 {
			refused++ // its parent
		}
		if r.Code != 0 || own != 0 || !strings.HasSuffix(r.Stdout, "streams true true\nover\n") || strings.Count(r.Stdout, "\trefused: ") != refused ||
			!strings.Contains(r.Stdout, "mine true spiffe://test.example/agent/") || !strings.Contains(r.Stdout, " 5 [https://api.example reports] true true\n") ||
			strings.Count(r.Stdout, "nobody gets a JWT-SVID of another") != refused-7 || strings.Count(r.Stdout, "isn't its supervisor") != 1 {
			t.Fatalf("%d refusals wanted: %s", refused, r)
		}
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		// What `deputy init` published is enough to verify it.
		v, err := jwtsvid.ParseAndValidate(string(raw), bundle, []string{"https://api.example"})
		if err != nil {
			t.Fatal(err)
		}
		if r := f.Record(t, "issuer", audit.RecordID(v.Claims["jti"].(string))); r == nil || r.Event.(*audit.JWTSVID).Subject != v.ID.String() || r.Event.(*audit.JWTSVID).Result != audit.Accepted {
			t.Errorf("the record of %s: %+v", v.ID, r)
		}
		return v
	}
	for _, c := range []struct {
		name   string
		agents []string
		depth  int
	}{
		{"an agent", []string{"planner"}, 1}, {"a child", []string{"planner", "researcher"}, 2},
		{"without isolation", []string{"planner --no-isolate"}, 1}, {"a child without isolation", []string{"planner --no-isolate", "researcher --no-isolate"}, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := get(t, strings.ReplaceAll(c.name, " ", "-"), c.agents...)
			if id, err := actor.ParseAgentID(v.ID); err != nil || id.Depth() != c.depth {
				t.Errorf("it names %s", v.ID)
			}
		})
	}

	t.Run("and is no credential", func(t *testing.T) {
		x := f.trees(t, 1)[0]
		dora := f.idp.signIn(t, "dora")
		root := f.root(dora, x.planner)
		good := f.flow(dora, root, testmesh.Target, x.planner, x.a)
		f.mustServe(good, f.Address("target"))
		token, grant := good.parts[0], good.parts[1]
		key := f.privateKey(t, "issuer", "jwt.key")
		jwt := func(sub, audience, more string) string {
			now := time.Now().Unix()
			j := rawJWS{
				header: fmt.Sprintf(`{"alg":"ES256","kid":%q,"typ":"JWT"}`, actor.NonceFor(&key.PublicKey)),
				claims: fmt.Sprintf(`{"sub":%q,"aud":%s,"iat":%d,"exp":%d,"jti":%q%s}`, sub, audience, now, now+300, actor.NewHexID(), more), sign: es256(t, key),
			}
			return j.String()
		}
		orders := targetID(testmesh.Target).String()
		// The issuer signs none of these but the first. Even by its key they are nothing here.
		for name, svid := range map[string]string{
			"as it is":           jwt(x.a.ID.String(), `["https://api.example"]`, ""),
			"for the target":     jwt(x.a.ID.String(), fmt.Sprintf(`[%q]`, orders), ""),
			"for the broker":     jwt(x.a.ID.String(), fmt.Sprintf(`[%q]`, f.meshURL()), ""),
			"as the broker says": jwt(x.a.ID.String(), fmt.Sprintf("%q", orders), fmt.Sprintf(`,"iss":%q`, f.meshURL())),
			"as an ID token":     jwt("dora", fmt.Sprintf("%q", testmesh.ClientID), fmt.Sprintf(`,"iss":%q,"nonce":%q`, f.idp.URL, actor.NonceFor(dora.key.Public()))),
		} {
			for place, credential := range map[string]string{
				"alone":        svid,
				"the token":    join(svid, grant, root, dora.idToken),
				"a grant":      join(token, svid, root, dora.idToken),
				"the root":     join(token, grant, svid, dora.idToken),
				"the ID token": join(token, grant, root, svid),
			} {
				if in, why := f.letIn(x.a, f.Address("target"), credential); in || !strings.HasPrefix(why, "28") {
					t.Errorf("%s, in place of %s: the proxy let it in: %v %s", name, place, in, why)
				}
			}
			for place, subject := range map[string]string{
				"alone": svid, "a grant": join(svid, root, dora.idToken), "the root": join(grant, svid, dora.idToken), "the ID token": join(grant, root, svid),
			} {
				if a := f.exchange(x.a, subject); a.status == http.StatusOK || a.Token != "" {
					t.Errorf("%s, in place of %s: the broker exchanged it: %s", name, place, a)
				}
			}
			for what, pairs := range map[string][]string{
				"as the client": {"client_assertion", svid, "client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-spiffe"},
				"as the actor":  {"actor_token", svid, "actor_token_type", "urn:ietf:params:oauth:token-type:jwt"},
			} {
				if a := f.exchange(x.a, join(grant, root, dora.idToken), pairs...); a.status == http.StatusOK || a.Token != "" {
					t.Errorf("%s, %s: the broker exchanged with it: %s", name, what, a)
				}
			}
			if status := f.operatorCall(t, svid, dora); status != http.StatusUnauthorized {
				t.Errorf("%s: an operator's call with it: HTTP %d", name, status)
			}
		}
		f.mustServe(good, f.Address("target"))
	})
	f.Verify(t)
	agrees(t, testmesh.Result{}, f.KeysFile(), f.LogDir("issuer"))
}

// operatorCall asks for a revocation with a bearer token, proven by a user's key, and returns the status.
func (f *forge) operatorCall(t *testing.T, bearer string, by *signIn) int {
	t.Helper()
	body := `{"kind":"user","iss":"x","value":"y","reason":"z"}`
	now := time.Now()
	proof, err := actor.SignOperatorRequest(by.key, actor.OperatorRequest{
		Issuer: by.user.Issuer, Mesh: f.meshURL(), Act: "revoke", Body: sha256.Sum256([]byte(body)), IssuedAt: now, Expires: now.Add(time.Minute), ID: actor.NewHexID(),
	})
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(f.readFile(t, "agent", "web-ca.pem"))
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequest(http.MethodPost, "https://"+f.Address("web")+"/operator/v1/revocations", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+bearer)
	req.Header.Set("Deputy-Operator-Proof", proof)
	resp, err := (&http.Client{Transport: transport, Timeout: patience}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	return resp.StatusCode
}
