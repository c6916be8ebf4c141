//go:build linux

package main

import (
	"io"
	"strings"
	"testing"
	"time"
)

// A supervisor that waits for its standard error can't end its agent.
func TestAFullPipeHoldsNobodyUp(t *testing.T) {
	r, w := io.Pipe() // nobody reads
	defer r.Close()
	p := newPatientWriter(w)
	over := make(chan struct{})
	go func() {
		defer close(over)
		for range 1000 {
			if n, err := p.Write([]byte("a line\n")); n != 7 || err != nil {
				t.Error(n, err)
			}
		}
		p.flush()
	}()
	select {
	case <-over:
	case <-time.After(time.Minute):
		t.Fatal("it waits for a reader")
	}
}

func TestWhatCanBeWrittenIsWrittenInOrder(t *testing.T) {
	var got strings.Builder
	p := newPatientWriter(&got)
	for _, line := range []string{"one\n", "two\n", "three\n"} {
		if _, err := io.WriteString(p, line); err != nil {
			t.Fatal(err)
		}
	}
	p.flush()
	if got.String() != "one\ntwo\nthree\n" {
		t.Errorf("%q", got.String())
	}
}
