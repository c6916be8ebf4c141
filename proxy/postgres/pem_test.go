package postgres_test

import (
	"crypto/x509"
	"encoding/pem"
	"os"
	"testing"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/deputymesh/deputy/internal/testca"
)

func writePEM(t testing.TB, cert, key, ca string, svid *x509svid.SVID, authority *testca.CA) {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(svid.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	write := func(path, kind string, der []byte) {
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(cert, "CERTIFICATE", svid.Certificates[0].Raw)
	write(key, "PRIVATE KEY", der)
	write(ca, "CERTIFICATE", authority.Certificate().Raw)
}
