package integration_test

import (
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/internal/testmesh"
)

// A credential is worth nothing without the SVID that it is bound to, and the ID token in it opens nothing
// at all.
func TestStolenCredentialIsUseless(t *testing.T) {
	m := testmesh.Shared(t)
	alice := m.Login(t, "alice")
	probe := testmesh.Program(t, "agentprobe")

	// The victim shows its credential to everybody and stays alive.
	victim := testmesh.Begin(t, alice.Agents(t, testmesh.Nested, "sh", "-c", probe+" credential "+testmesh.Target+" && cat"))
	victim.Await("\n", 1)
	credential := strings.TrimSpace(victim.Output())
	if strings.Count(credential, "~") != 3 {
		t.Fatalf("token, two grants and an ID token are expected, got %d parts", strings.Count(credential, "~")+1)
	}
	stolen := filepath.Join(m.Root, "stolen")
	if err := os.WriteFile(stolen, []byte(credential), 0o644); err != nil {
		t.Fatal(err)
	}

	own := alice.Run(t, testmesh.Nested, "sh", "-c",
		`d=$(mktemp -d) && `+probe+` credential `+testmesh.Target+` >$d/own && `+probe+` present `+m.Address("target")+` $d/own; rm -r $d`)
	if strings.TrimSpace(own.Stdout) != "let in" {
		t.Fatalf("an agent with its own credential: %s", own)
	}
	for _, thief := range []struct {
		name   string
		who    *testmesh.Session
		agents []string
	}{
		{"a sibling", alice, testmesh.Nested},
		{"the parent's kind", alice, []string{"planner"}},
		{"another user's agent", m.Login(t, "bob"), testmesh.Nested},
	} {
		t.Run(thief.name, func(t *testing.T) {
			r := thief.who.Run(t, thief.agents, probe, "present", m.Address("target"), stolen)
			if !strings.HasPrefix(r.Stdout, "refused 28000") && !strings.HasPrefix(r.Stdout, "refused 28P01") {
				t.Fatalf("a stolen credential: %s", r)
			}
			rec := m.Record(t, "proxy", testmesh.RecordIn(t, r.Stdout))
			if e, ok := rec.Event.(*audit.Refused); !ok || !strings.HasPrefix(e.Class, "presenter.") {
				t.Errorf("the record of the refusal: %+v", rec.Event)
			}
		})
	}
	t.Run("with no SVID", func(t *testing.T) {
		r := testmesh.Exec(t, testmesh.Command{
			Args: []string{m.PG.Bin("psql"), "-X", "host=127.0.0.1 port=" + m.Address("target")[len("127.0.0.1:"):] + " dbname=shop user=shop_app sslmode=require", "-c", "SELECT 1"},
			Env:  []string{"PGPASSWORD=" + credential},
		})
		if r.Code == 0 || strings.Contains(r.Stdout, "1") {
			t.Errorf("a client without an SVID: %s", r)
		}
	})
	t.Run("the ID token at the operators' door", func(t *testing.T) {
		parts := strings.Split(credential, "~")
		for _, proof := range []string{"", parts[2], parts[3]} {
			if status := operatorCall(t, m, parts[3], proof); status != http.StatusUnauthorized {
				t.Errorf("HTTP %d for an ID token with the proof %.10q", status, proof)
			}
		}
	})
	victim.Type("\n")
	if r := victim.Wait(patience); r.Code != 0 {
		t.Errorf("the victim: %s", r)
	}
}

// operatorCall tries to revoke with an ID token and some proof.
func operatorCall(t *testing.T, m *testmesh.Mesh, idToken, proof string) int {
	t.Helper()
	pem, err := os.ReadFile(filepath.Join(m.Dir, "agent", "web-ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		t.Fatal("no CA of the web listener")
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequest(http.MethodPost, "https://"+m.Address("web")+"/operator/v1/revocations",
		strings.NewReader(`{"kind":"user","iss":"`+m.Provider+`","sub":"sample-alice","reason":"theft"}`))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+idToken)
	if proof != "" {
		req.Header.Set("Deputy-Operator-Proof", proof)
	}
	resp, err := (&http.Client{Transport: transport, Timeout: patience}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	return resp.StatusCode
}
