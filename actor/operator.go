package actor

import (
	"crypto"
	"crypto/sha256"
	"crypto/subtle"
	"time"

	"github.com/deputymesh/deputy/internal/strictjson"
)

// OperatorLife is the longest life of an operator's request.
const OperatorLife = time.Minute

// OperatorRequest proves that an operator's call comes from the holder of the
// login key whose thumbprint is the ID token's nonce. ID tokens travel in
// credentials, so an ID token alone is never enough for such a call.
type OperatorRequest struct {
	Issuer   string   // iss, the identity provider
	Mesh     string   // aud, the broker's issuer URL
	Act      string   // name of the call, such as revoke
	Body     [32]byte // SHA-256 of the call's exact body
	IssuedAt time.Time
	Expires  time.Time // at most OperatorLife after IssuedAt
	ID       string    // jti
}

type operatorClaims struct {
	Issuer   string `json:"iss"`
	Audience string `json:"aud"`
	Act      string `json:"act"`
	Body     string `json:"body_sha256"`
	IssuedAt int64  `json:"iat"`
	Expires  int64  `json:"exp"`
	ID       string `json:"jti"`
}

// SignOperatorRequest signs with the login key.
func SignOperatorRequest(loginKey crypto.Signer, r OperatorRequest) (string, error) {
	c := operatorClaims{r.Issuer, r.Mesh, r.Act, strictjson.EncodeBase64URL(r.Body[:]), r.IssuedAt.Unix(), r.Expires.Unix(), r.ID}
	if err := c.check(); err != nil {
		return "", err
	}
	return sign(loginKey, TypeOperatorRequest, nil, true, c)
}

func (c operatorClaims) check() error {
	if !isName(c.Act) {
		return refuse(ClassClaim, "act %q is not the name of a call", c.Act)
	}
	if err := firstError(checkIssuer(c.Issuer), checkIssuer(c.Audience), checkHash("body_sha256", c.Body),
		checkTimes(c.IssuedAt, c.Expires), checkHexID("jti", c.ID)); err != nil {
		return err
	}
	if c.Expires-c.IssuedAt > int64(OperatorLife/time.Second) {
		return refuse(ClassClaim, "the request lives longer than %s", OperatorLife)
	}
	return nil
}

// OperatorCall is what the receiver of an operator's call knows by itself.
type OperatorCall struct {
	Issuer string // of the verified ID token
	Nonce  string // of the verified ID token
	Mesh   string // own issuer URL
	Act    string // the call
	Body   []byte // the body as received
	Now    time.Time
}

// VerifyOperatorRequest refuses, with [ClassOperatorRequest], a request that is
// not exactly for this call, by the key of this sign-in, now. The caller verifies
// the ID token first, and keeps jti until Expires to refuse it a second time.
func VerifyOperatorRequest(raw string, call OperatorCall) (OperatorRequest, error) {
	r, err := verifyOperatorRequest(raw, call)
	if err != nil {
		return OperatorRequest{}, wrap(ClassOperatorRequest, err)
	}
	return r, nil
}

func verifyOperatorRequest(raw string, call OperatorCall) (OperatorRequest, error) {
	if err := checkForm(raw); err != nil {
		return OperatorRequest{}, err
	}
	j, err := splitJWS(raw)
	if err != nil {
		return OperatorRequest{}, err
	}
	h, err := j.readHeader(TypeOperatorRequest, "jwk")
	if err != nil {
		return OperatorRequest{}, err
	}
	key, err := h.JWK.publicKey()
	if err != nil {
		return OperatorRequest{}, err
	}
	var c operatorClaims
	if err := strictjson.Unmarshal(j.payload, &c); err != nil {
		return OperatorRequest{}, jsonError(err)
	}
	if err := c.check(); err != nil {
		return OperatorRequest{}, err
	}
	if call.Nonce == "" || subtle.ConstantTimeCompare([]byte(NonceFor(key)), []byte(call.Nonce)) != 1 {
		return OperatorRequest{}, refuse(ClassRootNonce, "the key is not the one of the sign-in")
	}
	if err := j.verify(key); err != nil {
		return OperatorRequest{}, err
	}
	body := sha256.Sum256(call.Body)
	switch {
	case c.Issuer != call.Issuer:
		return OperatorRequest{}, refuse(ClassClaim, "iss is not the issuer of the ID token")
	case c.Audience != call.Mesh:
		return OperatorRequest{}, refuse(ClassClaim, "aud is not this mesh")
	case c.Act != call.Act:
		return OperatorRequest{}, refuse(ClassClaim, "act is %q, the call is %q", c.Act, call.Act)
	case c.Body != strictjson.EncodeBase64URL(body[:]):
		return OperatorRequest{}, refuse(ClassClaim, "body_sha256 is not the hash of the body")
	case unix(c.IssuedAt).After(call.Now.Add(Skew)):
		return OperatorRequest{}, refuse(ClassClaim, "iat lies in the future")
	case !call.Now.Before(unix(c.Expires).Add(Skew)):
		return OperatorRequest{}, refuse(ClassClaim, "the request has expired")
	}
	return OperatorRequest{c.Issuer, c.Audience, c.Act, body, unix(c.IssuedAt), unix(c.Expires), c.ID}, nil
}
