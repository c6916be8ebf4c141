package proxy_test

import (
	"context"
	"strings"
	"testing"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/audit/audittest"
	"github.com/deputymesh/deputy/internal/target"
	"github.com/deputymesh/deputy/internal/testca"
	"github.com/deputymesh/deputy/proxy"
)

func TestACredentialThatIsntTheirsOpensNothing(t *testing.T) {
	m := serving(t)
	stranger := m.agent(must(actor.NewAgentID(m.ca.TrustDomain(), "stranger", actor.NewHexID())))
	again := m.agent(m.researcher.id)
	foreignCA := testca.New(t, "other.example")
	foreign := foreignCA.SVID(foreignCA.ID("/agent/planner/" + actor.NewHexID()))
	wide := m.flow()
	wide.rootCap = m.details("select")
	good := m.credential(m.flow())
	forged := m.flow()
	forged.tokenKey = testca.NewKey(t)
	for _, c := range []struct {
		name, credential, class string
		peer                    proxy.Peer
	}{
		{"stolen by another agent", good, "presenter.actor", m.peer(stranger)},
		{"stolen by the parent", good, "presenter.actor", m.peer(m.planner)},
		{"another certificate of the same agent", good, "presenter.binding", m.peer(again)},
		{"another trust domain's peer", good, "peer.trust-domain", proxy.Peer{Certificates: foreign.Certificates}},
		{"no certificate", good, "peer.certificate", proxy.Peer{}},
		{"a token key that nobody certified", m.credential(forged), "token.key", m.peer(m.researcher)},
		{"wider than the user granted", m.credential(wide), "token.details", m.peer(m.researcher)},
		{"empty", "", "credential.size", m.peer(m.researcher)},
		{"too large", strings.Repeat("a", actor.MaxSize+1), "credential.size", m.peer(m.researcher)},
		{"a hop left out", dropPart(good, 1), "actor.grants", m.peer(m.researcher)},
		{"no ID token", good[:strings.LastIndexByte(good, '~')], "root.id-token-missing", m.peer(m.researcher)},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := m.core.Open(context.Background(), c.peer, c.credential, m.target, shop)
			r := refusal(t, err)
			if r.Class != c.class {
				t.Errorf("class %q (%s), want %q", r.Class, r.Reason, c.class)
			}
			e, ok := m.recorded(r.RecordID).Event.(*audit.Refused)
			if !ok || e.Class != c.class || e.Target != "orders-db" {
				t.Errorf("record %+v", e)
			}
			if strings.Contains(r.Error(), "eyJ") {
				t.Error("the reason holds a token")
			}
		})
	}
	if _, err := m.core.Open(context.Background(), m.peer(m.researcher), good, must(target.ParseName("payroll")), shop); refusal(t, err).Class != proxy.ClassTarget {
		t.Errorf("a target that isn't served: %v", err)
	}
	if _, err := m.core.Open(context.Background(), m.peer(m.researcher), good, m.target, shop); err != nil {
		t.Errorf("the control is refused: %v", err)
	}
}

func dropPart(credential string, i int) string {
	parts := strings.Split(credential, "~")
	return strings.Join(append(parts[:i:i], parts[i+1:]...), "~")
}

// TestRefusedCredentialsDontFillTheLog: a peer that is refused over and over is counted in aggregate.
func TestRefusedCredentialsDontFillTheLog(t *testing.T) {
	m := serving(t)
	none := 0
	for range 120 {
		_, err := m.core.Open(context.Background(), m.peer(m.researcher), "nonsense", m.target, shop)
		if refusal(t, err).RecordID == "" {
			none++
		}
	}
	records := 0
	for _, r := range audittest.Records(t, m.log) {
		if e, ok := r.Event.(*audit.Refused); ok && e.Count == 0 && e.Target != "" {
			records++
		}
	}
	if records != 50 || none != 70 {
		t.Errorf("%d recorded one by one, %d only counted", records, none)
	}
}

func TestSessionsAreLimited(t *testing.T) {
	m := serving(t, func(_ *audit.Config, cfg *proxy.Config, _ *proxy.StateConfig) {
		cfg.MaxSessions, cfg.MaxSessionsPerTask = 3, 2
	})
	first, second := m.open(m.flow()), m.open(m.flow())
	open := func(f *flow) error {
		s, err := m.core.Open(context.Background(), m.peer(m.researcher), m.credential(f), m.target, shop)
		if err == nil {
			t.Cleanup(func() { s.Close("client", "") })
		}
		return err
	}
	if refusal(t, open(m.flow())).Class != proxy.ClassQuota {
		t.Error("a third session of one task")
	}
	other := m.flow()
	other.txn = actor.NewHexID()
	if err := open(other); err != nil {
		t.Error(err)
	}
	other.txn = actor.NewHexID()
	if refusal(t, open(other)).Class != proxy.ClassQuota {
		t.Error("a fourth session")
	}
	first.Close("client", "")
	second.Close("client", "")
	if err := open(m.flow()); err != nil {
		t.Errorf("closed sessions still count: %v", err)
	}
}

// TestTheEvidenceOfASessionIsKept: what the credential was verified with is in the log, by digest.
func TestTheEvidenceOfASessionIsKept(t *testing.T) {
	m := serving(t)
	f := m.flow()
	m.open(f)
	kinds := map[string]int{}
	for _, r := range audittest.Records(t, m.log) {
		if e, ok := r.Event.(*audit.Evidence); ok {
			kinds[e.Kind]++
		}
	}
	for _, k := range []string{audit.KindCredential, audit.KindCertificate, audit.KindKeyStatement, audit.KindVerification} {
		if kinds[k] == 0 {
			t.Errorf("no evidence of kind %s (%v)", k, kinds)
		}
	}
}
