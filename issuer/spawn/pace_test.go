package spawn

import (
	"testing"
	"time"
)

// Broker and proxies remember every agent for hours. One that starts and ends others as fast as it may for that long must
// not fill what they can hold.
func TestAgentsDontComeAndGoFastForEver(t *testing.T) {
	p := Limits{}.WithDefaults().newPace()
	now := time.Now()
	admitted := 0
	for range 4 * 3600 * 20 { // four hours, twenty attempts a second
		now = now.Add(50 * time.Millisecond)
		if p.allow(now) {
			admitted++
		}
	}
	if admitted < 10_000 || admitted > 16_000 {
		t.Errorf("%d agents in four hours", admitted)
	}
	// A team that starts at once still does.
	p = Limits{}.WithDefaults().newPace()
	for i := range 32 {
		if !p.allow(now) {
			t.Fatalf("the agent %d of a team was refused", i)
		}
	}
}
