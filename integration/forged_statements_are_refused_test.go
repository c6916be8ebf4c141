package integration_test

import (
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/internal/testca"
	"github.com/deputymesh/deputy/internal/testmesh"
)

// A statement that isn't exactly what the specification allows is refused, by the broker where it exchanges and by the proxy
// where it is used, even when the key that signed it is the right one.
func TestForgedStatementsAreRefused(t *testing.T) {
	f := newForge(t)
	x := f.trees(t, 1)[0]
	dora := f.idp.signIn(t, "dora")
	tokenKey := f.privateKey(t, "broker", "token.key")
	root := f.root(dora, x.planner)
	good := f.flow(dora, root, testmesh.Target, x.planner, x.a)
	f.mustServe(good, f.Address("target"))
	token, grant := good.parts[0], good.parts[1]

	atBroker := func(t *testing.T, as *x509svid.SVID, subject string, classes ...string) {
		t.Helper()
		a := f.exchange(as, subject)
		if a.status == http.StatusOK || a.Token != "" || a.Error != "invalid_request" && a.Error != "invalid_authorization_details" || !anyIn(a.Text, classes) {
			t.Errorf("want a refusal with %v: %s", classes, a)
		}
	}
	atProxy := func(t *testing.T, credential string, classes ...string) {
		t.Helper()
		if in, why := f.letIn(x.a, f.Address("target"), credential); in || !strings.HasPrefix(why, "28") || !anyIn(why, classes) {
			t.Errorf("let in is %v, want a refusal with %v: %s", in, classes, why)
		}
	}
	// under countersigns other grants as a broker would that looks at nothing.
	under := func(head, like string) string {
		return f.countersign(t, like, tokenKey, func(tok *actor.Token) { tok.Head = actor.Hash(head) })
	}

	for _, c := range formForgeries() {
		t.Run(c.name, func(t *testing.T) {
			badRoot := c.make(t, apart(t, root, dora.key))
			atBroker(t, x.planner, badRoot+"~"+dora.idToken, c.classes...)
			badGrant := c.make(t, apart(t, grant, keyOf(t, x.planner)))
			atBroker(t, x.a, join(badGrant, root, dora.idToken), c.classes...)
			atProxy(t, join(under(badGrant, token), badGrant, root, dora.idToken), c.classes...)
			atProxy(t, join(c.make(t, apart(t, token, tokenKey)), grant, root, dora.idToken), c.classes...)
		})
	}

	t.Run("key members", func(t *testing.T) {
		jwk := jwkOf(&testca.NewKey(t).PublicKey)
		x5c := `"x5c":["` + strings.Repeat("A", 40) + `"]`
		for name, bad := range map[string]struct{ statement, class string }{
			"a grant with jwk":          {in(add(`"jwk":`+jwk))(t, apart(t, grant, keyOf(t, x.planner))), "header.member"},
			"a grant with kid":          {in(add(`"kid":"../../etc/passwd"`))(t, apart(t, grant, keyOf(t, x.planner))), "header.member"},
			"a grant without x5c":       {in(header(`"x5c":`, `"x5u":`))(t, apart(t, grant, keyOf(t, x.planner))), "header.member"},
			"a grant with a broken x5c": {in(func(j *rawJWS) { j.header = `{"alg":"ES256","typ":"deputy-grant+jwt",` + x5c + `}` })(t, apart(t, grant, keyOf(t, x.planner))), "header.key"},
		} {
			t.Run(name, func(t *testing.T) {
				atBroker(t, x.a, join(bad.statement, root, dora.idToken), bad.class)
				atProxy(t, join(under(bad.statement, token), bad.statement, root, dora.idToken), bad.class)
			})
		}
		for name, bad := range map[string]struct{ statement, class string }{
			"a token with an unknown kid": {in(func(j *rawJWS) { j.header = replaced(j.header, `"kid":"`, `"kid":"A`) })(t, apart(t, token, tokenKey)), "token.key"},
			"a token with its own jwk":    {in(add(`"jwk":`+jwk))(t, apart(t, token, tokenKey)), "header.member"},
			"a token with x5c":            {in(add(x5c))(t, apart(t, token, tokenKey)), "header.member"},
		} {
			t.Run(name, func(t *testing.T) { atProxy(t, join(bad.statement, grant, root, dora.idToken), bad.class) })
		}
		thief := testca.NewKey(t)
		stolen := apart(t, root, thief)
		stolen.header = `{"alg":"ES256","jwk":` + jwkOf(&thief.PublicKey) + `,"typ":"deputy-user-grant+jwt"}`
		atBroker(t, x.planner, stolen.String()+"~"+dora.idToken, "root.nonce")
	})

	// Each kind in the place of each other, by the key of the place: only typ tells them apart then.
	t.Run("one kind for another", func(t *testing.T) {
		operator, err := actor.SignOperatorRequest(dora.key, actor.OperatorRequest{
			Issuer: dora.user.Issuer, Mesh: f.meshURL(), Act: "revoke", IssuedAt: time.Now(), Expires: time.Now().Add(time.Minute), ID: actor.NewHexID(),
		})
		if err != nil {
			t.Fatal(err)
		}
		kinds := map[string]string{
			"token": token, "grant": grant, "user grant": root, "ID token": dora.idToken, "operator request": operator,
			"key statement": string(f.readFile(t, "broker", "token-key.jwt")), "policy set": string(f.readFile(t, "broker", "policy.jwt")),
			"JWT-SVID": (rawJWS{`{"alg":"ES256","kid":"k","typ":"JWT"}`, `{"sub":"` + x.planner.ID.String() + `","aud":["x"],"exp":9999999999}`, es256(t, keyOf(t, x.planner))}).String(),
		}
		for name, other := range kinds {
			t.Run(name, func(t *testing.T) {
				if name != "user grant" {
					notGood(t, f.exchange(x.planner, join(other, dora.idToken)))
				}
				if name != "grant" {
					notGood(t, f.exchange(x.a, join(other, root, dora.idToken)))
				}
				if name != "ID token" {
					notGood(t, f.exchange(x.a, join(grant, root, other)))
				}
				for _, subjectType := range []string{"urn:ietf:params:oauth:token-type:id_token", "urn:ietf:params:oauth:token-type:jwt", "urn:ietf:params:oauth:token-type:access_token", "urn:deputy:token-type:grants"} {
					notGood(t, f.exchange(x.a, other, "subject_token_type", subjectType))
				}
				if name != "token" {
					atProxy(t, join(other, grant, root, dora.idToken), "")
				}
				if status := operatorCall(t, f.Mesh, dora.idToken, other); status != http.StatusUnauthorized {
					t.Errorf("as an operator's proof: HTTP %d", status)
				}
				if name != "ID token" {
					if status := operatorCall(t, f.Mesh, other, operator); status != http.StatusUnauthorized {
						t.Errorf("as an operator's ID token: HTTP %d", status)
					}
				}
			})
		}
	})

	t.Run("an ID token by another rule", func(t *testing.T) {
		wrong := newProvider(t) // nobody believes it
		for name, change := range map[string]func(map[string]any){
			"another audience": func(c map[string]any) { c["aud"] = "somebody-else" },
			"another issuer":   func(c map[string]any) { c["iss"] = wrong.URL },
			"the issuer, almost": func(c map[string]any) {
				c["iss"] = strings.Replace(f.idp.URL, "https://", "HTTPS://", 1)
			},
			"the issuer with a slash": func(c map[string]any) { c["iss"] = f.idp.URL + "/" },
			"expired":                 func(c map[string]any) { c["exp"] = time.Now().Add(-time.Hour).Unix() },
			"no expiry":               func(c map[string]any) { delete(c, "exp") },
			"no subject":              func(c map[string]any) { delete(c, "sub") },
			"an agent as subject":     func(c map[string]any) { c["sub"] = "\u202e" + x.planner.ID.String() },
			"no nonce":                func(c map[string]any) { delete(c, "nonce") },
			"from tomorrow":           func(c map[string]any) { c["auth_time"] = time.Now().Add(24 * time.Hour).Unix() },
			"from last week":          func(c map[string]any) { c["auth_time"] = time.Now().Add(-7 * 24 * time.Hour).Unix() },
		} {
			t.Run(name, func(t *testing.T) {
				l := f.idp.signIn(t, "fred", change)
				if l.user.Subject == "<nil>" || strings.HasPrefix(l.user.Subject, "\u202e") {
					l.user.Subject = "fred"
				}
				if strings.HasPrefix(l.user.Issuer, "HTTPS") { // no grant can be written for such an issuer
					l.user.Issuer = f.idp.URL
				}
				notGood(t, f.exchange(x.planner, join(f.root(l, x.planner), l.idToken)))
			})
		}
		t.Run("of another provider under this one's name", func(t *testing.T) {
			l := wrong.signIn(t, "dora", func(c map[string]any) { c["iss"] = f.idp.URL })
			notGood(t, f.exchange(x.planner, join(f.root(l, x.planner), l.idToken)))
		})
		for name, alg := range map[string]string{"alg none": "none", "alg HS256": "HS256", "alg RS256": "RS256"} {
			t.Run(name, func(t *testing.T) {
				j := apart(t, dora.idToken, f.idp.key)
				j.header = replaced(j.header, `"ES256"`, `"`+alg+`"`)
				l := *dora
				l.idToken = j.String()
				notGood(t, f.exchange(x.planner, join(f.root(&l, x.planner), l.idToken)))
			})
		}
	})

	t.Run("names that look alike", func(t *testing.T) {
		parent, child := x.planner.ID.String(), x.a.ID.String()
		for name, change := range map[string]func(*rawJWS){
			"dots in a delegate":           claims(`"delegate":"`+child+`"`, `"delegate":"`+parent+`/../`+strings.TrimPrefix(child, parent+"/")+`"`),
			"an escaped slash":             claims(`"delegate":"`+child+`"`, `"delegate":"`+strings.Replace(child, "/researcher/", "%2Fresearcher/", 1)+`"`),
			"a slash at the end":           claims(`"delegate":"`+child+`"`, `"delegate":"`+child+`/"`),
			"two slashes":                  claims(`"delegate":"`+child+`"`, `"delegate":"`+strings.Replace(child, "/researcher", "//researcher", 1)+`"`),
			"the host in capitals":         claims(`"delegate":"spiffe://`+testmesh.TrustDomain, `"delegate":"spiffe://`+strings.ToUpper(testmesh.TrustDomain)),
			"the scheme in capitals":       claims(`"delegate":"spiffe:`, `"delegate":"SPIFFE:`),
			"another trust domain":         claims(`"delegate":"spiffe://`+testmesh.TrustDomain, `"delegate":"spiffe://evil.example`),
			"a port":                       claims(`"delegate":"spiffe://`+testmesh.TrustDomain, `"delegate":"spiffe://`+testmesh.TrustDomain+`:443`),
			"a query":                      claims(`"delegate":"`+child+`"`, `"delegate":"`+child+`?x"`),
			"a longer name of the child":   claims(`"delegate":"`+child+`"`, `"delegate":"`+strings.Replace(child, "/researcher/", "/researcher-admin/", 1)+`"`),
			"a shorter name of the child":  claims(`"delegate":"`+child+`"`, `"delegate":"`+strings.Replace(child, "/researcher/", "/res/", 1)+`"`),
			"a role":                       claims(`"delegate":"`+child+`"`, `"delegate":"spiffe://`+testmesh.TrustDomain+`/deputy/proxy/main"`),
			"the trust domain itself":      claims(`"delegate":"`+child+`"`, `"delegate":"spiffe://`+testmesh.TrustDomain+`"`),
			"another name of the parent":   claims(`"iss":"`+parent+`"`, `"iss":"`+strings.Replace(parent, "/planner/", "/planner2/", 1)+`"`),
			"a Cyrillic letter in a name":  claims(`"delegate":"`+child+`"`, `"delegate":"`+strings.Replace(child, "/researcher/", "/rеsearcher/", 1)+`"`),
			"a user with another issuer":   claims(`"sub_id":{"format":"iss_sub","iss":"`+f.idp.URL, `"sub_id":{"format":"iss_sub","iss":"`+f.Provider),
			"a user with another format":   claims(`"format":"iss_sub"`, `"format":"email"`),
			"a list where one name is due": claims(`"delegate":"`+child+`"`, `"delegate":["`+child+`"]`),
		} {
			t.Run(name, func(t *testing.T) {
				bad := in(change)(t, apart(t, grant, keyOf(t, x.planner)))
				notGood(t, f.exchange(x.a, join(bad, root, dora.idToken)))
				atProxy(t, join(under(bad, token), bad, root, dora.idToken), "")
			})
		}
		// The SVID itself under names that aren't names: the mesh's own authority signs them, and still.
		for _, raw := range []string{
			parent + "/../planner/" + strings.Repeat("0", 32), parent + "%2F..", parent + "/", "spiffe://" + testmesh.TrustDomain + "/agent",
			"spiffe://" + testmesh.TrustDomain + "/agent/planner", "spiffe://" + testmesh.TrustDomain + "/agentx/planner/" + strings.Repeat("0", 32),
			"spiffe://" + testmesh.TrustDomain + "/deputy/planner/" + strings.Repeat("0", 32), "spiffe://" + testmesh.TrustDomain,
			strings.Replace(parent, "planner", "Planner", 1), "https://" + testmesh.TrustDomain + "/agent/x",
		} {
			u, err := url.Parse(raw)
			if err != nil {
				t.Fatal(err)
			}
			odd := f.mint(x.planner, x.planner.PrivateKey, testca.URIs(u))
			if in, why := f.letIn(odd, f.Address("target"), good.credential()); in || strings.HasPrefix(why, "28000") && !strings.Contains(why, "presenter") {
				t.Errorf("%s at the proxy: let in is %v: %s", raw, in, why)
			}
			resp, err := f.client(odd).Post("https://"+f.Address("token")+"/token", "application/x-www-form-urlencoded", strings.NewReader(form(join(root, dora.idToken)).Encode()))
			if err == nil {
				if a := readAnswer(t, resp); a.status == http.StatusOK || a.Token != "" {
					t.Errorf("%s at the broker: %s", raw, a)
				}
			}
		}
		two := f.mint(x.planner, x.planner.PrivateKey, testca.URIs(x.planner.ID.URL(), x.a.ID.URL()))
		if in, why := f.letIn(two, f.Address("target"), good.credential()); in || strings.HasPrefix(why, "28000") {
			t.Errorf("a certificate with two names: let in is %v, %s", in, why)
		}
	})
	f.Verify(t)
}

func notGood(t *testing.T, a answer) {
	t.Helper()
	if a.status == http.StatusOK || a.Token != "" || a.status >= 500 || a.Error == "" {
		t.Errorf("want a refusal in OAuth's words: %s", a)
	}
}

func join(parts ...string) string { return strings.Join(parts, "~") }

func anyIn(text string, words []string) bool {
	for _, w := range words {
		if strings.Contains(text, w) {
			return true
		}
	}
	return len(words) == 0
}

func jwkOf(k *ecdsa.PublicKey) string {
	raw, err := k.Bytes() // 4, x, y
	if err != nil {
		panic(err)
	}
	return fmt.Sprintf(`{"crv":"P-256","kty":"EC","x":%q,"y":%q}`, b64(raw[1:33]), b64(raw[33:]))
}

// privateKey reads a key of the mesh's.
func (f *forge) privateKey(t testing.TB, name ...string) *ecdsa.PrivateKey {
	t.Helper()
	block, _ := pem.Decode(f.readFile(t, name...))
	if block == nil {
		t.Fatalf("no key in %s", filepath.Join(name...))
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	k, ok := key.(*ecdsa.PrivateKey)
	if !ok {
		t.Fatalf("a key of type %T", key)
	}
	return k
}

// countersign makes another token out of a good one, with the broker's own key.
func (f *forge) countersign(t testing.TB, like string, key *ecdsa.PrivateKey, change func(*actor.Token)) string {
	t.Helper()
	tok, err := actor.ParseToken(like)
	if err != nil {
		t.Fatal(err)
	}
	change(&tok)
	out, err := actor.SignToken(key, actor.NonceFor(key.Public()), tok)
	if err != nil {
		t.Fatal(err)
	}
	return out
}
