package actor_test

import (
	"encoding/json"
	"testing"

	"pgregory.net/rapid"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/internal/testverifier"
)

// noNarrowingWidens holds that what a capability within another covers, that one covers. least is how often each must come up.
func noNarrowingWidens[A actor.Action](t *testing.T, draw func(*rapid.T) (parent, child actor.Detail), actions func(*rapid.T) []A, least int) {
	t.Helper()
	within, outside, covered := 0, 0, 0
	rapid.Check(t, func(t *rapid.T) {
		parent, child := draw(t)
		p, c := actor.Details{parent}, actor.Details{child}
		if c.Within(p) != nil {
			outside++
			return
		}
		within++
		for _, a := range actions(t) {
			if _, err := c.Match(a); err != nil {
				continue
			}
			covered++
			if _, err := p.Match(a); err != nil {
				t.Fatalf("%+v is in %s but not in %s, which it lies within: %v", a, c, p, err)
			}
		}
	})
	if within < least || outside < least || covered < 5*least {
		t.Errorf("%d lay within, %d outside, %d actions were covered: the draw proves little", within, outside, covered)
	}
}

// comparison is of this package with the second verifier, by classes of errors.
type comparison struct {
	t      *testing.T
	second *testverifier.Verifier
	counts map[string]int
}

func compare(t *testing.T) *comparison {
	return &comparison{t, testverifier.Start(t), map[string]int{}}
}

// ask compares whether child lies within parent, and whether parent covers an action, which is spelt for the other.
func (c *comparison) ask(parent, child actor.Detail, a actor.Action, spelt map[string]any) {
	c.t.Helper()
	raw := func(d actor.Detail) json.RawMessage { return must(json.Marshal([]any{d})) }
	var theirs struct{ Class string }
	c.second.Ask(c.t, map[string]any{"narrowing": map[string]any{"parent": raw(parent), "child": raw(child)}}, &theirs)
	if got := string(actor.ClassOf(actor.Details{child}.Within(actor.Details{parent}))); got != theirs.Class {
		c.t.Errorf("ours %q, theirs %q: %s within %s", got, theirs.Class, raw(child), raw(parent))
	}
	c.counts["narrowing "+theirs.Class]++
	theirs.Class = ""
	c.second.Ask(c.t, map[string]any{"matching": map[string]any{"authorization_details": raw(parent), "action": spelt}}, &theirs)
	_, err := actor.Details{parent}.Match(a)
	if got := string(actor.ClassOf(err)); got != theirs.Class {
		c.t.Errorf("ours %q (%v), theirs %q: %+v within %s", got, err, theirs.Class, a, raw(parent))
	}
	c.counts["matching "+theirs.Class]++
}

// enough holds that each answer came up so often.
func (c *comparison) enough(least int) {
	c.t.Helper()
	for _, want := range []string{"narrowing ", "narrowing details.wider", "matching ", "matching action.outside"} {
		if c.counts[want] < least {
			c.t.Errorf("%d times %q: the capabilities don't ask enough (%v)", c.counts[want], want, c.counts)
		}
	}
}

// judge holds that both verifiers refuse a capability as malformed, or that both take it, as narrower than another.
func (c *comparison) judge(parent any, all map[string]any, malformed bool) {
	c.t.Helper()
	for name, d := range all {
		_, err := actor.ParseDetails(must(json.Marshal([]any{d})))
		var theirs struct{ Class string }
		c.second.Ask(c.t, map[string]any{"narrowing": map[string]any{"parent": []any{parent}, "child": []any{d}}}, &theirs)
		if (err != nil) != malformed || malformed && verdict(theirs.Class) != "malformed" || !malformed && theirs.Class != "" {
			c.t.Errorf("%.60q: ours %v, theirs %q", name, err, theirs.Class)
		}
	}
}
