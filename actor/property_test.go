package actor_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/deputymesh/deputy/actor"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"pgregory.net/rapid"
)

// Small alphabets, so that relations between random values happen.
var (
	genVerb    = rapid.SampledFrom(strs{"select", "insert", "set", "ddl", "call"})
	genDB      = rapid.SampledFrom(strs{"a", "b", "c"})
	genSegment = rapid.SampledFrom(strs{"s", "t", "*"})
	genName    = rapid.SampledFrom(strs{"s", "t", "u", "*", "s.t"})
	genTarget  = rapid.SampledFrom([]spiffeid.ID{target, otherTarget})
)

func genList[T comparable](g *rapid.Generator[T]) *rapid.Generator[[]T] {
	return rapid.SliceOfNDistinct(g, 1, 3, rapid.ID[T])
}

func maybe[T any](t *rapid.T, g *rapid.Generator[[]T], name string) []T {
	if rapid.Bool().Draw(t, name+" there") {
		return g.Draw(t, name)
	}
	return nil
}

func drawDetail(t *rapid.T) actor.Detail {
	pattern := rapid.Custom(func(t *rapid.T) string { return genSegment.Draw(t, "schema") + "." + genSegment.Draw(t, "table") })
	return actor.PostgresDetail{
		Locations: rapid.SliceOfNDistinct(genTarget, 1, 2, rapid.ID[spiffeid.ID]).Draw(t, "locations"),
		Actions:   genList(genVerb).Draw(t, "actions"),
		Databases: maybe(t, genList(genDB), "databases"),
		Tables:    maybe(t, genList(pattern), "tables"),
		MaxRows:   rapid.SampledFrom([]int64{0, 0, 1, 5, 10}).Draw(t, "max_rows"),
	}
}

func drawDetails(t *rapid.T, name string) actor.Details {
	return rapid.SliceOfN(rapid.Custom(drawDetail), 1, 3).Draw(t, name)
}

func drawAction(t *rapid.T) actor.PostgresAction {
	a := actor.PostgresAction{Target: genTarget.Draw(t, "target"), Verb: genVerb.Draw(t, "verb"), Database: genDB.Draw(t, "database")}
	if rapid.Bool().Draw(t, "has schema") {
		a.Schema = genName.Draw(t, "schema")
		if rapid.Bool().Draw(t, "has table") {
			a.Table = genName.Draw(t, "table")
		}
	}
	return a
}

// narrowRandomly takes objects away and tightens the others, or goes astray.
func narrowRandomly(t *rapid.T, d actor.Details) actor.Details {
	if rapid.IntRange(0, 3).Draw(t, "astray") == 0 {
		return drawDetails(t, "other")
	}
	var out actor.Details
	for _, detail := range d {
		p := detail.(actor.PostgresDetail)
		switch rapid.IntRange(0, 5).Draw(t, "change") {
		case 0:
			continue
		case 1:
			p.Actions = p.Actions[:1]
		case 2:
			p.Databases = genList(genDB).Draw(t, "databases")
		case 3:
			p.Tables = strs{genSegment.Draw(t, "schema") + "." + genSegment.Draw(t, "table")}
		case 4:
			p.MaxRows = rapid.Int64Range(0, 10).Draw(t, "max_rows")
		}
		out = append(out, p)
	}
	return out
}

func TestNoSequenceOfNarrowingEverWidens(t *testing.T) {
	steps, followed := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		first := drawDetails(t, "root")
		current := first
		for range rapid.IntRange(1, 5).Draw(t, "hops") {
			next := narrowRandomly(t, current)
			steps++
			if next.Within(current) == nil {
				followed++
				current = next
			}
		}
		// What was accepted hop by hop lies within the root too …
		if err := current.Within(first); err != nil {
			t.Fatalf("%s is not within %s: %v", current, first, err)
		}
		// … and allows nothing that the root didn't, and no more of it.
		for range 20 {
			a := drawAction(t)
			after, err := current.Match(a)
			if err != nil {
				continue
			}
			before, err := first.Match(a)
			if err != nil {
				t.Fatalf("%+v is in %s but not in %s: %v", a, current, first, err)
			}
			if before.MaxRows != 0 && (after.MaxRows == 0 || after.MaxRows > before.MaxRows) {
				t.Fatalf("%+v: limit %d in %s, %d in %s", a, after.MaxRows, current, before.MaxRows, first)
			}
		}
	})
	if followed == 0 || followed == steps {
		t.Errorf("%d of %d steps narrowed: the test tries one side only", followed, steps)
	}
}

func TestDetailsComeOutOfJSONAsTheyWentIn(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := drawDetails(t, "details")
		back, err := actor.ParseDetails(must(json.Marshal(d)))
		if err != nil {
			t.Fatal(err)
		}
		if d.Within(back) != nil || back.Within(d) != nil {
			t.Fatalf("%s became %s", d, back)
		}
	})
}

// outcomeText is what a chain states, without the names of the bytes.
func outcomeText(c *actor.Chain) string {
	o := chainOutcome(c)
	return string(must(json.Marshal(o)))
}

func TestAnySingleByteChangeIsRefusedOrTheSameStatement(t *testing.T) {
	f := chainOf(planner, researcher)
	credential := f.credential()
	v := newVerifier(t)
	c, err := v.Verify(t.Context(), f.peer, credential)
	if err != nil {
		t.Fatal(err)
	}
	want := outcomeText(c)
	check := func(changed string, fail func(string, ...any)) {
		if changed == credential {
			return
		}
		got, err := v.Verify(t.Context(), f.peer, changed)
		if err == nil && outcomeText(got) != want {
			fail("a changed credential states something else: %s", changed)
		}
		if err != nil && actor.ClassOf(err) == "" {
			fail("refused without a class: %v", err)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		i := rapid.IntRange(0, len(credential)-1).Draw(t, "at")
		b := []byte(credential)
		switch rapid.IntRange(0, 3).Draw(t, "how") {
		case 0:
			b[i] = rapid.Byte().Draw(t, "byte")
		case 1:
			b[i] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.~"[rapid.IntRange(0, 65).Draw(t, "letter")]
		case 2:
			b = append(b[:i], b[i+1:]...)
		case 3:
			b = append(b[:i], append([]byte{rapid.Byte().Draw(t, "byte")}, b[i:]...)...)
		}
		check(string(b), t.Fatalf)
	})
	// Every position once, besides the random ones.
	for i := range credential {
		flipped := byte('A')
		if credential[i] == 'A' {
			flipped = 'B'
		}
		check(credential[:i]+string(flipped)+credential[i+1:], t.Fatalf)
	}
}

func TestNoMixtureOfTwoFlowsIsAccepted(t *testing.T) {
	// Two tasks of the same user through the same agents, differing in everything
	// that a task has of its own.
	flows := make([][]string, 2)
	var peer = svid(runner)
	for i := range flows {
		f := chainOf(planner, researcher, runner)
		for n, s := range append([]*statement{f.user, f.token}, f.grants...) {
			set(s, "txn", hexID(strings.Repeat("x", i)))
			set(s, "jti", hexID(strings.Repeat("y", i*10+n)))
		}
		flows[i] = strings.Split(f.credential(), "~")
	}
	v := newVerifier(t)
	for mix := range 1 << 5 {
		var parts []string
		for n := range 5 {
			parts = append(parts, flows[mix>>n&1][n])
		}
		_, err := v.Verify(t.Context(), peer, strings.Join(parts, "~"))
		// The ID token is the same in both.
		if pure := mix&0b1111 == 0 || mix&0b1111 == 0b1111; pure != (err == nil) {
			t.Errorf("mixture %05b: %v", mix, err)
		}
	}
}
