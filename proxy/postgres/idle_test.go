package postgres

import (
	"context"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestIdleForDays: nothing in a session, once it is open, ends it for silence, not even inside a transaction or while the target
// takes its time. (What ends it is the credential's end, a revocation, or one of the two sides.)
func TestIdleForDays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		agent, target, s := scripted(t, ctx, openSession{})
		done := make(chan struct{})
		go func() { defer close(done); s.run(ctx) }()
		readTo := func(end string) string {
			var got strings.Builder
			b := make([]byte, 1)
			for !strings.HasSuffix(got.String(), end) {
				if _, err := io.ReadFull(agent, b); err != nil {
					t.Fatalf("after %q: %v", got.String(), err)
				}
				got.Write(b)
			}
			return got.String()
		}
		for _, status := range []string{"I", "T", "I"} {
			time.Sleep(3 * 24 * time.Hour)
			if _, err := agent.Write([]byte(ask)); err != nil {
				t.Fatal(err)
			}
			heard := make([]byte, len(ask))
			if _, err := io.ReadFull(target, heard); err != nil {
				t.Fatal(err)
			}
			time.Sleep(3 * 24 * time.Hour)
			if _, err := target.Write([]byte(describedMasked + secretRow + selected + msg('Z', status))); err != nil {
				t.Fatal(err)
			}
			if got := readTo(msg('Z', status)); !strings.Contains(got, "****") {
				t.Errorf("%q", got)
			}
		}
		cancel()
		go func() { _, _ = io.Copy(io.Discard, target) }()
		go func() { _, _ = io.Copy(io.Discard, agent) }()
		<-done
	})
}
