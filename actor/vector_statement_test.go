package actor_test

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"testing"
	"time"

	"github.com/deputymesh/deputy/actor"
)

type statementFile struct {
	Description string            `json:"description"`
	Now         int64             `json:"now"`
	Call        operatorCall      `json:"operator_call"`
	Keys        []statementVector `json:"key_statements"`
	Operators   []statementVector `json:"operator_requests"`
	ChainCall   chainCall         `json:"chain_call"`
	Chains      []statementVector `json:"chain_statements"`
}

type operatorCall struct {
	Issuer string `json:"iss"`
	Nonce  string `json:"nonce"`
	Mesh   string `json:"mesh"`
	Act    string `json:"act"`
	Body   string `json:"body"`
}

type statementVector struct {
	Name      string `json:"name"`
	Statement string `json:"statement"`
	Valid     bool   `json:"valid"`
}

func keyStatement(change func(*statement)) statementVector {
	s := &statement{
		header: map[string]any{"alg": "ES256", "typ": "deputy-token-key+jwt"},
		claims: map[string]any{"iss": meshURL, "jwk": jwkOf(keyFor("token")), "kid": actor.NonceFor(keyFor("token").Public()),
			"nbf": start.Unix(), "exp": start.Add(time.Hour).Unix()},
		key: keyFor("certifying"),
	}
	if change != nil {
		change(s)
	}
	return statementVector{Statement: s.sign()}
}

const operatorBody = `{"txn":"…"}`

func operatorRequest(change func(*statement)) statementVector {
	body := sha256.Sum256([]byte(operatorBody))
	s := &statement{
		header: map[string]any{"alg": "ES256", "typ": "deputy-operator+jwt", "jwk": jwkOf(keyFor("login"))},
		claims: map[string]any{"iss": idpURL, "aud": meshURL, "act": "revoke", "body_sha256": b64(body[:]),
			"iat": now.Unix(), "exp": now.Add(time.Minute).Unix(), "jti": hexID("operator")},
		key: keyFor("login"),
	}
	if change != nil {
		change(s)
	}
	return statementVector{Statement: s.sign()}
}

func statementVectors() statementFile {
	out := statementFile{
		Description: "Statements beside the credential. The certifying key, mesh and provider are environment.json's. A refused one has the class key-statement, operator-request or chain-statement.",
		Now:         now.Unix(),
		ChainCall:   statedCall,
		Call:        operatorCall{idpURL, actor.NonceFor(keyFor("login").Public()), meshURL, "revoke", operatorBody},
	}
	claim := func(name string, v any) func(*statement) { return func(s *statement) { s.claims[name] = v } }
	head := func(name string, v any) func(*statement) { return func(s *statement) { s.header[name] = v } }
	signedBy := func(name string) func(*statement) { return func(s *statement) { s.key = keyFor(name) } }
	type c struct {
		name   string
		valid  bool
		change func(*statement)
	}
	for _, k := range []c{
		{"valid", true, nil},
		{"signed by the token key itself", false, signedBy("token")},
		{"for another mesh", false, claim("iss", "https://broker.evil.example")},
		{"kid is not the thumbprint", false, claim("kid", "1")},
		{"exp before nbf", false, claim("exp", start.Unix())},
		{"jwk on P-384", false, claim("jwk", jwkOf(detSigner{p384("x")}))},
		{"private key in jwk", false, func(s *statement) { s.claims["jwk"].(map[string]any)["d"] = "AAAA" }},
		{"another typ", false, head("typ", "at+jwt")},
		{"alg none", false, head("alg", "none")},
		{"key in the header", false, head("jwk", jwkOf(keyFor("certifying")))},
		{"unknown claim", false, claim("use", "sig")},
		{"without exp", false, func(s *statement) { delete(s.claims, "exp") }},
	} {
		v := keyStatement(k.change)
		v.Name, v.Valid = k.name, k.valid
		out.Keys = append(out.Keys, v)
	}
	for _, k := range []c{
		{"valid", true, nil},
		{"another key, its own jwk", false, func(s *statement) { s.key = keyFor("evil"); s.header["jwk"] = jwkOf(keyFor("evil")) }},
		{"another key, the login key's jwk", false, signedBy("evil")},
		{"another provider", false, claim("iss", "https://idp.evil.example")},
		{"another mesh", false, claim("aud", "https://broker.evil.example")},
		{"another call", false, claim("act", "approve")},
		{"call that is no name", false, claim("act", "Revoke all")},
		{"another body", false, claim("body_sha256", b64(make([]byte, 32)))},
		{"expired", false, func(s *statement) {
			s.claims["iat"], s.claims["exp"] = now.Add(-2*time.Minute).Unix(), now.Add(-time.Minute).Unix()
		}},
		{"from the future", false, func(s *statement) {
			s.claims["iat"], s.claims["exp"] = now.Add(time.Minute).Unix(), now.Add(2*time.Minute).Unix()
		}},
		{"lives longer than a minute", false, claim("exp", now.Add(61*time.Second).Unix())},
		{"aud is an array", false, claim("aud", []string{meshURL})},
		{"another typ", false, head("typ", "deputy-user-grant+jwt")},
		{"without jti", false, func(s *statement) { delete(s.claims, "jti") }},
	} {
		v := operatorRequest(k.change)
		v.Name, v.Valid = k.name, k.valid
		out.Operators = append(out.Operators, v)
	}
	out.Chains = chainStatementVectors()
	return out
}

func TestEveryStatementVectorIsJudgedAsItSays(t *testing.T) {
	env := readVectors[environment](t, "environment.json")
	file := readVectors[statementFile](t, "statements.json")
	judge := func(t *testing.T, vec statementVector, class actor.Class, err error) {
		t.Helper()
		if vec.Valid && err != nil {
			t.Error(err)
		}
		if !vec.Valid {
			checkRefusal(t, err, string(class), nil)
		}
	}
	for _, vec := range file.Keys {
		t.Run("key statement "+vec.Name, func(t *testing.T) {
			k, err := actor.ParseKeyStatement(vec.Statement, decodeJWK(env.CertifyingKey), env.Mesh)
			judge(t, vec, actor.ClassKeyStatement, err)
			if err == nil && k.KeyID() != actor.NonceFor(keyFor("token").Public()) {
				t.Error("another key came out")
			}
		})
	}
	call := actor.OperatorCall{Issuer: file.Call.Issuer, Nonce: file.Call.Nonce, Mesh: file.Call.Mesh, Act: file.Call.Act,
		Body: []byte(file.Call.Body), Now: time.Unix(file.Now, 0)}
	for _, vec := range file.Operators {
		t.Run("operator request "+vec.Name, func(t *testing.T) {
			_, err := actor.VerifyOperatorRequest(vec.Statement, call)
			judge(t, vec, actor.ClassOperatorRequest, err)
		})
	}
	for _, vec := range file.Chains {
		t.Run("chain statement "+vec.Name, func(t *testing.T) {
			_, err := actor.VerifyChain(vec.Statement, env.chainCall(file.ChainCall, time.Unix(file.Now, 0)))
			judge(t, vec, actor.ClassChain, err)
		})
	}
}

func TestWhatTheSignersMakeIsAccepted(t *testing.T) {
	login, certifying, token := keyFor("login"), keyFor("certifying"), keyFor("token")
	r := actor.OperatorRequest{Issuer: idpURL, Mesh: meshURL, Act: "revoke", Body: sha256.Sum256([]byte("b")),
		IssuedAt: now, Expires: now.Add(time.Minute), ID: actor.NewHexID()}
	raw := must(actor.SignOperatorRequest(login, r))
	got, err := actor.VerifyOperatorRequest(raw, actor.OperatorCall{Issuer: idpURL, Nonce: actor.NonceFor(login.Public()),
		Mesh: meshURL, Act: "revoke", Body: []byte("b"), Now: now})
	if err != nil || got != r {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := actor.VerifyOperatorRequest(raw, actor.OperatorCall{Issuer: idpURL, Mesh: meshURL, Act: "revoke", Body: []byte("b"), Now: now}); err == nil {
		t.Error("a sign-in without a nonce vouches for nobody")
	}
	k := actor.KeyStatement{Mesh: meshURL, Key: &token.PublicKey, NotBefore: start, Expires: start.Add(time.Hour)}
	back, err := actor.ParseKeyStatement(must(actor.SignKeyStatement(certifying, k)), &certifying.PublicKey, meshURL)
	if err != nil || !back.Key.Equal(k.Key) || !back.Expires.Equal(k.Expires) {
		t.Errorf("%+v, %v", back, err)
	}
	if _, err := actor.ParseKeyStatement(must(actor.SignKeyStatement(certifying, k)), &ecdsa.PublicKey{}, meshURL); err == nil {
		t.Error("no certifying key certifies nothing")
	}
}
