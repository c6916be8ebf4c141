//go:build bench

package load_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/internal/feed"
	"github.com/deputymesh/deputy/internal/testca"
	"github.com/deputymesh/deputy/policy"
	"github.com/deputymesh/deputy/proxy"
)

// nowhere is a disk that keeps nothing and is done at once.
type nowhere struct {
	mu    sync.Mutex
	files map[string]*nothing
}

type nothing struct {
	mu   sync.Mutex
	size int64
}

func (*nowhere) MkdirAll(string) error { return nil }
func (n *nowhere) OpenFile(name string, _ int) (audit.File, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.files[name] == nil {
		n.files[name] = &nothing{}
	}
	return n.files[name], nil
}

func (n *nowhere) ReadDir(string) ([]string, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	var names []string
	for name := range n.files {
		names = append(names, filepath.Base(name))
	}
	slices.Sort(names)
	return names, nil
}

func (n *nowhere) Remove(name string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.files, name)
	return nil
}
func (*nowhere) SyncDir(string) error           { return nil }
func (*nowhere) Lock(string) (io.Closer, error) { return &nothing{}, nil }

func (f *nothing) ReadAt(b []byte, _ int64) (int, error) { clear(b); return len(b), nil }
func (f *nothing) WriteAt(b []byte, at int64) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.size = max(f.size, at+int64(len(b)))
	return len(b), nil
}

func (f *nothing) Size() (int64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.size, nil
}
func (*nothing) Datasync() error { return nil }
func (*nothing) Close() error    { return nil }

// auditLog opens a log that is bounded by nothing but its own speed; fs may be nil.
func (b *bench) auditLog(dir string, fs audit.FS) *audit.Log {
	b.t.Helper()
	key, err := audit.GenerateKey(rand.Reader, flowDomain+"/proxy/bench")
	b.try(err)
	l, err := audit.Open(audit.Config{
		Dir: dir, Source: "spiffe://" + flowDomain + "/deputy/proxy/bench", Key: key, HashKey: []byte("a key for measurements only"), FS: fs,
		Heartbeat: time.Hour, Logger: slog.New(slog.DiscardHandler),
		Quota: &audit.QuotaConfig{RecordsPerSecond: 1e9, RecordBurst: 1e9, BytesPerSecond: 1e12, ByteBurst: 1e12, MaxTrees: 100},
	})
	b.try(err)
	b.t.Cleanup(func() { _ = l.Close() })
	return l
}

// proxyState is the proxy's own state, with a snapshot of the feed applied: token keys, policy, nothing revoked.
func (f *flow) proxyState() *proxy.State {
	s, _ := f.stateAndLog()
	return s
}

func (f *flow) stateAndLog() (*proxy.State, *audit.Log) {
	b := f.b
	b.t.Helper()
	policyKey := testca.NewKey(b.t)
	log := b.auditLog(b.t.TempDir(), &nowhere{files: map[string]*nothing{}})
	s, err := proxy.NewState(proxy.StateConfig{
		Mesh: flowMesh, Certifying: &f.certifying.PublicKey, PolicyKeys: []*ecdsa.PublicKey{&policyKey.PublicKey},
		Staleness: time.Hour, Dir: b.t.TempDir(), Log: log, Logger: slog.New(slog.DiscardHandler),
	})
	b.try(err)
	src := policy.Source{Version: 1, Schema: policy.SchemaID, IssuedAt: 1, Files: map[string]string{},
		Targets: map[string]policy.Target{"orders-db": {Kind: "postgres", Groups: []string{"bench"}}}}
	files, err := filepath.Glob(filepath.Join(root(b.t), "integration", "load", "testdata", "policy", "*.cedar"))
	b.try(err)
	for _, file := range files {
		raw, err := os.ReadFile(file)
		b.try(err)
		src.Files[filepath.Base(file)] = string(raw)
	}
	signed, err := policy.Sign(policyKey, src)
	b.try(err)
	_, err = s.Apply(context.Background(), feed.Update{Revision: 1, SentAt: time.Now(), Kind: feed.Snapshot, Changes: feed.Changes{
		TokenKeyStatements: []string{f.must(actor.SignKeyStatement(f.certifying, f.keyStatement()))}, PolicySet: signed,
	}})
	b.try(err)
	return s, log
}

// proxyCore is the core of a proxy, with a log that has no disk.
func (f *flow) proxyCore() *proxy.Core {
	b := f.b
	b.t.Helper()
	state, log := f.stateAndLog()
	core, err := proxy.New(proxy.Config{
		TrustDomain: f.ca.TrustDomain(), Bundles: f.ca.Bundle(), Mesh: flowMesh, State: state, IdentityTokens: f.tokens,
		IdentityKeys: proxy.NewIdentityKeys(log, actor.DefaultMaxSession, nil), Audiences: []string{"deputy"},
		Targets: []proxy.Target{{Name: f.target}}, Log: log, Logger: slog.New(slog.DiscardHandler),
	})
	b.try(err)
	return core
}
