package integration_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/deputymesh/deputy/internal/testca"
	"github.com/deputymesh/deputy/internal/testmesh"
)

// A credential works at its own target, over the SVID that it is bound to, and nowhere else: not at another target, not at
// another proxy, not for a relative of its agent, and not in the hands of a proxy that was shown it.
func TestReplaysAreRefused(t *testing.T) {
	f := newForge(t, testmesh.SecondProxy())
	trees := f.trees(t, 2)
	one, two := trees[0], trees[1]
	dora := f.idp.signIn(t, "dora")
	root := f.root(dora, one.planner)
	orders := f.flow(dora, root, testmesh.Target, one.planner, one.a)
	crm := f.flow(dora, root, testmesh.OtherTarget, one.planner, one.a)
	f.mustServe(orders, f.Address("target"))
	f.mustServe(crm, f.Address("other-target"))

	refused := func(t *testing.T, as *x509svid.SVID, address, credential, class string) {
		t.Helper()
		in, why := f.letIn(as, address, credential)
		if in || !strings.HasPrefix(why, "28000 ") || !strings.Contains(why, class) {
			t.Errorf("let in is %v, want a refusal with %s: %s", in, class, why)
		}
	}
	t.Run("at another target and proxy", func(t *testing.T) {
		refused(t, one.a, f.Address("other-target"), orders.credential(), "token.audience")
		refused(t, one.a, f.Address("target"), crm.credential(), "token.audience")
	})
	t.Run("by relatives and strangers", func(t *testing.T) {
		for name, as := range map[string]*x509svid.SVID{"a sibling": one.b, "the parent": one.planner, "a child": one.runner, "its twin in another tree": two.a} {
			t.Run(name, func(t *testing.T) {
				refused(t, as, f.Address("target"), orders.credential(), "presenter.actor")
				if a := f.exchange(as, orders.subject()); a.status == http.StatusOK || a.Error != "invalid_request" || !strings.Contains(a.Text, "grant.delegate") {
					t.Errorf("exchanged: %s", a)
				}
			})
		}
	})
	// The same identity with another key: a thief who gets the issuer to sign for him, or a copy after a rotation.
	t.Run("same name, other key", func(t *testing.T) {
		refused(t, f.mint(one.a, nil), f.Address("target"), orders.credential(), "presenter.binding")
	})
	t.Run("same key, other certificate", func(t *testing.T) {
		refused(t, f.mint(one.a, one.a.PrivateKey), f.Address("target"), orders.credential(), "presenter.binding")
	})
	t.Run("an SVID of another authority", func(t *testing.T) {
		for name, ca := range map[string]*testca.CA{"that bears the mesh's name": testca.New(t, testmesh.TrustDomain), "of another trust domain": testca.New(t, "evil.example")} {
			id := ca.ID(one.a.ID.Path())
			if in, why := f.letIn(ca.SVID(id), f.Address("target"), orders.credential()); in || strings.HasPrefix(why, "28000") {
				t.Errorf("%s: let in is %v, and it got past TLS: %s", name, in, why)
			}
			if status, err := f.reach(ca.SVID(id), http.MethodPost, f.Address("token"), "/token", ""); err == nil {
				t.Errorf("%s: the token listener answered HTTP %d", name, status)
			}
		}
	})
	// A proxy that was taken over has its own SVID, and the credentials that it was shown.
	t.Run("by a proxy", func(t *testing.T) {
		thief := f.roleSVID(t, "proxy")
		if in, why := f.letIn(thief, f.Address("other-target"), crm.credential()); in || strings.HasPrefix(why, "28000") {
			t.Errorf("at another proxy: let in is %v, and it got past TLS: %s", in, why)
		}
		if status, err := f.reach(thief, http.MethodPost, f.Address("second-renewal"), "/sessions/"+strings.Repeat("0", 32)+"/credential", crm.credential()); err == nil {
			t.Errorf("the renewal listener answered a proxy with HTTP %d", status)
		}
		for path, body := range map[string]string{
			"/token":  form(orders.subject()).Encode(),
			"/revoke": "token=" + orders.parts[0],
		} {
			a := f.post(thief, path, body)
			if a.status != http.StatusBadRequest || a.Error != "unauthorized_client" || a.Token != "" {
				t.Errorf("%s answered a proxy %s", path, a)
			}
		}
		f.mustServe(orders, f.Address("target")) // it revoked nothing
	})
	t.Run("the renewal of a session", func(t *testing.T) {
		conn, err := f.connect(one.a, f.Address("target"), orders.credential())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(context.Background())
		id := conn.ParameterStatus("deputy.session")
		renew := func(as *x509svid.SVID, listener, credential string) string {
			t.Helper()
			status, err := f.reach(as, http.MethodPost, f.Address(listener), "/sessions/"+id+"/credential", credential)
			return fmt.Sprint(status, err)
		}
		if got := renew(one.a, "renewal", orders.credential()); got != "204 <nil>" {
			t.Fatalf("a renewal with a good credential: %s", got)
		}
		// The victim's own session, with what isn't its own; and strangers at the victim's session.
		for name, got := range map[string]string{
			"another target's":      renew(one.a, "renewal", crm.credential()),
			"another task's":        renew(one.a, "renewal", f.flow(dora, f.root(dora, one.planner), testmesh.Target, one.planner, one.a).credential()),
			"another user's":        renew(one.a, "renewal", f.emilsFlow(t, one).credential()),
			"the parent's":          renew(one.a, "renewal", f.flow(dora, root, testmesh.Target, one.planner).credential()),
			"nothing":               renew(one.a, "renewal", ""),
			"a sibling, its own":    renew(one.b, "renewal", f.flow(dora, root, testmesh.Target, one.planner, one.b).credential()),
			"a sibling, the stolen": renew(one.b, "renewal", orders.credential()),
			"at another proxy":      renew(one.a, "second-renewal", orders.credential()),
		} {
			if !strings.HasPrefix(got, "403") && !strings.HasPrefix(got, "404") {
				t.Errorf("%s: %s", name, got)
			}
		}
		if got, err := served(conn, "SELECT 'still'"); got != "still" || err != nil {
			t.Errorf("the session after the attacks: %q %v", got, err)
		}
	})
	t.Run("roles and doors that aren't for agents", func(t *testing.T) {
		// gRPC answers what speaks no HTTP/2 by hanging up; without the TLS of a proxy there is nothing to speak to.
		if status, err := f.reach(one.a, http.MethodPost, f.Address("feed"), "/deputy.feed.v1.Feed/Sync", ""); err == nil {
			t.Errorf("the feed answered an agent with HTTP %d", status)
		}
		for _, role := range []string{"proxy", "broker"} {
			a := f.post(f.roleSVID(t, role), "/token", form(orders.subject()).Encode())
			if a.status == http.StatusOK || a.Error != "unauthorized_client" {
				t.Errorf("the role %s at /token: %s", role, a)
			}
		}
		if in, why := f.letIn(f.roleSVID(t, "broker"), f.Address("target"), orders.credential()); in || strings.HasPrefix(why, "28000") {
			t.Errorf("the broker's SVID at a target: let in is %v, %s", in, why)
		}
	})
	f.Verify(t)
}

// emilsFlow is another user's, through the same agents.
func (f *forge) emilsFlow(t *testing.T, through tree) flow {
	emil := f.idp.signIn(t, "emil")
	return f.flow(emil, f.root(emil, through.planner), testmesh.Target, through.planner, through.a)
}

// reach posts something to a listener as an SVID.
func (f *forge) reach(as *x509svid.SVID, method, address, path, body string) (int, error) {
	req, err := http.NewRequest(method, "https://"+address+path, strings.NewReader(body))
	if err != nil {
		f.t.Fatal(err)
	}
	resp, err := f.client(as).Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<20))
	return resp.StatusCode, nil
}

// roleSVID is the SVID that `deputy init` wrote for a role.
func (f *forge) roleSVID(t *testing.T, role string) *x509svid.SVID {
	t.Helper()
	dir := filepath.Join(f.Dir, role)
	svid, err := x509svid.Load(filepath.Join(dir, "svid.pem"), filepath.Join(dir, "svid.key"))
	if err != nil {
		t.Fatal(err)
	}
	return svid
}

// readFile of the mesh.
func (f *forge) readFile(t testing.TB, name ...string) []byte {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(append([]string{f.Dir}, name...)...))
	if err != nil {
		t.Fatal(err)
	}
	return bytes.TrimSpace(raw)
}
