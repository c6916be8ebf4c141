package audit

import (
	"container/list"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// QuotaConfig bounds what one task tree may write, so that nobody can fill the log to stop everybody.
// The budget belongs to the tree (`txn`): spawning more agents doesn't enlarge it.
type QuotaConfig struct {
	RecordsPerSecond float64
	RecordBurst      int
	BytesPerSecond   float64
	ByteBurst        int
	MaxTrees         int // trees tracked at once; the longest idle one makes room
}

// DefaultQuota lets the busiest task work (some 15,000 commands a second, for a minute) and stops one that would soon
// fill a disk.
func DefaultQuota() QuotaConfig {
	return QuotaConfig{RecordsPerSecond: 50000, RecordBurst: 200000, BytesPerSecond: 16 << 20, ByteBurst: 1 << 30, MaxTrees: 16384}
}

// quota holds one budget per task tree.
type quota struct {
	cfg QuotaConfig
	now func() time.Time

	mu    sync.Mutex
	trees map[string]*list.Element // of *budget
	idle  *list.List               // most recently used first
}

type budget struct {
	txn     string
	records *rate.Limiter
	bytes   *rate.Limiter
}

func newQuota(cfg QuotaConfig, now func() time.Time) *quota {
	return &quota{cfg: cfg, now: now, trees: make(map[string]*list.Element), idle: list.New()}
}

// take charges one record of n bytes to txn. Records that are owed are charged but never refused.
func (q *quota) take(txn string, n int, owed bool) bool {
	if txn == "" {
		return true
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	e, ok := q.trees[txn]
	if !ok {
		if q.idle.Len() >= q.cfg.MaxTrees {
			last := q.idle.Back()
			delete(q.trees, last.Value.(*budget).txn)
			q.idle.Remove(last)
		}
		e = q.idle.PushFront(&budget{
			txn:     txn,
			records: rate.NewLimiter(rate.Limit(q.cfg.RecordsPerSecond), q.cfg.RecordBurst),
			bytes:   rate.NewLimiter(rate.Limit(q.cfg.BytesPerSecond), q.cfg.ByteBurst),
		})
		q.trees[txn] = e
	} else {
		q.idle.MoveToFront(e)
	}
	b, now := e.Value.(*budget), q.now()
	if owed {
		// Going into debt would need negative tokens; using up what is there has the same effect on what follows.
		b.records.AllowN(now, 1)
		b.bytes.AllowN(now, min(n, q.cfg.ByteBurst))
		return true
	}
	if b.records.TokensAt(now) < 1 || b.bytes.TokensAt(now) < float64(n) {
		return false
	}
	return b.records.AllowN(now, 1) && b.bytes.AllowN(now, n)
}
