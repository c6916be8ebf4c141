package actor_test

import (
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/deputymesh/deputy/actor"
	"github.com/google/go-cmp/cmp"
)

func TestAValidChainIsVerifiedAndNamesEveryHop(t *testing.T) {
	f := chainOf(planner, researcher, runner)
	c, err := newVerifier(t).Verify(t.Context(), f.peer, f.credential())
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, h := range c.Hops {
		ids = append(ids, h.ID)
		if h.Grade != actor.Attested {
			t.Errorf("%s is graded %s", h.ID, h.Grade)
		}
	}
	if diff := cmp.Diff([]string{user.String(), planner, researcher, runner}, ids); diff != "" {
		t.Error(diff)
	}
	if c.Depth() != 3 || c.Leaf().ID != runner || c.LowestGrade() != actor.Attested || c.RootEvidence != actor.RootVerified {
		t.Errorf("depth %d, leaf %s, grade %s, root %s", c.Depth(), c.Leaf().ID, c.LowestGrade(), c.RootEvidence)
	}
	if want := start.Add(6 * time.Minute); !c.Expires.Equal(want) {
		t.Errorf("expires %s, want %s", c.Expires, want)
	}
	if c.Purpose != "q3 refunds" || c.Leaf().Evidence.UID != 20001 {
		t.Errorf("purpose %q, evidence %+v", c.Purpose, c.Leaf().Evidence)
	}
	var b bytes.Buffer
	c.Tree(&b)
	t.Log("\n" + b.String())
	_ = os.Stdout
	_ = json.Valid
	_ = strings.ToUpper
}
