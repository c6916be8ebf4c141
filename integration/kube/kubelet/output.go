package main

import (
	"io"
	"sync"
)

// output is what a process wrote so far, for any number of readers. It is kept whole: processes of tests say little.
type output struct {
	mu      sync.Mutex
	data    []byte
	over    bool
	changed chan struct{}
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.data = append(o.data, b...)
	o.wake()
	return len(b), nil
}

func (o *output) finish() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.over = true
	o.wake()
}

func (o *output) wake() {
	if o.changed != nil {
		close(o.changed)
		o.changed = nil
	}
}

func (o *output) len() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.data)
}

// copyTo writes what there is from an offset on, and what comes, until the process has ended or stop is closed.
func (o *output) copyTo(w io.Writer, at int, stop <-chan struct{}) error {
	for {
		o.mu.Lock()
		next, over := o.data[at:], o.over
		if o.changed == nil {
			o.changed = make(chan struct{})
		}
		changed := o.changed
		o.mu.Unlock()
		if len(next) > 0 {
			if _, err := w.Write(next); err != nil {
				return err
			}
			at += len(next)
			continue
		}
		if over {
			return nil
		}
		select {
		case <-changed:
		case <-stop:
			return nil
		}
	}
}
