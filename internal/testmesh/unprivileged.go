package testmesh

import (
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// RunUnprivileged runs tests of this test binary again under an ordinary uid, as somebody without root runs
// them, and fails the test when they fail or skip. The caller is root.
func RunUnprivileged(t *testing.T, pattern string) {
	t.Helper()
	nobody, err := user.Lookup("nobody")
	if err != nil {
		t.Fatal(err)
	}
	uid, err := strconv.ParseUint(nobody.Uid, 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	gid, err := strconv.ParseUint(nobody.Gid, 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	programs := Build(t)
	root, err := os.MkdirTemp("/tmp", "dn")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(root) })
	home := filepath.Join(root, "home")
	// What the tests read of the tree, since its folder may be closed to others.
	for _, p := range []string{"go.mod", "examples", "scripts", "integration/testdata"} {
		copyTree(t, filepath.Join(moduleRoot(), p), filepath.Join(root, p))
	}
	binary := filepath.Join(root, "integration.test")
	copyTree(t, self, binary)
	if err := os.Mkdir(home, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(home, int(uid), int(gid)); err != nil {
		t.Fatal(err)
	}
	open(t, root)

	cmd := exec.Command(binary, "-test.run", pattern, "-test.v", "-test.timeout", "8m")
	cmd.Dir = filepath.Join(root, "integration")
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + home, "TMPDIR=/tmp", builtVariable + "=" + programs}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = 10 * time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("as uid %d: %v\n%s", uid, err, out)
	}
	if passed := strings.Count(string(out), "--- PASS: "); passed == 0 || strings.Contains(string(out), "--- SKIP") {
		t.Fatalf("as uid %d %d tests passed:\n%s", uid, passed, out)
	}
	for line := range strings.Lines(string(out)) {
		if strings.HasPrefix(line, "--- PASS: ") {
			t.Logf("as uid %d: %s", uid, strings.TrimSpace(line))
		}
	}
}

// open lets every uid read a folder and what is in it.
func open(t testing.TB, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		mode := info.Mode().Perm() | 0o044
		if d.IsDir() || mode&0o100 != 0 {
			mode |= 0o011
		}
		return os.Chmod(path, mode)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// copyTree copies a file or a folder.
func copyTree(t testing.TB, from, to string) {
	t.Helper()
	info, err := os.Stat(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		t.Fatal(err)
	}
	if info.IsDir() {
		if err := os.CopyFS(to, os.DirFS(from)); err != nil {
			t.Fatal(err)
		}
		return
	}
	in, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_EXCL, info.Mode().Perm()|0o600)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(out, in); err != nil {
		t.Fatal(err)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
}

// Copy copies a file or folder of the tree, named from the root of the module, to a path.
func Copy(t testing.TB, name, to string) {
	t.Helper()
	copyTree(t, filepath.Join(moduleRoot(), name), to)
}
