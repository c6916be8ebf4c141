package audit_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	jose "github.com/go-jose/go-jose/v4"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/audit"
)

// credentialVectors is what the vectors of the credential say about one valid credential, so that those of the log rest
// on the same keys.
type credentialWorld struct {
	td         spiffeid.TrustDomain
	mesh       string
	target     spiffeid.ID
	certifying *ecdsa.PublicKey
	statement  string
	authority  *x509.Certificate
	credential string
	peer       []*x509.Certificate
	idp, aud   string
	idpKey     *ecdsa.PublicKey
	jwks       []byte
}

func readJSON(t testing.TB, path string, into any) {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(raw, into)
	}
	if err != nil {
		t.Fatal(err)
	}
}

type vectorJWK struct{ Kty, Crv, X, Y string }

func (j vectorJWK) key(t testing.TB) *ecdsa.PublicKey {
	t.Helper()
	point := []byte{4}
	for _, part := range []string{j.X, j.Y} {
		b, err := base64.RawURLEncoding.DecodeString(part)
		if err != nil {
			t.Fatal(err)
		}
		point = append(point, b...)
	}
	k, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), point)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func newCredentialWorld(t testing.TB) *credentialWorld {
	t.Helper()
	var env struct {
		TrustDomain   string              `json:"trust_domain"`
		Bundles       map[string][]string `json:"bundles"`
		Mesh          string              `json:"mesh"`
		CertifyingKey vectorJWK           `json:"certifying_key"`
		KeyStatements []string            `json:"key_statements"`
		Provider      struct {
			Issuer   string    `json:"issuer"`
			ClientID string    `json:"client_id"`
			Key      vectorJWK `json:"key"`
		} `json:"identity_provider"`
		Settings     struct{ Target string }
		Certificates map[string][]string `json:"certificates"`
	}
	var valid struct {
		Vectors []struct{ Name, Peer, Credential string }
	}
	dir := "../actor/testdata/vectors"
	readJSON(t, filepath.Join(dir, "environment.json"), &env)
	readJSON(t, filepath.Join(dir, "credentials-valid.json"), &valid)
	parse := func(list []string) (out []*x509.Certificate) {
		for _, text := range list {
			der, err := base64.StdEncoding.DecodeString(text)
			if err != nil {
				t.Fatal(err)
			}
			c, err := x509.ParseCertificate(der)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, c)
		}
		return out
	}
	w := &credentialWorld{td: spiffeid.RequireTrustDomainFromString(env.TrustDomain), mesh: env.Mesh, target: spiffeid.RequireFromString(env.Settings.Target),
		certifying: env.CertifyingKey.key(t), statement: env.KeyStatements[0], authority: parse(env.Bundles[env.TrustDomain])[0],
		idp: env.Provider.Issuer, aud: env.Provider.ClientID, idpKey: env.Provider.Key.key(t)}
	for _, v := range valid.Vectors {
		if v.Name == "two agents" {
			w.credential, w.peer = v.Credential, parse(env.Certificates[v.Peer])
		}
	}
	var err error
	if w.jwks, err = json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: w.idpKey, KeyID: "idp-1", Algorithm: "ES256", Use: "sig"}}}); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *credentialWorld) keys(lines ...string) *audit.Keys {
	return &audit.Keys{Mesh: w.mesh, TrustDomain: w.td.Name(), Logs: lines, CertifyingKeys: []*ecdsa.PublicKey{w.certifying},
		Authorities:       []*x509.Certificate{w.authority},
		IdentityProviders: []audit.IdentityProvider{{Issuer: w.idp, Audiences: []string{w.aud}}}}
}

// VerifyIDToken makes w the proxy's actor.IdentityTokens.
func (w *credentialWorld) VerifyIDToken(_ context.Context, raw string) (actor.IdentityClaims, error) {
	jws, err := jose.ParseSignedCompact(raw, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		return actor.IdentityClaims{}, err
	}
	_, err = jws.Verify(w.idpKey)
	token, err2 := actor.ParseIDToken(raw)
	return token.Claims, errors.Join(err, err2)
}

func (w *credentialWorld) chain(t testing.TB, verification audit.Digest) string {
	t.Helper()
	key, err := actor.ParseKeyStatement(w.statement, w.certifying, w.mesh)
	if err != nil {
		t.Fatal(err)
	}
	v, err := actor.NewVerifier(actor.Config{TrustDomain: w.td, Bundles: x509bundle.FromX509Authorities(w.td, []*x509.Certificate{w.authority}),
		Target: w.target, Mesh: w.mesh, TokenKeys: tokenKeys{key}, IdentityTokens: w, Revocations: nothingRevoked{}, Now: func() time.Time { return bookClock }})
	if err != nil {
		t.Fatal(err)
	}
	c, err := v.Verify(t.Context(), w.peer, w.credential)
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(audit.FromChain(c, verification))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// tale is a short log of a proxy: a session with a verified credential, a read, a refusal, and a write whose outcome comes
// in the second segment.
type tale struct {
	*logbook
	w         *credentialWorld
	chainText string
	digest    audit.Digest // of the chain
	linked    string       // members of a record of the session
	evidence  []string     // records
	// changes of what would be told
	verification func(string) string
	skip         func(kind string) bool // evidence to leave out
	again        bool                   // tell the evidence in the second segment, too
}

// newPlainTale has a chain without a kept credential, so it is short.
func newPlainTale(t testing.TB, change func(*tale)) *tale {
	t.Helper()
	s := newTale(t, change)
	s.evidence = nil
	s.says(strings.Replace(s.chainText, s.chainText[strings.Index(s.chainText, `,"verification"`):], "}", 1))
	return s
}

// says gives the tale another chain.
func (s *tale) says(chain string) {
	s.chainText, s.digest = chain, audit.DigestOf([]byte(chain))
	s.linked = fmt.Sprintf(`"txn":"cc99ee9b91c13ce7160db43d16e04e79","session":"d3f1c2b0","connection":"c-1","chain":%q`, s.digest)
}

func newTale(t testing.TB, change func(*tale)) *tale {
	t.Helper()
	s := &tale{logbook: newLogbook(), w: newCredentialWorld(t)}
	if change != nil {
		change(s)
	}
	put := func(kind string, data []byte) audit.Digest {
		if d := audit.DigestOf(data); s.skip == nil || !s.skip(kind) {
			s.evidence = append(s.evidence, fmt.Sprintf(`{"kind":%q,"digest":%q,"data":%q}`, kind, d, base64.RawURLEncoding.EncodeToString(data)))
		}
		return audit.DigestOf(data)
	}
	var peer []string
	for _, c := range s.w.peer {
		peer = append(peer, string(put("certificate", c.Raw)))
	}
	document := fmt.Sprintf(`{"credential":%q,"peer":["%s"],"authorities":[%q],"key_statement":%q,"identity_keys":%q,"verified_at":%q,"trust_domain":%q,`+
		`"mesh":%q,"target":%q,"root_evidence":"verified","require_user_grant":false,"audiences":[%q],"max_actors":5,"max_session_us":43200000000}`,
		put("credential", []byte(s.w.credential)), strings.Join(peer, `","`), put("certificate", s.w.authority.Raw), put("key_statement", []byte(s.w.statement)),
		put("identity_keys", s.w.jwks), bookClock.Format(time.RFC3339), s.w.td.Name(), s.w.mesh, s.w.target, s.w.aud)
	if s.verification != nil {
		document = s.verification(document)
	}
	s.says(s.w.chain(t, put("verification", []byte(document))))
	return s
}

const readStatement = `"statement":{"scrubbed":"SELECT id FROM orders WHERE id = $1","bytes":34,"hmac_sha256":"bDMnsAabLr9xaM6vXhHaHzZiWCB2givh5XTbZ3Ai0lc"}`

func (s *tale) allow(action string) string {
	return s.record("decision", s.linked, `{"effect":"allow","target":"orders","action":"`+action+`","objects":[{"kind":"table","name":"sales.orders","columns":["id"]}],`+
		readStatement+`,"account":"shop_app","policies":["p1"],"policy_version":1}`)
}

func (s *tale) after(decision int, kind, event string) string {
	return s.record(kind, s.linked+fmt.Sprintf(`,"decision":%q`, bookID(decision)), event)
}

func (s *tale) stated() string {
	return s.record("chain", `"txn":"cc99ee9b91c13ce7160db43d16e04e79"`, s.chainText)
}

func (s *tale) keep() {
	var kept []string
	for _, e := range s.evidence {
		kept = append(kept, s.record("evidence", "", e))
	}
	if len(kept) > 0 {
		s.frame(kept...)
	}
}

// first tells the first segment and returns the decision that stays open.
func (s *tale) first() (open int) {
	s.segment()
	s.frame(s.record("log_opened", "", `{"segment":0,"open_decisions":0,"program":"deputy"}`))
	s.keep()
	s.frame(s.stated(), s.record("connection_opened", s.linked, `{"target":"orders","protocol":"postgres","client":"127.0.0.1:1"}`))
	read := s.records
	s.frame(s.allow("postgres:select"))
	s.frame(s.after(read, "masked", `{"counts":[{"rule":"email","values":1}]}`), s.after(read, "completed", `{"status":"ok","command":"SELECT 1","rows":1,"us":120}`))
	s.frame(s.record("decision", s.linked, `{"effect":"refuse","target":"orders","action":"postgres:ddl","class":"policy","reason":"no-ddl","us":9}`),
		s.record("refused", "", `{"class":"tls","count":3,"since":"2026-11-20T12:01:59Z"}`))
	open = s.records
	s.frame(s.allow("postgres:insert"))
	return open
}

// second tells the second one.
func (s *tale) second(open int) {
	s.segment()
	seq := len(s.leaves) - 1 // of the open decision
	if s.again {
		s.keep()
	}
	s.frame(s.record("log_segment", "", fmt.Sprintf(`{"segment":1,"total":1,"open":[{"id":%q,"seq":%d}]}`, bookID(open), seq)), s.stated(), s.after(open, "forwarded", `{"bytes":34}`))
	s.frame(s.after(open, "completed", `{"status":"ok","command":"INSERT 0 1","affected":1}`), s.record("heartbeat", "", `{"interval_us":30000000,"open":0}`))
	s.frame(s.record("log_closed", "", `{"reason":"shutdown"}`))
}

func (s *tale) whole() *tale {
	s.second(s.first())
	return s
}
