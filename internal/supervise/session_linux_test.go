package supervise_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// A sign-in is its login session's: of the process that asked for it and of what that starts, nobody
// else's, not even of the same uid, and it ends with it.

func signIn() []string {
	return []string{world.deputy, "login", "--config", world.config, "--script-user", "alice", "--script-password-file", filepath.Join(world.dir, "password")}
}

func TestASignInServesItsOwnSessionOnly(t *testing.T) {
	mesh(t)
	sockets := func() []string {
		s, err := filepath.Glob(filepath.Join(world.dir, "r", "session", "*.sock"))
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	before := len(sockets())
	// A shell below the test signs in for itself. The test's own sign-in is there too, so its helper must
	// be left out of the way: setsid and an orphaning fork lead out of the test's session.
	dir := shared(t)
	pid, out := filepath.Join(dir, "pid"), filepath.Join(dir, "out")
	whoami := quote([]string{world.deputy, "whoami", "--config", world.config})
	script := `echo $$ > ` + pid + `; ` + whoami + ` > ` + out + `.none 2>&1; ` + quote(signIn()) + ` > ` + out + ` 2>&1; ` + whoami + ` >> ` + out + ` 2>&1; touch ` + out + `.done; while test -e ` + pid + `; do sleep 0.05; done`
	// The intermediate shell ends at once, so the inner one is adopted by init, out of this session.
	if r := exec(t, sh(`(setsid sh -c `+quote([]string{script})+` >/dev/null 2>&1 &)`)); r.Code != 0 {
		t.Fatal(r)
	}
	awaitFile(t, out+".done")
	if none := read(t, out+".none"); !strings.Contains(none, "nobody is signed in in this session") {
		t.Errorf("a process outside the session was served: %q", none)
	}
	if said := read(t, out); !strings.Contains(said, "Signed in as alice") || !strings.Contains(said, "mesh ") {
		t.Fatalf("%q", said)
	}
	after := sockets()
	if len(after) != before+1 {
		t.Fatalf("sockets %v, want one more than %d", after, before)
	}
	for _, s := range after {
		if st, err := os.Stat(s); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", s, st.Mode(), err)
		}
	}
	if st, err := os.Stat(filepath.Join(world.dir, "r", "session")); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("the helpers' folder: %v, %v", st.Mode(), err)
	}
	// The other session's helper refuses this one, whatever path it is reached by.
	theirs := strings.TrimSpace(read(t, pid))
	for _, s := range after {
		if !strings.HasPrefix(filepath.Base(s), theirs+"-") {
			continue
		}
		// This process's nearest session is asked first, so the file is put in its place.
		r := exec(t, sh(`ln -sf `+s+` "`+filepath.Dir(s)+`/$$-$(cut -d' ' -f22 /proc/$$/stat).sock"; `+whoami+`; echo "code $?"; rm -f "`+filepath.Dir(s)+`/$$-"*`))
		if strings.Contains(r.Stdout, "code 0") || !strings.Contains(r.Stderr, "is not part of the session") {
			t.Errorf("another session's sign-in was served: %s", r)
		}
	}
	// When the session ends, so does the helper.
	os.Remove(pid)
	for range 200 {
		if len(sockets()) == before || !dialable(t, theirs, sockets()) {
			return
		}
		waitABit()
	}
	t.Errorf("the helper outlives its session: %v", sockets())
}

func dialable(t *testing.T, pid string, sockets []string) bool {
	t.Helper()
	for _, s := range sockets {
		if strings.HasPrefix(filepath.Base(s), pid+"-") {
			r := exec(t, []string{"python3", "-c", "import socket,sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])", s})
			return r.Code == 0
		}
	}
	return false
}

func awaitFile(t *testing.T, path string) {
	t.Helper()
	for range 600 {
		if _, err := os.Stat(path); err == nil {
			return
		}
		waitABit()
	}
	t.Fatalf("%s did not come", path)
}

func read(t *testing.T, path string) string {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

func TestSignInTwiceAndOut(t *testing.T) {
	mesh(t)
	if r := exec(t, signIn()); r.Code == 0 || !strings.Contains(r.Stderr, "is signed in here already") {
		t.Errorf("a second sign-in: %s", r)
	}
	login, whoami := quote(signIn()), quote([]string{world.deputy, "whoami", "--config", world.config})
	logout := quote([]string{world.deputy, "logout", "--config", world.config})
	pid := filepath.Join(shared(t), "out")
	if r := exec(t, sh(`(setsid sh -c `+quote([]string{login + "; " + logout + "; " + whoami + "; " + logout + "; touch " + pid + ".done"})+` > `+pid+` 2>&1 &)`)); r.Code != 0 {
		t.Fatal(r)
	}
	awaitFile(t, pid+".done")
	want := regexp.MustCompile(`(?s)^Signed in as alice.*\nSigned out\.\ndeputy: nobody is signed in.*\ndeputy: nobody is signed in`)
	if said := read(t, pid); !want.MatchString(said) {
		t.Errorf("%q", said)
	}
}

func TestTheHelperCantBeReadOrTraced(t *testing.T) {
	mesh(t)
	// The kernel shows a process that isn't dumpable as root's: nobody of its own uid can attach to it.
	out, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, e := range out {
		raw, err := os.ReadFile("/proc/" + e.Name() + "/cmdline")
		if err != nil || !strings.Contains(string(raw), "\x00session-helper\x00") || !strings.Contains(string(raw), world.config) {
			continue
		}
		found = true
		if strings.Contains(string(raw), "a-long-password") || strings.Contains(string(raw), "eyJ") {
			t.Error("a secret stands in the helper's arguments")
		}
		limits, err := os.ReadFile("/proc/" + e.Name() + "/limits")
		if err != nil || !regexp.MustCompile(`Max core file size +0 +0 `).Match(limits) {
			t.Errorf("the helper may write a core: %v", err)
		}
		if os.Geteuid() != 0 {
			if _, err := os.Readlink("/proc/" + e.Name() + "/exe"); err == nil {
				t.Error("the helper is dumpable")
			}
		}
	}
	if !found {
		t.Error("no helper was found")
	}
}

func TestRunNeedsASignIn(t *testing.T) {
	mesh(t)
	out := filepath.Join(shared(t), "out")
	if r := exec(t, sh(`(setsid sh -c `+quote([]string{quote(run("--no-isolate", "echo", "ran")) + "; touch " + out + ".done"})+` > `+out+` 2>&1 &)`)); r.Code != 0 {
		t.Fatal(r)
	}
	awaitFile(t, out+".done")
	if said := read(t, out); strings.Contains(said, "ran\n") || !strings.Contains(said, "run `deputy login`") {
		t.Errorf("%q", said)
	}
}

// Below /tmp anybody can make the runtime folder first: a sign-in must not be asked of whoever did.
func TestARuntimeFolderOfSomebodyElsesIsRefused(t *testing.T) {
	mesh(t)
	config := filepath.Join(t.TempDir(), "agent.yaml")
	dir := filepath.Join(shared(t), "r")
	text := read(t, world.config)
	text = regexp.MustCompile(`(?m)^runtime_dir: .*$`).ReplaceAllString(text, "runtime_dir: "+dir)
	for _, p := range []string{"web-ca.pem", "idp-ca.pem"} {
		text = strings.ReplaceAll(text, p, filepath.Join(filepath.Dir(world.config), p))
	}
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	args := signIn()
	args[3] = config
	for _, a := range [][]string{args, {world.deputy, "run", "--config", config, "--as", "planner", "--no-isolate", "--", "echo", "ran"}} {
		if r := exec(t, a); r.Code == 0 || strings.Contains(r.Stdout, "ran") || !strings.Contains(r.Stderr, "nobody else can write to") {
			t.Errorf("%s", r)
		}
	}
	if os.Geteuid() == 0 {
		os.Chmod(dir, 0o755)
		os.Chown(dir, 65534, 65534)
		for _, a := range [][]string{args, {world.deputy, "whoami", "--config", config}} {
			if r := exec(t, a); r.Code == 0 || !strings.Contains(r.Stderr, "nobody is signed in") && !strings.Contains(r.Stderr, "a folder of uid 0") {
				t.Errorf("%s", r)
			}
		}
	}
}
