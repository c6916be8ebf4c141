package audit_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/audit/audittest"
)

// BenchmarkAppend measures durable appends of a decision with a chain of two agents.
func BenchmarkAppend(b *testing.B) {
	for _, writers := range []int{1, 8, 32, 128} {
		b.Run(fmt.Sprintf("writers=%d", writers), func(b *testing.B) {
			cfg := audittest.Config(b)
			cfg.SegmentSize = 16 << 20
			cfg.Quota = &audit.QuotaConfig{RecordsPerSecond: 1e9, RecordBurst: 1e9, BytesPerSecond: 1e12, ByteBurst: 1e12, MaxTrees: 1}
			l := audittest.OpenConfig(b, cfg)
			chain := testChain("txn")
			took := make([][]time.Duration, writers)
			b.ResetTimer()
			var wg sync.WaitGroup
			for w := range writers {
				wg.Go(func() {
					for range b.N/writers + 1 {
						start := time.Now()
						rcpt, err := l.Append(context.Background(), allow(chain))
						if err != nil {
							b.Error(err)
							return
						}
						took[w] = append(took[w], time.Since(start))
						l.Submit(audit.Record{Decision: rcpt.RecordID, Chain: chain, Event: &audit.Completed{Status: "ok"}})
					}
				})
			}
			wg.Wait()
			b.StopTimer()
			all := slices.Concat(took...)
			slices.Sort(all)
			b.ReportMetric(float64(all[len(all)/2].Microseconds()), "p50-us")
			b.ReportMetric(float64(all[len(all)*99/100].Microseconds()), "p99-us")
			b.ReportMetric(2*float64(len(all))/b.Elapsed().Seconds(), "records/s")
		})
	}
}
