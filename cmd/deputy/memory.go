package main

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"sync"
	"time"
)

const (
	// idleFor is how long a role has little to do before it gives memory back.
	idleFor = 10 * time.Second
	// littleWork is what a role allocates in that time at most, and muchMemory what it must have allocated since the last
	// time: below that it isn't worth a collection.
	littleWork = 32 << 20
	muchMemory = 4 << 20
)

// giveMemoryBack lets an idle role return what it needed for a moment, such as for many connections that opened at once. Go's
// collector keeps as much again as is in use, and looks at an idle heap every two minutes only. The function that it
// returns ends it.
func giveMemoryBack(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(idleFor)
		defer tick.Stop()
		var idle idleness
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				idle.look()
			}
		}
	})
	return func() { cancel(); wg.Wait() }
}

// idleness remembers what had been allocated at the last look, and when memory was given back last.
type idleness struct{ looked, given uint64 }

// look gives memory back if little was allocated since the last look, and enough since it was given back last: what of that
// is still in use only a collection can tell.
func (i *idleness) look() {
	s := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(s)
	allocated := s[0].Value.Uint64()
	little := allocated-i.looked < littleWork
	i.looked = allocated
	if little && allocated-i.given >= muchMemory {
		i.given = allocated
		debug.FreeOSMemory()
	}
}
