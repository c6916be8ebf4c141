package broker_test

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/broker"
	"github.com/deputymesh/deputy/internal/testca"
	"github.com/deputymesh/deputy/policy"
)

func (m *mesh) get(path string) (int, string) {
	m.t.Helper()
	resp, err := m.web.Get("https://" + m.webAddr + path)
	if err != nil {
		m.t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		m.t.Fatal(err)
	}
	return resp.StatusCode, string(raw)
}

func TestMetadataAndKeys(t *testing.T) {
	m := newMesh(t, func(m *mesh) { m.cfg.TokenURL = "https://mesh.corp.example:7401" })
	code, body := m.get("/.well-known/oauth-authorization-server")
	var doc map[string]any
	if code != http.StatusOK || json.Unmarshal([]byte(body), &doc) != nil {
		t.Fatalf("%d %s", code, body)
	}
	for k, want := range map[string]any{
		"issuer": meshURL, "token_endpoint": "https://mesh.corp.example:7401/token", "jwks_uri": meshURL + "/jwks",
		"revocation_endpoint": "https://mesh.corp.example:7401/revoke", "tls_client_certificate_bound_access_tokens": true,
	} {
		if doc[k] != want {
			t.Errorf("%s is %v, want %v", k, doc[k], want)
		}
	}
	code, body = m.get("/jwks")
	var set jose.JSONWebKeySet
	if err := json.Unmarshal([]byte(body), &set); err != nil || code != http.StatusOK || len(set.Keys) != 1 {
		t.Fatalf("%d %s", code, body)
	}
	f := m.flow("alice")
	token, err := jose.ParseSignedCompact(m.ok(m.exchange(f.planner, join(f.root, f.login.idToken))), []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		t.Fatal(err)
	}
	keys := set.Key(token.Signatures[0].Header.KeyID)
	if len(keys) != 1 || !keys[0].IsPublic() {
		t.Fatalf("keys of the token's kid: %v", keys)
	}
	if _, err := token.Verify(keys[0].Key); err != nil {
		t.Error(err)
	}
	// What belongs to agents isn't on the web listener.
	for _, path := range []string{"/token", "/revoke", "/", "/operator/v1/revocations"} {
		if code, _ := m.get(path); code != http.StatusNotFound && code != http.StatusMethodNotAllowed {
			t.Errorf("GET %s: %d", path, code)
		}
	}
}

func TestMetadataOfAMeshWithAPath(t *testing.T) {
	m := newMesh(t, func(m *mesh) {
		m.cfg.Mesh = meshURL + "/mesh"
		certifying := testca.NewKey(t)
		s, err := actor.SignKeyStatement(certifying, actor.KeyStatement{Mesh: m.cfg.Mesh, Key: m.cert.Key, NotBefore: m.cert.NotBefore, Expires: m.cert.Expires})
		if err != nil {
			t.Fatal(err)
		}
		m.cfg.TokenKeyStatement, m.cfg.CertifyingKey = s, &certifying.PublicKey
	})
	code, body := m.get("/.well-known/oauth-authorization-server/mesh")
	if code != http.StatusOK || !strings.Contains(body, `"issuer":"https://broker.corp.example/mesh"`) || !strings.Contains(body, `"jwks_uri":"https://broker.corp.example/mesh/jwks"`) {
		t.Errorf("%d %s", code, body)
	}
	if code, _ := m.get("/mesh/jwks"); code != http.StatusOK {
		t.Errorf("keys: %d", code)
	}
	if code, _ := m.get("/.well-known/oauth-authorization-server"); code != http.StatusNotFound {
		t.Errorf("the metadata of another issuer: %d", code)
	}
}

func TestPolicyIsPublishedAndNeverFalls(t *testing.T) {
	key := testca.NewKey(t)
	set := func(version uint64) string {
		s, err := policy.Sign(key, policy.Source{
			Version: version, Schema: policy.SchemaID, IssuedAt: time.Now().Unix(),
			Files:   map[string]string{"a.cedar": "@id(\"nobody\")\nforbid (principal, action, resource);\n"},
			Targets: map[string]policy.Target{"orders-db": {Kind: "postgres"}},
		})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	m := newMesh(t, func(m *mesh) {
		m.cfg.PolicyKeys = append(m.cfg.PolicyKeys, &key.PublicKey)
		m.cfg.Policy = set(3)
	})
	p, snapshot, err := m.proxy(t.Context(), m.ca.SVID(m.ca.ID("/deputy/proxy/orders")), "orders-db")
	if err != nil {
		t.Fatal(err)
	}
	if snapshot.PolicySet != m.cfg.Policy {
		t.Errorf("the first set is %.40q", snapshot.PolicySet)
	}
	admin := m.admin()
	publish := func(body string) operatorReply { return admin.call("/operator/v1/policy", "policy", []byte(body)) }
	four := set(4)
	if r := publish(four); r.status != http.StatusOK || r.Version != 4 || r.Revision != snapshot.Revision+1 {
		t.Fatalf("%s %+v", r.reply, r)
	}
	if u := p.delta(); u.PolicySet != four || u.Revision != snapshot.Revision+1 {
		t.Errorf("delta: %+v", u)
	}
	stranger := testca.NewKey(t)
	foreign, err := policy.Sign(stranger, policy.Source{Version: 9, Schema: policy.SchemaID, IssuedAt: 1, Files: map[string]string{"a.cedar": "@id(\"x\")\nforbid (principal, action, resource);"}})
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		body string
		want int
	}{
		"the same again":    {four, http.StatusConflict},
		"an older one":      {set(3), http.StatusConflict},
		"by another key":    {foreign, http.StatusBadRequest},
		"garbage":           {"x.y.z", http.StatusBadRequest},
		"signed for others": {m.cfg.TokenKeyStatement, http.StatusBadRequest},
	} {
		if r := publish(tc.body); r.status != tc.want {
			t.Errorf("%s: %s", name, r.reply)
		}
	}
	// A restart with the old file keeps the newer set.
	m.stop()
	m.start()
	_, snapshot, err = m.proxy(t.Context(), m.ca.SVID(m.ca.ID("/deputy/proxy/orders")), "orders-db")
	if err != nil || snapshot.PolicySet != four {
		t.Errorf("after the restart: %.40q %v", snapshot.PolicySet, err)
	}
	loaded := events[*audit.PolicyLoaded](m)
	if len(loaded) != 5 || loaded[0].Version != 3 || loaded[1].Version != 4 || loaded[2].Result != audit.Refusal {
		t.Errorf("recorded: %+v", loaded)
	}
}

func TestABrokerWhoseKeysDontFitDoesNotStart(t *testing.T) {
	m := newMesh(t)
	m.stop()
	for name, change := range map[string]func(*broker.Config){
		"a statement by another key":    func(c *broker.Config) { c.CertifyingKey = &testca.NewKey(t).PublicKey },
		"a statement for another key":   func(c *broker.Config) { c.TokenKey = testca.NewKey(t) },
		"a statement of another mesh":   func(c *broker.Config) { c.Mesh = "https://other.example" },
		"no provider":                   func(c *broker.Config) { c.Providers = nil },
		"a token that lives too long":   func(c *broker.Config) { c.TokenTTL = time.Hour },
		"a policy that isn't ours":      func(c *broker.Config) { c.Policy = m.cfg.TokenKeyStatement },
		"more actors than can be had":   func(c *broker.Config) { c.MaxActors = 20 },
		"no issuer":                     func(c *broker.Config) { c.IssuerSocket = "" },
		"a provider by an odd protocol": func(c *broker.Config) { c.Providers[0].Algorithms = []string{"HS256"} },
	} {
		cfg := m.cfg
		cfg.Providers = append(cfg.Providers[:0:0], cfg.Providers...)
		change(&cfg)
		if _, err := broker.New(t.Context(), cfg); err == nil {
			t.Errorf("%s: it was made", name)
		}
	}
}
