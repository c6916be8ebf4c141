package mcpstdio_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"github.com/deputymesh/deputy/internal/mcpstdio"
)

// A place is taken until its process has ended; who waits gets one that is left, and nobody waits for the place of a process that goes on.
func TestPlacesAreTakenUntilTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := mcpstdio.NewPlacesForTest(2)
		take := func(ctx context.Context) chan error {
			got := make(chan error, 1)
			go func() { got <- p.Take(ctx) }()
			synctest.Wait()
			return got
		}
		taken := func(got chan error) bool {
			t.Helper()
			synctest.Wait()
			select {
			case err := <-got:
				return err == nil
			default:
				t.Fatal("it waits")
				return false
			}
		}
		waits := func(got chan error) {
			t.Helper()
			synctest.Wait()
			if len(got) > 0 {
				t.Fatalf("it doesn't wait: %v", <-got)
			}
		}
		for i, want := range []bool{true, true, false} {
			if taken(take(t.Context())) != want {
				t.Fatalf("place %d: taken %v", i+1, !want)
			}
		}
		p.Ends()
		first := take(t.Context())
		waits(first)
		if taken(take(t.Context())) {
			t.Fatal("two wait for one place")
		}
		p.HasEnded()
		if !taken(first) || taken(take(t.Context())) {
			t.Fatal("the place that was left is free")
		}
		// Who leaves while waiting leaves the place to others, whether or not one has been left meanwhile.
		p.Ends()
		p.Ends()
		ctx, leave := context.WithCancel(t.Context())
		second, third := take(ctx), take(t.Context())
		leave()
		synctest.Wait()
		if err := <-second; !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		waits(third)
		p.HasEnded()
		p.HasEnded()
		if !taken(third) || !taken(take(t.Context())) || taken(take(t.Context())) {
			t.Fatal("a place is lost, or there is one too many")
		}
		p.Ends()
		ctx, leave = context.WithCancel(t.Context())
		last := take(ctx)
		p.HasEnded()
		leave()
		if taken(last) {
			p.GiveBack()
		}
		if !taken(take(t.Context())) || taken(take(t.Context())) {
			t.Fatal("a place is lost, or there is one too many")
		}
	})
}
