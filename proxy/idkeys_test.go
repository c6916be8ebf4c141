package proxy_test

import (
	"context"
	"encoding/json"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/deputymesh/deputy/audit/audittest"
	"github.com/deputymesh/deputy/internal/testca"
	"github.com/deputymesh/deputy/proxy"
)

func TestWithdrawnIdentityKeysStayAsEvidenceForASession(t *testing.T) {
	c := newClock()
	keys := proxy.NewIdentityKeys(audittest.Open(t), 12*time.Hour, c.Now)
	document := func(kids ...string) []byte {
		var set jose.JSONWebKeySet
		for _, kid := range kids {
			set.Keys = append(set.Keys, jose.JSONWebKey{Key: &testca.NewKey(t).PublicKey, KeyID: kid, Algorithm: "ES256"})
		}
		return must(json.Marshal(set))
	}
	known := func() map[string]bool {
		out := map[string]bool{}
		var set jose.JSONWebKeySet
		if raw := keys.Document(idpURL); raw != nil {
			if err := json.Unmarshal(raw, &set); err != nil {
				t.Fatal(err)
			}
		}
		for _, k := range set.Keys {
			out[k.KeyID] = true
		}
		return out
	}
	keep := func(doc []byte) {
		t.Helper()
		if err := keys.Keep(context.Background(), idpURL, doc); err != nil {
			t.Fatal(err)
		}
	}
	if len(known()) != 0 {
		t.Error("keys before any document")
	}
	keep(document("a", "b"))
	c.add(48 * time.Hour) // published all the while
	keep(document("c"))
	if k := known(); !k["a"] || !k["b"] || !k["c"] {
		t.Errorf("just withdrawn: %v", k)
	}
	c.add(13 * time.Hour)
	keep(document("d"))
	if k := known(); k["a"] || !k["c"] || !k["d"] {
		t.Errorf("withdrawn long ago: %v", k)
	}
	private := must(json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: testca.NewKey(t), KeyID: "x"}}}))
	for _, bad := range [][]byte{private, []byte("{"), []byte(`{"keys":[{"kty":"oct","k":"AAAA"}]}`)} {
		if err := keys.Keep(context.Background(), idpURL, bad); err == nil {
			t.Errorf("kept %s", bad)
		}
	}
}
