package limit_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/deputymesh/deputy/broker/limit"
)

func TestLimiter(t *testing.T) {
	now := time.Unix(1000, 0)
	l := limit.New(1, 3, 4)
	count := func(who string, n int) (passed int) {
		for range n {
			if l.Allow(who, now) {
				passed++
			}
		}
		return passed
	}
	if got := count("a", 10); got != 3 {
		t.Errorf("%d passed at once, want 3", got)
	}
	if got := count("b", 1); got != 1 {
		t.Error("one caller holds another back")
	}
	now = now.Add(2 * time.Second)
	if got := count("a", 10); got != 2 {
		t.Errorf("%d passed after two seconds, want 2", got)
	}
	// Many names don't make it forget somebody who keeps coming.
	for i := range 50 {
		count(fmt.Sprint(i), 1)
		if count("a", 1) != 0 {
			t.Fatalf("after %d other callers it was forgotten", i)
		}
	}
}
