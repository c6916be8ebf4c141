//go:build bench

package load_test

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/audit"
)

// measureLog is what the write-ahead log takes: decisions that are waited for, each with an outcome that isn't, as a proxy writes
// them for read-only statements.
func measureLog(b *bench) {
	f := b.flow()
	agents := f.agents(3)
	v, err := actor.NewVerifier(actor.Config{TrustDomain: f.ca.TrustDomain(), Bundles: f.ca.Bundle(), Target: f.target.ID(f.ca.TrustDomain()),
		Mesh: flowMesh, TokenKeys: f, IdentityTokens: f.tokens, Revocations: f.proxyState()})
	b.try(err)
	verified, err := v.Verify(context.Background(), agents[2].Certificates, f.credential(agents, actor.NewHexID()))
	b.try(err)
	chain := audit.FromChain(verified, audit.DigestOf([]byte("evidence")))

	memory, err := os.MkdirTemp(tmpfs, "deputy-bench-")
	b.try(err)
	b.t.Cleanup(func() { _ = os.RemoveAll(memory) })
	onDisk, err := os.MkdirTemp(b.dir, "log-")
	b.try(err)
	logs := map[string]*audit.Log{"disk": b.auditLog(onDisk+"/audit", nil), "tmpfs": b.auditLog(memory+"/audit", nil)}
	for _, writers := range []int{1, 8, 32} {
		if !b.wants("log", strconv.Itoa(writers)) {
			continue
		}
		rate := func(l *audit.Log) float64 {
			var wg sync.WaitGroup
			var n atomic.Int64
			start := time.Now()
			end := start.Add(b.slice() * 2)
			for range writers {
				wg.Go(func() {
					for time.Now().Before(end) {
						receipt, err := l.Append(context.Background(), audit.Record{Session: chain.SID, Connection: "c", Chain: chain, Event: &audit.Decision{
							Effect: audit.Allow, Target: "orders-db", Action: "postgres:select",
							Objects:   []audit.Object{{Kind: "table", Name: "public.pgbench_accounts", Columns: []string{"abalance", "aid"}}},
							Statement: l.Text("SELECT abalance FROM pgbench_accounts WHERE aid = 7", "SELECT abalance FROM pgbench_accounts WHERE aid = $1"),
							ReadOnly:  true, Account: "shop_app", Policies: []string{"bench-works-on-its-tables", "bench-reads-the-catalogue"},
							PolicyVersion: 1, PolicyDigest: audit.DigestOf([]byte("set")),
						}})
						if err != nil {
							b.t.Error(err)
							return
						}
						l.Submit(audit.Record{Session: chain.SID, Connection: "c", Decision: receipt.RecordID, Chain: chain,
							Event: &audit.Completed{Status: "ok", Command: "SELECT 1", Rows: 1, BytesIn: 60, BytesOut: 40}})
						n.Add(2)
					}
				})
			}
			wg.Wait()
			return float64(n.Load()) / time.Since(start).Seconds()
		}
		got := b.sideBySide(fmt.Sprintf("log, %d writers, records/s", writers), []subject{
			{"disk", func() float64 { return rate(logs["disk"]) }},
			{"tmpfs", func() float64 { return rate(logs["tmpfs"]) }},
		})
		for _, where := range []string{"disk", "tmpfs"} {
			line := result{Name: "log", Unit: "records/s", Params: map[string]string{"writers": strconv.Itoa(writers), "log": where}, Value: median(got[where])}
			if writers == 32 {
				line.aim = "≥ 50000"
			}
			b.add(line)
		}
	}
	b.add(result{Name: "fdatasync of 4 KiB, alone", Unit: "µs", Params: map[string]string{}, Value: b.fdatasync()})
}

// fdatasync says how long this disk takes at the moment, since most of what waits for a log waits for that.
func (b *bench) fdatasync() float64 {
	file, err := os.CreateTemp(b.dir, "sync-")
	b.try(err)
	defer file.Close()
	block := make([]byte, 4096)
	for i := range 1024 {
		_, err := file.WriteAt(block, int64(i)*4096)
		b.try(err)
	}
	b.try(file.Sync())
	var took []float64
	for i := range 300 {
		start := time.Now()
		_, err := file.WriteAt(block, int64(i)*4096)
		b.try(err)
		b.try(syscall.Fdatasync(int(file.Fd())))
		took = append(took, float64(time.Since(start).Nanoseconds())/1000)
	}
	return median(took)
}
