package postgres

import (
	"errors"
	"testing"
)

// What a target says of its tables and views may go in circles, or be more than anybody can follow.
func TestCatalogueInCircles(t *testing.T) {
	s := &snapshot{byOID: map[uint32]*relation{}}
	for i := range uint32(4) {
		s.byOID[i] = &relation{oid: i}
	}
	circle := map[uint32][]uint32{0: {1, 2}, 1: {2, 0}, 2: {0, 1, 2}, 3: {0}}
	if err := errors.Join(s.relate(circle), s.lookBehind(circle)); err != nil {
		t.Fatal(err)
	}
	if kin := len(s.byOID[3].kin); kin != 3 {
		t.Errorf("a table below a circle has %d kin, want the three of the circle", kin)
	}
	if behind := len(s.byOID[3].behind); behind != 3 {
		t.Errorf("a view over a circle reads %d, want the three of the circle", behind)
	}
	chain := &snapshot{byOID: map[uint32]*relation{}}
	parents := map[uint32][]uint32{}
	for i := range uint32(8000) {
		chain.byOID[i] = &relation{oid: i}
		parents[i] = []uint32{i + 1}
	}
	if err := chain.relate(parents); !errors.Is(err, errTangled) {
		t.Errorf("a chain of 8000 tables: %v", err)
	}
	if err := chain.lookBehind(parents); !errors.Is(err, errTangled) {
		t.Errorf("a chain of 8000 views: %v", err)
	}
}
