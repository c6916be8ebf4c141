package target_test

import (
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/deputymesh/deputy/internal/target"
)

func TestNames(t *testing.T) {
	td := spiffeid.RequireTrustDomainFromString("corp.example")
	n, err := target.ParseName("orders-db2")
	if err != nil || n.String() != "orders-db2" || n.ID(td).String() != "spiffe://corp.example/target/orders-db2" {
		t.Fatalf("%v %v", n, err)
	}
	if back, err := target.FromID(td, n.ID(td).String()); err != nil || back != n {
		t.Errorf("%v %v", back, err)
	}
	for _, s := range []string{"", "Orders", "1db", "-a", "a_b", "a.b", "a/b", "ü", strings.Repeat("a", 33)} {
		if n, err := target.ParseName(s); err == nil || !n.IsZero() {
			t.Errorf("%q was taken", s)
		}
	}
	for _, s := range []string{
		"", "orders-db", "spiffe://evil.example/target/a", "spiffe://corp.example/target/a/b", "spiffe://corp.example/target/", "spiffe://corp.example/agent/a",
		"SPIFFE://corp.example/target/a", "spiffe://CORP.example/target/a", "spiffe://corp.example/target/../a", "https://corp.example/target/a",
	} {
		if n, err := target.FromID(td, s); err == nil {
			t.Errorf("%q became %v", s, n)
		}
	}
	for _, kind := range []string{"postgres", "ssh", "http", "tcp", "mcp", "kube"} {
		if _, err := target.ParseKind(kind); err != nil {
			t.Error(err)
		}
	}
	if _, err := target.ParseKind("mysql"); err == nil {
		t.Error("mysql has no engine")
	}
}
