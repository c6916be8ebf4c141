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
	// littleWork is what a role allocates in that time at most, and muchMemory what it must be able to give back: below that
	// it isn't worth a collection.
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

// idleness remembers what was allocated at the last look.
type idleness struct{ allocated uint64 }

// look gives memory back if little was allocated since the last look and there is enough of it.
func (i *idleness) look() {
	s := []metrics.Sample{
		{Name: "/gc/heap/allocs:bytes"},
		{Name: "/memory/classes/heap/objects:bytes"}, // reachable or not
		{Name: "/gc/heap/live:bytes"},
		{Name: "/memory/classes/heap/free:bytes"},
	}
	metrics.Read(s)
	allocated, objects, live, free := s[0].Value.Uint64(), s[1].Value.Uint64(), s[2].Value.Uint64(), s[3].Value.Uint64()
	little := allocated-i.allocated < littleWork
	i.allocated = allocated
	garbage := objects - min(live, objects)
	if little && garbage+free >= muchMemory {
		debug.FreeOSMemory()
	}
}
