package integration_test

import (
	"fmt"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/internal/testmesh"
)

// A disk that is slow holds commands back, and what isn't on it yet neither runs nor is answered, whatever is revoked
// meanwhile. A disk that fails once is never believed again: every command is refused until a restart. The
// faults are injected into the running proxy's own system calls.
func TestAFailingDiskLetsNothingThrough(t *testing.T) {
	m := testmesh.Start(t)
	bob, alice, oscar := m.Login(t, "bob"), m.Login(t, "alice"), m.Login(t, "oscar")
	status := func(id int) string {
		return m.PG.Value(fmt.Sprintf("select status from orders where id = %d", id))
	}
	open := func(t *testing.T, who *testmesh.Session, name string) *testmesh.Live {
		l := testmesh.Begin(t, who.Agents(t, testmesh.Nested, m.PG.Bin("psql"), "-XAtq", "-v", "VERBOSITY=verbose"))
		l.Type("SELECT '" + name + " is connected' FROM orders LIMIT 1;\n")
		l.Await(name+" is connected", 1)
		return l
	}

	t.Run("slow", func(t *testing.T) {
		const held = 3 * time.Second
		writer, reader, doomed := open(t, bob, "the writer"), open(t, alice, "the reader"), open(t, bob, "the doomed")
		task := newestTask(t, m, "postgres:select")
		slow := inject(t, m.Proxy, fmt.Sprintf("fdatasync:delay_enter=%d", held.Microseconds()))
		began := time.Now()
		writer.Type("UPDATE orders SET status = 'refunded' WHERE id = 102 RETURNING 'written';\n")
		reader.Type("SELECT 'answered' FROM orders LIMIT 1;\n")
		doomed.Type("UPDATE orders SET status = 'refunded' WHERE id = 104 RETURNING 'too late';\n")
		// Revoked while its decision waits for the disk.
		if r := oscar.Deputy(t, "revoke", "--task", task, "--reason", "slow"); r.Code == 1 {
			t.Errorf("a revocation while the proxy's disk is slow: %s", r)
		}
		for time.Since(began) < held*9/10 {
			if got := status(102); got != "refund requested" {
				t.Fatalf("%s after %s: a decision that isn't durable let a command through", got, time.Since(began))
			}
			if out := writer.Output() + reader.Output(); strings.Contains(out, "written") || strings.Contains(out, "answered") {
				t.Fatalf("answered after %s, before the record was durable: %q", time.Since(began), out)
			}
		}
		writer.Await("written", 1)
		reader.Await("answered", 1)
		slow.stop(t)
		if got := status(102); got != "refunded" {
			t.Errorf("after the disk came round: %s", got)
		}
		if r := doomed.Wait(patience); strings.Contains(r.Stdout, "too late") || !strings.Contains(r.Stderr, "57P01") {
			t.Errorf("a task that was revoked while its command waited for the disk: %s", r)
		}
		if got := status(104); got != "refund requested" {
			t.Errorf("a command of a revoked task ran: %s", got)
		}
		for _, l := range []*testmesh.Live{writer, reader} {
			if r := l.Wait(patience); r.Code != 0 {
				t.Errorf("a client of a slow disk: %s", r)
			}
		}
		m.SettledRecords(t, "proxy")
		m.Verify(t)
	})

	t.Run("hanging", func(t *testing.T) {
		const hangs = 9 * time.Second // less than it takes the proxy's knowledge to grow stale
		task := func(l *testmesh.Live) string {
			l.Type("SELECT 'found' FROM orders LIMIT 1;\n")
			l.Await("found", 1)
			return newestTask(t, m, "postgres:select")
		}
		first, second := open(t, alice, "the first"), open(t, alice, "the second")
		firstTask, secondTask := task(first), task(second)
		if firstTask == secondTask {
			t.Fatal("two runs are one task")
		}
		// What the proxy keeps of the feed hangs. Its log doesn't, so that it could go on serving.
		hanging := inject(t, m.Proxy, fmt.Sprintf("fsync:delay_enter=%d", hangs.Microseconds()))
		defer hanging.stop(t)
		for _, revoked := range []struct {
			live *testmesh.Live
			task string
		}{{first, firstTask}, {second, secondTask}} {
			order := testmesh.Begin(t, oscar.Command(testmesh.Deputy(t), "revoke", "--task", revoked.task, "--reason", "hanging"))
			over := func() bool { return strings.Contains(revoked.live.Errors(), "57P01") }
			began := time.Now()
			for n := 1; !over(); n++ {
				if time.Since(began) > hangs/2 {
					t.Fatalf("served %s after it was revoked, behind a revocation that waits for a disk: %q %q", time.Since(began), revoked.live.Output(), order.Errors())
				}
				revoked.live.Type("SELECT 'again' FROM orders LIMIT 1;\n")
				for strings.Count(revoked.live.Output(), "again") < n && !over() && time.Since(began) < hangs {
					time.Sleep(10 * time.Millisecond)
				}
			}
			revoked.live.Wait(patience)
			defer order.Wait(patience)
		}
	})

	t.Run("failing", func(t *testing.T) {
		writer, reader := open(t, bob, "the writer"), open(t, alice, "the reader")
		m.SettledRecords(t, "proxy")
		failing := inject(t, m.Proxy, "fdatasync:error=EIO")
		writer.Type("UPDATE orders SET status = 'refunded' WHERE id = 105 RETURNING 'written';\n")
		writer.AwaitError("(record: none)", 1)
		reader.Type("SELECT 'answered' FROM orders LIMIT 1;\n")
		reader.AwaitError("(record: none)", 1)
		failing.stop(t)
		// The disk is well again. What the kernel dropped nobody knows, so nothing is believed.
		writer.Type("UPDATE orders SET status = 'refunded' WHERE id = 105 RETURNING 'written';\n")
		writer.AwaitError("(record: none)", 2)
		if r := bob.SQL(t, testmesh.Nested, "SELECT 'answered'"); r.Code == 0 || !strings.Contains(r.Stderr, "record: none") {
			t.Errorf("a new connection to a log that failed: %s", r)
		}
		if got := status(105); got != "refund requested" {
			t.Errorf("a command without a record ran: %s", got)
		}
		if out := writer.Output() + reader.Output(); strings.Contains(out, "written") || strings.Contains(out, "answered") {
			t.Errorf("answered without a record: %s", out)
		}
		if text := m.Proxy.Log(); !strings.Contains(text, "poisoned") {
			t.Errorf("the proxy doesn't say that its log failed:\n%s", text)
		}
		m.Proxy.Stop()
		m.Proxy.Begin()
		eventually(t, alice)
		if r := bob.SQL(t, testmesh.Nested, "UPDATE orders SET status = 'refunded' WHERE id = 105"); r.Code != 0 || status(105) != "refunded" {
			t.Errorf("after a restart: %s, %s", status(105), r)
		}
		m.SettledRecords(t, "proxy")
		m.Verify(t)
	})
}

// newestTask is the task of the newest decision about an action.
func newestTask(t *testing.T, m *testmesh.Mesh, action string) string {
	t.Helper()
	task := ""
	for _, r := range m.Records(t, "proxy") {
		if d, ok := r.Event.(*audit.Decision); ok && strings.Contains(d.Action, action) {
			task = r.Txn
		}
	}
	return task
}

// fault is a tracer that changes a process's system calls.
type fault struct{ live *testmesh.Live }

// inject makes system calls of a running role fail or wait, as strace's --inject says.
func inject(t *testing.T, p *testmesh.Process, what string) *fault {
	t.Helper()
	l := testmesh.Begin(t, testmesh.Command{Args: []string{"strace", "-f", "-p", strconv.Itoa(p.Pid()), "-o", "/dev/null",
		"-e", "trace=" + strings.Split(what, ":")[0], "-e", "inject=" + what}})
	l.AwaitError("attached", 1)
	return &fault{l}
}

// stop lets the process go on without faults.
func (f *fault) stop(t *testing.T) {
	t.Helper()
	f.live.Signal(syscall.SIGINT)
	f.live.Wait(patience)
}
