package integration_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/internal/testmesh"
)

// Whatever is put together from two chains that are both good is refused, by the broker and by the proxy, except the two chains
// themselves, each in the hands of its own last agent.
func TestSplicesAreRefused(t *testing.T) {
	f := newForge(t)
	trees := f.trees(t, 2)
	one, two := trees[0], trees[1]
	dora, emil := f.idp.signIn(t, "dora"), f.idp.signIn(t, "emil")
	const at = testmesh.Target
	first := f.flow(dora, f.root(dora, one.planner), at, one.planner, one.a, one.runner)
	f.mustServe(first, f.Address("target"))

	root := f.root(dora, one.planner)
	short := f.flow(dora, root, at, one.planner, one.a)
	for _, pair := range []struct {
		name        string
		left, right flow
	}{
		{"two users, each with agents of its own", first, f.flow(emil, f.root(emil, two.planner), at, two.planner, two.a, two.runner)},
		{"two users of the same agents", first, f.flow(emil, f.root(emil, one.planner), at, one.planner, one.a, one.runner)},
		{"two tasks of one sign-in with the same agents", first, f.flow(dora, f.root(dora, one.planner), at, one.planner, one.a, one.runner)},
		{"two sign-ins of one user", first, func() flow {
			again := f.idp.signIn(t, "dora")
			return f.flow(again, f.root(again, one.planner), at, one.planner, one.a, one.runner)
		}()},
		{"two siblings of one parent", short, f.flow(dora, root, at, one.planner, one.b)},
		{"two grants to the same child", short, f.flow(dora, root, at, one.planner, one.a)},
	} {
		t.Run(pair.name, func(t *testing.T) {
			pure := map[string]*x509svid.SVID{pair.left.credential(): pair.left.leaf, pair.right.credential(): pair.right.leaf}
			good := map[string]*x509svid.SVID{pair.left.subject(): pair.left.leaf, pair.right.subject(): pair.right.leaf}
			tried := 0
			for mixed := range mixtures(pair.left.parts, pair.right.parts) {
				for _, as := range leaves(pair.left, pair.right) {
					in, why := f.letIn(as, f.Address("target"), mixed)
					if want := pure[mixed] == as; in != want {
						t.Errorf("let in is %v, want %v (%s): %s", in, want, why, origin(mixed, pair.left, pair.right))
					} else if !in && !strings.HasPrefix(why, "28000 ") {
						t.Errorf("refused with %q: %s", why, origin(mixed, pair.left, pair.right))
					}
					tried++
				}
			}
			for mixed := range mixtures(pair.left.parts[1:], pair.right.parts[1:]) {
				for _, as := range leaves(pair.left, pair.right) {
					a := f.exchange(as, mixed)
					if got, want := a.status == http.StatusOK, good[mixed] == as; got != want || !got && (a.Error != "invalid_request" || a.Token != "") {
						t.Errorf("exchanged is %v, want %v (%s): %s", got, want, a, origin(mixed, pair.left, pair.right))
					}
					tried++
				}
			}
			t.Logf("%d mixtures", tried)
		})
	}

	// Of a parent's chain and its child's the lengths differ: every sequence of parts that could be a credential.
	t.Run("parent and child", func(t *testing.T) {
		parent := f.flow(dora, root, at, one.planner)
		child := f.flow(dora, root, at, one.planner, one.a)
		for _, token := range []string{parent.parts[0], child.parts[0]} {
			for _, grants := range [][]string{nil, child.parts[1:2], {child.parts[1], child.parts[1]}} {
				mixed := strings.Join(append(append([]string{token}, grants...), root, dora.idToken), "~")
				for _, as := range []*x509svid.SVID{one.planner, one.a, one.b, two.planner} {
					in, why := f.letIn(as, f.Address("target"), mixed)
					want := mixed == parent.credential() && as == one.planner || mixed == child.credential() && as == one.a
					if in != want {
						t.Errorf("let in is %v, want %v (%s): %d grants, %s", in, want, why, len(grants), as.ID)
					}
				}
			}
		}
	})
	t.Run("a hop left out, doubled, reversed, or of a stranger", func(t *testing.T) {
		p := first.parts
		stranger := f.pass(two.planner, two.a, f.root(emil, two.planner))
		for name, parts := range map[string][]string{
			"no middle hop":       {p[0], p[1], p[3], p[4]},
			"no last hop":         {p[0], p[2], p[3], p[4]},
			"no user grant":       {p[0], p[1], p[2], p[4]},
			"no ID token":         {p[0], p[1], p[2], p[3]},
			"the token alone":     {p[0]},
			"reversed":            {p[0], p[2], p[1], p[3], p[4]},
			"a hop twice":         {p[0], p[1], p[1], p[2], p[3], p[4]},
			"a stranger's hop":    {p[0], p[1], stranger, p[2], p[3], p[4]},
			"two user grants":     {p[0], p[1], p[2], p[3], p[3], p[4]},
			"two ID tokens":       {p[0], p[1], p[2], p[3], p[4], p[4]},
			"the ID token first":  {p[4], p[0], p[1], p[2], p[3]},
			"two tokens":          {p[0], p[0], p[1], p[2], p[3], p[4]},
			"a part that's empty": {p[0], p[1], "", p[2], p[3], p[4]},
		} {
			if in, why := f.letIn(first.leaf, f.Address("target"), strings.Join(parts, "~")); in || !strings.HasPrefix(why, "28000 ") {
				t.Errorf("%s: let in is %v, %s", name, in, why)
			}
			if a := f.exchange(first.leaf, strings.Join(parts[1:], "~")); a.status == http.StatusOK && name != "the ID token first" && name != "two tokens" {
				t.Errorf("%s: exchanged", name)
			}
		}
	})
	// Upstream splice: B makes the broker issue for C, who is not its child.
	t.Run("a delegate that is no child", func(t *testing.T) {
		ug := f.root(dora, one.planner)
		for name, to := range map[string]*x509svid.SVID{
			"another planner": two.planner, "another planner's child": two.a, "a grandchild": one.runner, "itself": one.planner,
		} {
			g := f.pass(one.planner, to, ug)
			a := f.exchange(to, strings.Join([]string{g, ug, dora.idToken}, "~"))
			if a.status == http.StatusOK || !strings.Contains(a.Text, string(actor.ClassGrantChild)) && !strings.Contains(a.Text, string(actor.ClassActorRepeated)) {
				t.Errorf("%s: %s", name, a)
			}
		}
	})
	f.Verify(t)
}

// mixtures are all ways to take each part from the left or the right.
func mixtures(left, right []string) map[string]bool {
	out := map[string]bool{}
	for mask := range 1 << len(left) {
		mixed := make([]string, len(left))
		for i := range left {
			if mixed[i] = left[i]; mask&(1<<i) != 0 {
				mixed[i] = right[i]
			}
		}
		out[strings.Join(mixed, "~")] = true
	}
	return out
}

func leaves(l, r flow) []*x509svid.SVID {
	if l.leaf == r.leaf {
		return []*x509svid.SVID{l.leaf}
	}
	return []*x509svid.SVID{l.leaf, r.leaf}
}

// origin says where the parts of a mixture come from, without showing them.
func origin(mixed string, l, r flow) string {
	var out []string
	for _, p := range strings.Split(mixed, "~") {
		from := "?"
		for name, side := range map[string]flow{"left": l, "right": r} {
			for i, q := range side.parts {
				if p == q {
					from = fmt.Sprintf("%s %d", name, i)
				}
			}
		}
		out = append(out, from)
	}
	return strings.Join(out, ", ")
}
