package main

import (
	"runtime/debug"
	"runtime/metrics"
	"testing"
)

func freeOfHeap() uint64 {
	s := []metrics.Sample{{Name: "/memory/classes/heap/free:bytes"}, {Name: "/memory/classes/heap/objects:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64() + s[1].Value.Uint64()
}

// A role that needed memory for a moment has given it back at the second look, and not while it works.
func TestAnIdleRoleGivesMemoryBack(t *testing.T) {
	const burst = 64 << 20
	var i idleness
	i.look()
	hold := make([][]byte, 0, burst>>20)
	for range burst >> 20 {
		hold = append(hold, make([]byte, 1<<20))
	}
	for _, h := range hold {
		h[len(h)-1] = 1
	}
	hold = nil
	_ = hold
	before := freeOfHeap()
	i.look() // it worked: nothing happens yet
	if busy := freeOfHeap(); busy < before-burst/2 {
		t.Errorf("%d MiB were given back while the role worked", (before-busy)>>20)
	}
	i.look()
	if idle := freeOfHeap(); idle > before-burst/2 {
		t.Errorf("%d MiB are kept of %d", idle>>20, before>>20)
	}
}

func TestASmallHeapGrowsBeforeItIsCollected(t *testing.T) {
	for live, want := range map[uint64]int{0: 800, 1 << 20: 800, 8 << 20: 800, 32 << 20: 200, 64 << 20: 100, 1 << 30: 100} {
		if got := gcPercent(live); got != want {
			t.Errorf("with %d MiB in use: %d %%, want %d", live>>20, got, want)
		}
	}
}

func TestOnlyARoleThatWorksSteadilyTakesSpareMemory(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(100))
	const mb = 1 << 20
	var p pace
	for i, step := range []struct {
		allocated, live uint64
		want            int
	}{
		{5 * mb, 5 * mb, 100},     // it starts
		{6 * mb, 5 * mb, 100},     // and has nothing to do
		{120 * mb, 40 * mb, 100},  // connections open
		{240 * mb, 41 * mb, 156},  // they work
		{360 * mb, 40 * mb, 160},  //
		{360 * mb, 40 * mb, 100},  // and rest
		{480 * mb, 8 * mb, 800},   // few are left
		{600 * mb, 900 * mb, 100}, // and very many come
	} {
		p.look(step.allocated, step.live)
		if p.percent != step.want {
			t.Errorf("step %d: %d %%, want %d", i, p.percent, step.want)
		}
	}
}
