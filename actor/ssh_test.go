package actor_test

import (
	"math/rand/v2"
	"os/exec"
	"strings"
	"testing"

	"github.com/deputymesh/deputy/actor"
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
	noNarrowingWidens(t, func(t *rapid.T) (parent, child actor.Detail) {
		p, c := drawSSH(t), drawSSH(t)
		if rapid.Bool().Draw(t, "close") {
			c = p
			c.Actions = p.Actions[:2]
			c.Paths = drawSSH(t).Paths
			c.Commands = drawSSH(t).Commands
		}
		return p, c
	}, func(*rapid.T) []actor.SSHAction { return sshActions() }, 5)
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
	second := compare(t)
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
	second.judge(good, bad, true)
}

// Narrowing and matching on hosts come out the same in both verifiers.
func TestTwoVerifiersCompareHostCapabilitiesTheSame(t *testing.T) {
	second := compare(t)
	r := rand.New(rand.NewPCG(20261125, 4))
	gen := rapid.Custom(drawSSH)
	actions := sshActions()
	for i := range 1000 {
		parent, child, a := gen.Example(3*i), gen.Example(3*i+1), actions[r.IntN(len(actions))]
		if i%2 == 0 {
			child = parent
			child.Paths, child.Programs = gen.Example(3*i+2).Paths, gen.Example(3*i+1).Programs
		}
		second.ask(parent, child, a, map[string]any{"type": "deputy_ssh", "target": a.Target.String(), "verb": a.Verb, "account": a.Account, "object": a.Object})
	}
	second.enough(50)
}
