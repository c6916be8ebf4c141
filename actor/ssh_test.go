package actor_test

import (
	"encoding/json"
	"math/rand/v2"
	"os/exec"
	"strings"
	"testing"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/internal/testverifier"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"pgregory.net/rapid"
)

var (
	sshAccounts = strs{"web", "db"}
	sshCommands = strs{"git log", "git log; id", "uptime", "/bin/git log", "git  log"}
	sshPrograms = strs{"git", "uptime", "/bin/git"}
	sshPatterns = strs{"/", "/*", "/a", "/a/*", "/a/b", "/a/b/*", "/ab/*"}
	sshPaths    = strs{"/", "/a", "/a/b", "/a/b/c", "/ab/c", "/a/*"}
	sshForwards = strs{"db:1", "db:11", "/a"}
)

func drawSSH(t *rapid.T) actor.SSHDetail {
	from := func(list strs) *rapid.Generator[[]string] {
		return rapid.SliceOfNDistinct(rapid.SampledFrom(list), 1, 3, rapid.ID[string])
	}
	two := rapid.SliceOfNDistinct(rapid.SampledFrom(sshAccounts), 1, 2, rapid.ID[string])
	return actor.SSHDetail{
		Locations: []spiffeid.ID{target}, Actions: rapid.SliceOfNDistinct(rapid.SampledFrom(actor.SSHVerbs()), 3, 12, rapid.ID[string]).Draw(t, "actions"),
		Accounts: maybe(t, two, "accounts"), Commands: maybe(t, from(sshCommands), "commands"), Programs: maybe(t, from(sshPrograms), "programs"),
		Subsystems: maybe(t, from(strs{"x", "y", "z"}), "subsystems"), Paths: maybe(t, from(sshPatterns), "paths"), Forwards: maybe(t, from(sshForwards), "forwards"),
	}
}

// sshActions are all that the drawn capabilities can tell apart.
func sshActions() []actor.SSHAction {
	var out []actor.SSHAction
	for _, account := range sshAccounts {
		for _, verb := range actor.SSHVerbs() {
			objects := sshPaths
			switch verb {
			case "exec":
				objects = sshCommands
			case "shell":
				objects = strs{""}
			case "subsystem":
				objects = strs{"x", "y", "z"}
			case "forward", "remote-forward":
				objects = sshForwards
			}
			for _, o := range objects {
				out = append(out, actor.SSHAction{Target: target, Verb: verb, Account: account, Object: o})
			}
		}
	}
	return out
}

func TestNoNarrowingOnAHostEverWidens(t *testing.T) {
	within, outside := 0, 0
	actions := sshActions()
	rapid.Check(t, func(t *rapid.T) {
		parent, child := drawSSH(t), drawSSH(t)
		if rapid.Bool().Draw(t, "close") {
			child = parent
			child.Actions = parent.Actions[:2]
			child.Paths = drawSSH(t).Paths
			child.Commands = drawSSH(t).Commands
		}
		p, c := actor.Details{parent}, actor.Details{child}
		if c.Within(p) != nil {
			outside++
			return
		}
		within++
		for _, a := range actions {
			if _, err := c.Match(a); err != nil {
				continue
			}
			if _, err := p.Match(a); err != nil {
				t.Fatalf("%+v is in %s but not in %s, which it lies within: %v", a, c, p, err)
			}
		}
	})
	if within < 5 || outside < 5 {
		t.Errorf("%d lay within and %d outside: the draw proves little", within, outside)
	}
}

func TestAPlainCommandHasNothingForAShell(t *testing.T) {
	for text, want := range map[string]string{
		"uptime": "uptime", "git log --max-count=1": "git", "/usr/bin/rsync --server -vlogDtpre.iLsfxCIvu . /srv/x": "/usr/bin/rsync", "date +%s": "date",
		"": "", " uptime": "", "uptime ": "", "git  log": "", "X=1 git": "", "%1": "", "git =log": "", "a\tb": "", "a\nb": "", "a\x00b": "",
		"a;b": "", "a&b": "", "a|b": "", "a>b": "", "a<b": "", "$a": "", "`a`": "", "a(b)": "", "a{b,c}": "", "a*": "", "a?": "", "[a]": "", "~a": "",
		"a ~": "", "a#b": "", "!a": "", "a'b'": "", `a"b"`: "", `a\b`: "", "a^b": "", "ä": "", strings.Repeat("a", actor.MaxSSHCommand+1): "",
	} {
		if got, plain := actor.Program(text); plain != (want != "") || plain && got != want {
			t.Errorf("%.40q: %q %v, want %q", text, got, plain, want)
		}
	}
}

// What counts as plain is what real shells read as nothing but words.
func TestShellsReadAPlainCommandAsItsWords(t *testing.T) {
	r := rand.New(rand.NewPCG(20261125, 5))
	const alphabet = "abzAZ09_-./:@+,=% %=~"
	var script, want strings.Builder
	plain := 0
	for range 4000 {
		b := make([]byte, 1+r.IntN(12))
		for i := range b {
			b[i] = alphabet[r.IntN(len(alphabet))]
		}
		text := string(b)
		if _, ok := actor.Program(text); !ok {
			continue
		}
		plain++
		script.WriteString("printf '<%s>' " + text + "; echo\n")
		want.WriteString("<" + strings.ReplaceAll(text, " ", "><") + ">\n")
	}
	if plain < 500 {
		t.Fatalf("only %d texts are plain", plain)
	}
	for _, shell := range []string{"dash", "bash"} {
		cmd := exec.Command(shell)
		cmd.Stdin = strings.NewReader(script.String())
		out, err := cmd.CombinedOutput()
		if err != nil || string(out) != want.String() {
			t.Errorf("%s reads something else: %v", shell, err)
		}
	}
}

func TestMalformedHostCapabilitiesAreRefused(t *testing.T) {
	second := testverifier.Start(t)
	good := sshCap(strs{"exec"})
	bad := map[string]any{}
	for member, values := range map[string]strs{
		"accounts":   {"", "-x", "a b", "a/b", "a:b", strings.Repeat("a", 65), "ä"},
		"commands":   {"", "a\nb", "a\x00", "a\u202eb", strings.Repeat("a", 4097)},
		"programs":   {"", "git log", "a;b", "X=1", "%x", strings.Repeat("a", 257)},
		"subsystems": {"", "a b", "a/b", strings.Repeat("a", 65)},
		"paths":      {"", "a", "*", "/a/", "//a", "/a/../b", "/a/./b", "/a*", "/*/a", "/a/*/b", "/a\nb", "/" + strings.Repeat("a", 1024)},
		"forwards":   {"", "db", "db:", "db:0", "db:01", "db:65536", "db:x", "DB:1", ":1", "[::1:1", "::1:1", "a b:1", "/a/../b", "db:+1"},
	} {
		for _, v := range values {
			bad[member+" "+v] = sshCap(strs{"exec"}, member, strs{v})
		}
		bad[member+" empty"] = sshCap(strs{"exec"}, member, strs{})
		bad[member+" twice"] = sshCap(strs{"exec"}, member, strs{"/a", "/a"})
	}
	bad["unknown action"] = sshCap(strs{"everything"})
	bad["unknown member"] = sshCap(strs{"exec"}, "databases", strs{"x"})
	bad["max_rows"] = sshCap(strs{"exec"}, "max_rows", 5)
	for name, d := range bad {
		_, err := actor.ParseDetails(must(json.Marshal([]any{d})))
		var theirs struct{ Class string }
		second.Ask(t, map[string]any{"narrowing": map[string]any{"parent": []any{good}, "child": []any{d}}}, &theirs)
		if err == nil || verdict(theirs.Class) != "malformed" {
			t.Errorf("%.60q: ours %v, theirs %q", name, err, theirs.Class)
		}
	}
}

// Narrowing and matching on hosts come out the same in both verifiers.
func TestTwoVerifiersCompareHostCapabilitiesTheSame(t *testing.T) {
	second := testverifier.Start(t)
	r := rand.New(rand.NewPCG(20261125, 4))
	gen := rapid.Custom(drawSSH)
	actions := sshActions()
	counts := map[string]int{}
	for i := range 1000 {
		parent, child, a := gen.Example(3*i), gen.Example(3*i+1), actions[r.IntN(len(actions))]
		if i%2 == 0 {
			child = parent
			child.Paths, child.Programs = gen.Example(3*i+2).Paths, gen.Example(3*i+1).Programs
		}
		raw := func(d actor.SSHDetail) json.RawMessage { return must(json.Marshal([]any{d})) }
		var theirs struct{ Class string }
		second.Ask(t, map[string]any{"narrowing": map[string]any{"parent": raw(parent), "child": raw(child)}}, &theirs)
		c, p := actor.Details{child}, actor.Details{parent}
		if got := string(actor.ClassOf(c.Within(p))); got != theirs.Class {
			t.Errorf("ours %q, theirs %q: %s within %s", got, theirs.Class, raw(child), raw(parent))
		}
		counts["narrowing "+theirs.Class]++
		theirs.Class = ""
		second.Ask(t, map[string]any{"matching": map[string]any{"authorization_details": raw(parent),
			"action": map[string]any{"type": "deputy_ssh", "target": a.Target.String(), "verb": a.Verb, "account": a.Account, "object": a.Object}}}, &theirs)
		_, err := p.Match(a)
		if got := string(actor.ClassOf(err)); got != theirs.Class {
			t.Errorf("ours %q, theirs %q: %+v within %s", got, theirs.Class, a, raw(parent))
		}
		counts["matching "+theirs.Class]++
	}
	for _, want := range []string{"narrowing ", "narrowing details.wider", "matching ", "matching action.outside"} {
		if counts[want] < 50 {
			t.Errorf("%d times %q: the capabilities don't ask enough (%v)", counts[want], want, counts)
		}
	}
}
