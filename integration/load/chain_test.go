//go:build bench

package load_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/policy"
	"github.com/deputymesh/deputy/proxy"
)

// slice is the length of one measurement inside a process: no server needs to warm up.
func (b *bench) slice() time.Duration { return b.seconds / 5 }

// each runs f for a while and returns the microseconds of processor time that a call takes, collection of garbage included: who
// else uses the machine doesn't count.
func (b *bench) each(f func()) float64 {
	f()
	n, start, before := 0, time.Now(), b.ownTime()
	for batch := 1; ; {
		for range batch {
			f()
		}
		n += batch
		took := time.Since(start)
		if took >= b.slice() {
			return float64((b.ownTime() - before).Nanoseconds()) / 1000 / float64(n)
		}
		if took < b.slice()/10 {
			batch *= 2
		}
	}
}

// ownTime is the processor time of this process so far.
func (b *bench) ownTime() time.Duration {
	var u syscall.Rusage
	b.try(syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func (b *bench) try(err error) {
	if err != nil {
		b.t.Fatal(err)
	}
}

// coldCredentials is above what an idp.Verifier remembers.
const coldCredentials = 1100

// measureChains is the verification of a whole credential at the proxy: every signature, path, hash and rule.
func measureChains(b *bench) {
	f := b.flow()
	state := f.proxyState()
	for depth := 1; depth <= actor.HardMaxActors; depth++ {
		if !b.wants("chains", strconv.Itoa(depth)) {
			continue
		}
		agents := f.agents(depth)
		peer := agents[depth-1].Certificates
		// More sign-ins than are remembered, so that no ID token is known when its turn comes again.
		var credentials []string
		for range coldCredentials {
			f.signIn()
			credentials = append(credentials, f.credential(agents, actor.NewHexID()))
		}
		turn := 0
		next := func() string {
			turn++
			return credentials[turn%len(credentials)]
		}
		verifier := func() *actor.Verifier {
			v, err := actor.NewVerifier(actor.Config{
				TrustDomain: f.ca.TrustDomain(), Bundles: f.ca.Bundle(), Target: f.target.ID(f.ca.TrustDomain()), Mesh: flowMesh,
				TokenKeys: f, IdentityTokens: f.tokens, Revocations: state, MaxActors: actor.HardMaxActors,
			})
			b.try(err)
			return v
		}
		verify := func(v *actor.Verifier, credential string) *actor.Chain {
			c, err := v.Verify(context.Background(), peer, credential)
			b.try(err)
			return c
		}
		seen := verifier()
		chain := verify(seen, credentials[0])
		bare := f.bare(agents)
		op := f.operation()
		got := b.sideBySide(fmt.Sprintf("chains of depth %d, µs", depth), []subject{
			{"bare operations", func() float64 { return b.each(func() { bare(next()) }) }},
			{"cold", func() float64 { return b.each(func() { verify(verifier(), next()) }) }},
			{"re-presented", func() float64 { return b.each(func() { verify(seen, credentials[0]) }) }},
			{"per command", func() float64 {
				return b.each(func() {
					b.try(chain.Recheck(time.Now(), state))
					_, err := chain.Match(op.Action)
					b.try(err)
				})
			}},
		})
		for _, what := range []string{"cold", "re-presented", "per command"} {
			line := result{Name: "chain", Unit: "µs", Params: map[string]string{"depth": strconv.Itoa(depth), "when": what}}
			switch {
			case what == "cold" && depth == 5:
				line.aim = "≤ 1.30"
			case what == "per command":
				line.aim = "≤ 5 µs"
			}
			b.compare(line, got, what, "bare operations")
		}
	}
	if b.wants("chains", "authorize") {
		f.measureAuthorize()
	}
}

// bare is what can't be left out of a verification, with nothing around it: the same signatures, paths and hashes, and reading
// the same bytes.
func (f *flow) bare(agents []*x509svid.SVID) func(credential string) {
	roots := x509.NewCertPool()
	roots.AddCert(f.ca.Certificate())
	peer := agents[len(agents)-1].Certificates[0]
	path := func(c *x509.Certificate) error {
		_, err := c.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
		return err
	}
	return func(credential string) {
		parts := strings.Split(credential, "~")
		f.b.try(path(peer))
		for i, part := range parts {
			_ = sha256.Sum256([]byte(part)) // the link from the statement after it
			st, err := readBare(part)
			f.b.try(err)
			var key *ecdsa.PublicKey
			switch i {
			case 0:
				key = &f.tokenKey.PublicKey
			case len(parts) - 1:
				key = &f.providerKey.PublicKey
			default:
				key, err = st.key(path)
				f.b.try(err)
			}
			if !st.good(key) {
				f.b.t.Fatalf("the signature of part %d is bad", i)
			}
		}
	}
}

func (f *flow) operation() proxy.Op {
	return proxy.Op{
		Action:   actor.PostgresAction{Target: f.target.ID(f.ca.TrustDomain()), Verb: "select", Database: "shop", Schema: "public", Table: "pgbench_accounts"},
		Resource: policy.Table("orders-db", "shop", "public", "pgbench_accounts"), Columns: []string{"abalance", "aid"},
	}
}

// measureAuthorize is the whole decision on an open session, with a log that has no disk: chain, capability, policy, record and
// outcome.
func (f *flow) measureAuthorize() {
	b := f.b
	core, agents := f.proxyCore(), f.agents(3)
	s, err := core.Open(context.Background(), proxy.Peer{Certificates: agents[2].Certificates, Address: "127.0.0.1:5", TLS: "TLS 1.3"},
		f.credential(agents, actor.NewHexID()), f.target, proxy.Connection{Protocol: "postgres", Database: "shop"})
	b.try(err)
	defer s.Close("client", "")
	cmd := proxy.Command{Kind: "select", Text: "SELECT abalance FROM pgbench_accounts WHERE aid = 7", Scrubbed: "SELECT abalance FROM pgbench_accounts WHERE aid = $1",
		Database: "shop", Account: "shop_app", Ops: []proxy.Op{f.operation()}, ReadOnly: true}
	ctx := context.Background()
	got := b.sideBySide("authorize, µs", []subject{{"authorize", func() float64 {
		return b.each(func() {
			p, err := s.Authorize(ctx, cmd)
			b.try(err)
			b.try(p.Use())
			p.Forwarded(60)
			b.try(p.Completed(ctx, proxy.Outcome{Status: "ok", Command: "SELECT 1", Rows: 1, Bytes: 40}))
		})
	}}})
	b.add(result{Name: "authorize, policy and records, log without a disk", Unit: "µs", Params: map[string]string{"depth": "3"}, Value: median(got["authorize"])})
}
