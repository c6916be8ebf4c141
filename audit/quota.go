package audit

import (
	"container/list"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

// QuotaConfig bounds what one task tree and one user may write, so that nobody can fill the log to stop everybody.
// Rates belong to the tree (`txn`): spawning more agents doesn't enlarge them. What they add up to belongs to the
// user, who may open as many tasks as he likes.
type QuotaConfig struct {
	RecordsPerSecond float64
	RecordBurst      int
	BytesPerSecond   float64
	ByteBurst        int
	MaxTrees         int // trees, and users, tracked at once; the longest idle one makes room
	// DiskShare is the part of the room that is left on the log's disk that one user may fill in a day; 0 is no limit.
	// It shrinks with the room: whatever one user does, the next one finds most of it.
	DiskShare float64
}

// DefaultQuota lets the busiest task work (some 15,000 commands a second, for a minute) and stops one that would soon
// fill a disk.
func DefaultQuota() QuotaConfig {
	return QuotaConfig{RecordsPerSecond: 50000, RecordBurst: 200000, BytesPerSecond: 16 << 20, ByteBurst: 1 << 30, MaxTrees: 16384, DiskShare: 0.125}
}

// quota holds one budget per task tree.
type quota struct {
	cfg QuotaConfig
	now func() time.Time

	mu    sync.Mutex
	trees map[string]*list.Element // of *budget
	idle  *list.List               // most recently used first
	users map[owner]*filled

	room   atomic.Int64 // left on the disk when a segment was last made; -1 if nobody knows
	beside atomic.Int64 // what a record takes on the disk beside its own bytes, in the newest frame
}

// owner is a user, as the identity provider names him.
type owner struct{ issuer, subject string }

// filled is what a user has written of his share; a day makes it good.
type filled struct {
	bytes float64
	at    time.Time
}

type budget struct {
	txn     string
	user    owner // of its records that have a chain; evidence has none
	records *rate.Limiter
	bytes   *rate.Limiter
}

func newQuota(cfg QuotaConfig, now func() time.Time) *quota {
	q := &quota{cfg: cfg, now: now, trees: make(map[string]*list.Element), idle: list.New(), users: make(map[owner]*filled)}
	q.room.Store(-1)
	return q
}

// leastShare lets a user work on a small disk, and at the end of a large one, where MinFree is the limit.
const leastShare = 64 << 20

// share charges n bytes to a user. The caller holds mu.
func (q *quota) share(user owner, n int, now time.Time, owed bool) bool {
	room := q.room.Load()
	if q.cfg.DiskShare <= 0 || room < 0 || user == (owner{}) {
		return true
	}
	limit := max(float64(room)*q.cfg.DiskShare, leastShare)
	f := q.users[user]
	if f == nil {
		if len(q.users) >= q.cfg.MaxTrees {
			q.forgetUser()
		}
		f = &filled{at: now}
		q.users[user] = f
	}
	f.bytes = max(0, f.bytes-limit*now.Sub(f.at).Hours()/24)
	f.at = now
	if cost := float64(int64(n) + q.beside.Load()); owed || f.bytes+cost <= limit {
		f.bytes += cost
		return true
	}
	return false
}

// forgetUser makes room for another: who wrote least has least to be forgiven.
func (q *quota) forgetUser() {
	least := owner{}
	for user, f := range q.users {
		if least == (owner{}) || f.bytes < q.users[least].bytes {
			least = user
		}
	}
	delete(q.users, least)
}

// take charges one record of n bytes to txn and to its user, and says which of them has used up what it has. Records that are
// owed are charged but never refused.
func (q *quota) take(txn string, user owner, n int, owed bool) error {
	if txn == "" {
		return nil
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
	if user == (owner{}) {
		user = b.user
	} else {
		b.user = user
	}
	// The share is charged last: what the task's own budget refuses is written nowhere, and must not fill it.
	switch {
	case owed:
	case b.records.TokensAt(now) < 1:
		return ErrOverQuota
	case b.bytes.TokensAt(now) < float64(n):
		return ErrOverBytes
	}
	if !q.share(user, n, now, owed) {
		return ErrOverShare
	}
	// For what is owed, going into debt would need negative tokens; using up what is there has the same effect on what follows.
	b.records.AllowN(now, 1)
	b.bytes.AllowN(now, min(n, q.cfg.ByteBurst))
	return nil
}
