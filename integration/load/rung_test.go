//go:build bench

package load_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	_ "net/http/pprof" // of this binary alone
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/internal/sqlparse"
	"github.com/deputymesh/deputy/internal/testpg"
	"github.com/deputymesh/deputy/policy"
	"github.com/deputymesh/deputy/proxy"
	"github.com/deputymesh/deputy/proxy/postgres"
)

// The product can't do less than everything, so the lower rungs of the ladder are made here, from the seams that the engine has:
// the same engine and the same TLS in a process of its own, with stand-ins for what comes above.
const (
	rungRelay  = "relay"           // every statement is taken for a harmless one, and allowed
	rungParse  = "+ parse"         // the real parser, everything allowed
	rungPolicy = "+ policy"        // the real policy set without masks, and the capability
	rungMasks  = "+ masking rules" // masks in force in the database
	rungMasked = "+ on this table" // and on the table that is read
)

var rungs = []string{rungRelay, rungParse, rungPolicy, rungMasks, rungMasked}

// rungArg makes this binary a rung.
const rungArg = "rung"

type rungConfig struct {
	Rung, Listen, Upstream, CAFile string
	SVID, Key, Bundle              []byte
	Policies                       string // folder
}

// rungMain serves one rung until it is killed.
func rungMain() error {
	var c rungConfig
	if err := json.NewDecoder(os.Stdin).Decode(&c); err != nil {
		return err
	}
	if err := serveProfiles(); err != nil {
		return err
	}
	svid, err := x509svid.Parse(c.SVID, c.Key)
	if err != nil {
		return err
	}
	td := svid.ID.TrustDomain()
	bundle, err := x509bundle.Parse(td, c.Bundle)
	if err != nil {
		return err
	}
	ca, err := os.ReadFile(c.CAFile)
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	core, err := newRung(c)
	if err != nil {
		return err
	}
	var parser postgres.Parser = anything{}
	if c.Rung != rungRelay {
		self, err := os.Executable()
		if err != nil {
			return err
		}
		pool, err := sqlparse.New(context.Background(), sqlparse.Config{Command: []string{self, sqlparse.ChildArg}})
		if err != nil {
			return err
		}
		defer pool.Close()
		parser = pool
	}
	e, err := postgres.New(postgres.Config{
		Core: core, Target: core.target, TLS: proxy.ServerTLS(svid, bundle, td),
		Upstream:  postgres.Upstream{Address: c.Upstream, RootCAs: roots},
		Accounts:  []postgres.Account{{Name: testpg.App, Password: testpg.AppPassword}},
		Databases: []string{testpg.Database}, DefaultDatabase: testpg.Database, Parser: parser, Logger: slog.Default(),
	})
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", c.Listen)
	if err != nil {
		return err
	}
	return e.Serve(context.Background(), l)
}

// serveProfiles does for this binary what testdata/profile does for deputy.
func serveProfiles() error {
	dir := os.Getenv(profileVariable)
	if dir == "" {
		return nil
	}
	l, err := net.Listen("unix", filepath.Join(dir, fmt.Sprintf("%d.sock", os.Getpid())))
	if err != nil {
		return err
	}
	runtime.SetMutexProfileFraction(100)
	runtime.SetBlockProfileRate(100_000)
	go func() { _ = http.Serve(l, nil) }()
	return nil
}

// anything takes every text for one harmless SELECT without relations.
type anything struct{}

func (anything) ParseFor(_ context.Context, _, sql string) ([]sqlparse.Statement, error) {
	return []sqlparse.Statement{{Kind: sqlparse.KindSelect, Tag: "SELECT", Text: sql, Normalized: sql}}, nil
}

// rung is a core that records nothing, and decides as far as its rung goes.
type rung struct {
	target  spiffeid.ID
	set     *policy.Set // nil: everything is allowed
	masks   []policy.MaskedTable
	subject *policy.Subject
	details actor.Details
}

func newRung(c rungConfig) (*rung, error) {
	r := &rung{target: spiffeid.RequireFromString("spiffe://bench.example/target/orders-db")}
	if c.Rung == rungRelay || c.Rung == rungParse {
		return r, nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	src := policy.Source{Version: 1, Schema: policy.SchemaID, IssuedAt: 1, Files: map[string]string{},
		Targets: map[string]policy.Target{"orders-db": {Kind: "postgres", Groups: []string{"bench"}}}}
	files, err := filepath.Glob(filepath.Join(c.Policies, "*.cedar"))
	if err != nil || len(files) == 0 {
		return nil, errors.Join(err, fmt.Errorf("no policies in %s", c.Policies))
	}
	for _, f := range files {
		raw, err := os.ReadFile(f)
		if err != nil {
			return nil, err
		}
		src.Files[filepath.Base(f)] = string(withoutMasks(c.Rung).ReplaceAll(raw, nil))
	}
	signed, err := policy.Sign(key, src)
	if err != nil {
		return nil, err
	}
	if r.set, err = policy.Open(signed, []*ecdsa.PublicKey{&key.PublicKey}, 0); err != nil {
		return nil, err
	}
	r.masks = r.set.MaskedTables("orders-db")
	r.details = actor.Details{actor.PostgresDetail{Locations: []spiffeid.ID{r.target}, Actions: []string{"select", "insert", "update", "delete"}}}
	now := time.Now()
	facts := policy.Facts{
		User: policy.User{Issuer: "https://idp.bench.example", Subject: "ben", Grade: "attested"}, TrustDomain: "bench.example",
		Roles: []string{"bench"}, RootEvidence: "verified", SignedIn: now, Started: now, Issued: now,
	}
	id := "spiffe://bench.example/agent"
	for _, name := range depth3 {
		id += "/" + name + "/" + actor.NewHexID()
		facts.Agents = append(facts.Agents, policy.Agent{ID: id, Grade: "attested"})
	}
	r.subject, err = policy.NewSubjectFromFacts(facts)
	return r, err
}

// withoutMasks matches the masks that a rung does without.
func withoutMasks(rung string) *regexp.Regexp {
	switch rung {
	case rungPolicy:
		return regexp.MustCompile(`@mask\(.*\)\n`)
	case rungMasks:
		return regexp.MustCompile(`@mask\("pgbench_.*\)\n`)
	}
	return regexp.MustCompile(`nothing at all^`)
}

func (r *rung) Open(context.Context, proxy.Peer, string, proxy.Connection) (postgres.Session, error) {
	ctx, cancel := context.WithCancel(context.Background())
	return &rungSession{r, ctx, cancel}, nil
}

func (r *rung) MaskedTables() []policy.MaskedTable { return r.masks }
func (r *rung) Count(string)                       {}

type rungSession struct {
	*rung
	ctx    context.Context
	cancel func()
}

func (s *rungSession) ID() string               { return "bench" }
func (s *rungSession) Roles() []string          { return []string{"bench"} }
func (s *rungSession) Owner() actor.SubjectID   { return actor.SubjectID{} }
func (s *rungSession) Context() context.Context { return s.ctx }
func (s *rungSession) Close(string, string)     { s.cancel() }

func (s *rungSession) Refuse(_ context.Context, _ proxy.Command, o proxy.Objection) *proxy.Refusal {
	return &proxy.Refusal{Class: o.Class, Reason: o.Reason}
}

// Authorize decides as the proxy's core does, as far as this rung goes.
func (s *rungSession) Authorize(_ context.Context, cmd proxy.Command) (postgres.Pass, error) {
	if s.set == nil {
		return rungPass{}, nil
	}
	now := time.Now()
	var ob policy.Obligations
	for _, op := range cmd.Ops {
		if a, ok := op.Action.(actor.PostgresAction); ok && a.Verb != proxy.VerbConnect {
			if _, err := s.details.Match(op.Action); err != nil {
				return nil, &proxy.Refusal{Class: proxy.ClassCapability, Reason: err.Error()}
			}
		}
		d := s.set.Decide(policy.Request{
			Subject: s.subject, Now: now, Action: op.Action.Name(), Resource: op.Resource, Exact: op.Exact,
			Command: policy.Command{Database: cmd.Database, Account: cmd.Account, ReadOnly: cmd.ReadOnly, Kind: cmd.Kind},
		})
		if !d.Allow {
			return nil, &proxy.Refusal{Class: proxy.ClassPolicy, Reason: d.Reason}
		}
		ob = ob.And(d.Obligations)
	}
	if cmd.Check != nil {
		if err := cmd.Check(ob); err != nil {
			return nil, &proxy.Refusal{Class: proxy.ClassPolicy, Reason: err.Error()}
		}
	}
	return rungPass{ob}, nil
}

type rungPass struct{ ob policy.Obligations }

func (p rungPass) Obligations() policy.Obligations              { return p.ob }
func (rungPass) Use() error                                     { return nil }
func (rungPass) Wait(context.Context) error                     { return nil }
func (rungPass) Forwarded(int64)                                {}
func (rungPass) Completed(context.Context, proxy.Outcome) error { return nil }
