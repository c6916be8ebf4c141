package main

import (
	"context"
	"os"
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
	// spare is what a role that works may take beyond what it needs, so that collections are rare. A role's data is a few
	// MiB: at Go's pace, as much again, a busy proxy collects fifteen times a second.
	spare = 64 << 20
	// busyWork is what a role that works allocates in a second at least. While what is in use grows, by steadyUse in a second, as
	// when many connections open, collections come at Go's pace: what stays would lie scattered among what goes.
	busyWork  = 16 << 20
	steadyUse = 2 << 20
)

// paceMemory lets a role that works take some memory to save time, and an idle one return what it needed for a moment, such as
// for many connections that opened at once. Go's collector looks at an idle heap every two minutes only. Where GOGC is
// set, collections come as it says. The function that it returns ends it.
func paceMemory(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		tick, second := time.NewTicker(idleFor), time.NewTicker(time.Second)
		defer tick.Stop()
		defer second.Stop()
		var idle idleness
		var pace pace
		_, set := os.LookupEnv("GOGC")
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				idle.look()
			case <-second.C:
				if !set {
					pace.look(read("/gc/heap/allocs:bytes"), read("/gc/heap/live:bytes"))
				}
			}
		}
	})
	return func() { cancel(); wg.Wait() }
}

// pace remembers what had been allocated and what was in use a second ago, and what it set.
type pace struct {
	allocated, live uint64
	percent         int
}

// look sets how much the heap may grow before the next collection.
func (p *pace) look(allocated, live uint64) {
	percent := 100
	if allocated-p.allocated >= busyWork && live < p.live+steadyUse {
		percent = gcPercent(live)
	}
	p.allocated, p.live = allocated, live
	if percent != p.percent {
		p.percent = percent
		debug.SetGCPercent(percent)
	}
}

// gcPercent is how much a heap with live bytes in use may grow before the next collection: by spare, as much again at least.
func gcPercent(live uint64) int { return int(max(100, spare*100/max(live, spare/8))) }

func read(metric string) uint64 {
	s := []metrics.Sample{{Name: metric}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}

// idleness remembers what had been allocated at the last look, and when memory was given back last.
type idleness struct{ looked, given uint64 }

// look gives memory back if little was allocated since the last look, and enough since it was given back last: what of that
// is still in use only a collection can tell.
func (i *idleness) look() {
	allocated := read("/gc/heap/allocs:bytes")
	little := allocated-i.looked < littleWork
	i.looked = allocated
	if little && allocated-i.given >= muchMemory {
		i.given = allocated
		debug.FreeOSMemory()
	}
}
