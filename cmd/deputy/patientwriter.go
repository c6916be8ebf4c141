//go:build linux

package main

import (
	"bytes"
	"io"
	"time"
)

// patientWriter keeps nobody waiting. A supervisor's standard error is its agent's, too, and often a pipe: whoever doesn't read
// it, or fills it, must not keep the supervisor from ending the agent. What can't be written soon is lost.
type patientWriter struct {
	texts chan []byte
	asked chan chan struct{}
}

// newPatientWriter writes to w until the process ends.
func newPatientWriter(w io.Writer) *patientWriter {
	p := &patientWriter{texts: make(chan []byte, 64), asked: make(chan chan struct{})}
	go func() {
		for {
			select {
			case text := <-p.texts:
				_, _ = w.Write(text)
			case done := <-p.asked:
				for len(p.texts) > 0 {
					_, _ = w.Write(<-p.texts)
				}
				close(done)
			}
		}
	}()
	return p
}

func (p *patientWriter) Write(text []byte) (int, error) {
	select {
	case p.texts <- bytes.Clone(text):
	default:
	}
	return len(text), nil
}

// flush waits until all is written, but not for long.
func (p *patientWriter) flush() {
	const patience = 2 * time.Second
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	done := make(chan struct{})
	select {
	case p.asked <- done:
	case <-timeout.C:
		return
	}
	select {
	case <-done:
	case <-timeout.C:
	}
}
