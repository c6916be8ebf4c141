package main

import (
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
