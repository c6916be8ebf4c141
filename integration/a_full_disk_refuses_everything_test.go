package integration_test

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/internal/testmesh"
)

// A disk of the proxy's log that is really full: every command is refused and says `record: none`, nothing runs that isn't on
// record, what was decided before gets its outcome in the room that was kept for it, and a kill doesn't change that.
// Room that is made is used at once, without a restart.
func TestAFullDiskRefusesEverything(t *testing.T) {
	m := testmesh.Start(t)
	// Two files of 1 MiB, and no third.
	disk := smallDisk(t, m, m.Proxy, "proxy", 2560<<10)
	bob := m.Login(t, "bob")
	const update = "UPDATE orders SET total_cents = total_cents + 1 WHERE id = 101 RETURNING 'changed';\n"
	before := m.PG.Value("select total_cents from orders where id = 101")

	c := bob.Agents(t, testmesh.Nested, m.PG.Bin("psql"), "-XAtq", "-v", "VERBOSITY=verbose")
	reader := testmesh.Begin(t, c)
	reader.Type("SELECT 'served' FROM orders LIMIT 1;\n")
	reader.Await("served", 1)
	c.Stdin = strings.Repeat(update, 800)
	r := testmesh.Exec(t, c)
	answers, refusals := strings.Count(r.Stdout, "changed"), strings.Count(r.Stderr, "ERROR: ")
	if answers == 0 || refusals == 0 || answers+refusals != 800 {
		t.Fatalf("%d answers and %d refusals of 800: %s", answers, refusals, r)
	}
	if n := strings.Count(r.Stderr, "couldn't be recorded"); n != refusals || strings.Count(r.Stderr, "(record: none)") != refusals {
		t.Errorf("of %d refusals %d say why: %s", refusals, n, r)
	}
	changed := func() string {
		return m.PG.Value("select total_cents - " + before + " from orders where id = 101")
	}
	if got := changed(); got != fmt.Sprint(answers) {
		t.Errorf("%s changes at the target, %d answers", got, answers)
	}
	if n := decided(t, m, "postgres:update"); n != answers {
		t.Errorf("%d decisions on record, %d answers", n, answers)
	}
	refused := func(when string) {
		t.Helper()
		if r := bob.SQL(t, testmesh.Nested, update); r.Code == 0 || !strings.Contains(r.Stderr, "record: none") {
			t.Errorf("%s: %s", when, r)
		}
		if got := changed(); got != fmt.Sprint(answers) {
			t.Errorf("%s: %s changes at the target, %d answers before", when, got, answers)
		}
		if r := bob.SQL(t, testmesh.Nested, "SELECT 'leaked' FROM orders LIMIT 1;\n"); r.Code == 0 || strings.Contains(r.Stdout, "leaked") || !strings.Contains(r.Stderr, "record: none") {
			t.Errorf("%s, a SELECT: %s", when, r)
		}
	}
	// On a session that is open nothing but the SELECT itself can be refused. It runs before its record is durable, so its rows are
	// held back until then, and what has begun to run and can't be recorded ends the session.
	reader.Type("SELECT 'leaked' FROM orders LIMIT 1;\n")
	if r := reader.Wait(patience); strings.TrimSpace(r.Stdout) != "served" || !strings.Contains(r.Stderr, "couldn't be recorded") || !strings.Contains(r.Stderr, "(record: none)") {
		t.Errorf("a SELECT on a session that is open: %s", r)
	}
	refused("a new connection on a full disk")
	m.SettledRecords(t, "proxy")
	m.Verify(t)

	m.Proxy.Kill()
	m.Proxy.Begin()
	refused("after a kill on a full disk")
	m.SettledRecords(t, "proxy")
	m.Verify(t)

	disk.resize(t, 16<<20)
	for range 50 {
		if r = bob.SQL(t, testmesh.Nested, update); r.Code == 0 {
			break
		}
	}
	if r.Code != 0 {
		t.Errorf("there is room again, the proxy wasn't restarted: %s", r)
	}
	if got := changed(); got != fmt.Sprint(answers+1) {
		t.Errorf("%s changes at the target, want %d", got, answers+1)
	}
	m.SettledRecords(t, "proxy")
	m.Verify(t)

	// With a low-water mark it refuses while there is still room for others.
	const mark = 12 << 20
	m.EditConfig(t, "proxy", func(c string) string {
		return strings.Replace(c, "\naudit:\n", fmt.Sprintf("\naudit:\n  min_free_bytes: %d\n", mark), 1)
	})
	m.Proxy.Stop()
	m.Proxy.Begin()
	eventually(t, m.Login(t, "alice"))
	r = testmesh.Exec(t, c)
	if !strings.Contains(r.Stderr, "(record: none)") {
		t.Errorf("the log went below its low-water mark: %s", r)
	}
	m.SettledRecords(t, "proxy")
	var st unix.Statfs_t
	if err := unix.Statfs(m.LogDir("proxy"), &st); err != nil {
		t.Fatal(err)
	}
	if free := int64(st.Bavail) * st.Bsize; free < mark-1<<20 { // one segment of it may be taken for outcomes
		t.Errorf("%d bytes are free, %d should be", free, mark)
	}
	m.Verify(t)
}

// decided counts allowing decisions about an action in the proxy's log.
func decided(t *testing.T, m *testmesh.Mesh, action string) int {
	t.Helper()
	n := 0
	for _, r := range m.Records(t, "proxy") {
		if d, ok := r.Event.(*audit.Decision); ok && d.Effect == audit.Allow && strings.Contains(d.Action, action) {
			n++
		}
	}
	return n
}

// disk is a file system in memory of its own for the log of a role.
type disk struct{ dir, owner string }

// smallDisk stops a role, puts a small file system where its log is, and starts it again.
func smallDisk(t *testing.T, m *testmesh.Mesh, role *testmesh.Process, name string, size int64) *disk {
	t.Helper()
	if !testmesh.Isolated() {
		t.Skip("only root can mount a small disk: that a full one refuses everything isn't shown here")
	}
	role.Stop()
	dir := m.LogDir(name)
	uid, gid := ownerOf(t, dir)
	d := &disk{dir: dir, owner: fmt.Sprintf("uid=%d,gid=%d,mode=700", uid, gid)}
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, fmt.Sprintf("size=%d,%s", size, d.owner)); err != nil {
		t.Fatalf("mounting a small disk: %v", err)
	}
	// The role still runs when the test ends.
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	role.Begin()
	return d
}

func (d *disk) resize(t *testing.T, size int64) {
	t.Helper()
	if err := unix.Mount("tmpfs", d.dir, "tmpfs", unix.MS_REMOUNT|unix.MS_NOSUID|unix.MS_NODEV, fmt.Sprintf("size=%d,%s", size, d.owner)); err != nil {
		t.Fatalf("making the disk larger: %v", err)
	}
}

func ownerOf(t *testing.T, path string) (uid, gid int) {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	owner := info.Sys().(*syscall.Stat_t)
	return int(owner.Uid), int(owner.Gid)
}
