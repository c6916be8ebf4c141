package tokenapi

import (
	"crypto/ecdsa"
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/go-jose/go-jose/v4"

	"github.com/deputymesh/deputy/actor"
)

// jwks is the key set as it is sent. Proxies don't read it: they believe the certifying key alone.
type jwks []byte

func newJWKS(pub *ecdsa.PublicKey) (jwks, error) {
	set := jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: pub, KeyID: actor.NonceFor(pub), Algorithm: string(jose.ES256), Use: "sig"}}}
	raw, err := json.Marshal(set)
	if err != nil {
		return nil, fmt.Errorf("encoding the key set: %w", err)
	}
	return raw, nil
}

func (k jwks) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/jwk-set+json")
	w.Header().Set("Cache-Control", "max-age=60")
	_, _ = w.Write(k) // a client that is gone can't be told
}
