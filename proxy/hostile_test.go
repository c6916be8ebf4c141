package proxy_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/internal/feed"
	"github.com/deputymesh/deputy/proxy"
)

// A broker that was taken over can keep quiet about the next revocation, but not undo the last one.
func TestASnapshotTakesNoRevocationBack(t *testing.T) {
	m := serving(t)
	f := m.flow()
	revoked := must(feed.MatchUser(idpURL, "alice"))
	m.revoke(revoked)
	ended := feed.EndedAgent{ID: m.agent(must(m.planner.id.Child("other", actor.NewHexID()))).id.String(), EndedAt: m.clock.Now()}
	m.apply(m.update(feed.Delta, feed.Changes{Ended: []feed.EndedAgent{ended}}))
	m.apply(m.snapshot()) // and it names neither
	_, err := m.core.Open(context.Background(), m.peer(m.researcher), m.credential(f), m.target, proxy.Connection{Protocol: "test"})
	if refusal(t, err).Class != proxy.ClassRevoked {
		t.Errorf("a snapshot without it lifted the revocation: %v", err)
	}
	var known *actor.RevokedError
	if err := m.state.Check([]actor.RevocationKey{{Kind: actor.RevokeActor, Value: ended.ID}}); !errors.As(err, &known) {
		t.Errorf("a snapshot brought an ended agent back: %v", err)
	}
}

// dribble sends a little, and the rest never.
type dribble struct {
	first io.Reader
	done  <-chan struct{}
}

func (d dribble) Read(p []byte) (int, error) {
	if n, err := d.first.Read(p); err == nil {
		return n, nil
	}
	<-d.done
	return 0, errors.New("never mind")
}

// One agent that begins many renewals and ends none must not keep others from renewing: their sessions would be cut.
func TestSlowRenewalsHoldUpNobodyElse(t *testing.T) {
	m := serving(t)
	mine, theirs := m.open(m.flow()), m.flow()
	theirs.agents = []*agent{m.planner}
	other := m.open(theirs)
	svid := m.ca.SVID(m.ca.ID("/deputy/proxy/orders"))
	l, err := tls.Listen("tcp", "127.0.0.1:0", proxy.ServerTLS(svid, m.ca.Bundle(), m.ca.TrustDomain()))
	if err != nil {
		t.Fatal(err)
	}
	server := proxy.NewRenewalServer(m.core)
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	t.Cleanup(func() {
		_ = server.Close()
		<-served
	})
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	post := func(ctx context.Context, a *agent, id string, body io.Reader) (int, string, error) {
		cfg := tlsconfig.MTLSClientConfig(&x509svid.SVID{ID: a.id.ID(), Certificates: a.crt, PrivateKey: a.key}, m.ca.Bundle(), tlsconfig.AuthorizeID(svid.ID))
		c := &http.Client{Transport: &http.Transport{TLSClientConfig: cfg, DisableKeepAlives: true}}
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, fmt.Sprintf("https://%s/sessions/%s/credential", l.Addr(), id), body)
		if err != nil {
			return 0, "", err
		}
		resp, err := c.Do(req)
		if err != nil {
			return 0, "", err
		}
		defer resp.Body.Close()
		raw, err := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
		return resp.StatusCode, string(raw), err
	}
	const many = 80
	refused := make(chan int, many)
	for range many {
		go func() {
			status, _, _ := post(ctx, m.researcher, mine.ID(), dribble{strings.NewReader("eyJ"), ctx.Done()})
			refused <- status
		}()
	}
	// Those above the agent's own limit are sent away while the rest hang.
	for range many - 4 {
		select {
		case status := <-refused:
			if status != http.StatusServiceUnavailable {
				t.Fatalf("a renewal of one agent too many: HTTP %d", status)
			}
		case <-time.After(5 * time.Second):
			t.Fatal("one agent holds more renewals open than its own limit")
		}
	}
	fresh := m.flow()
	fresh.agents = []*agent{m.planner}
	status, body, err := post(ctx, m.planner, other.ID(), strings.NewReader(m.credential(fresh)))
	if err != nil || status != http.StatusNoContent {
		t.Errorf("another agent's renewal: HTTP %d %s %v", status, body, err)
	}
}
