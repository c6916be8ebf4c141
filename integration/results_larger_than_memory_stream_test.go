package integration_test

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/deputymesh/deputy/internal/testmesh"
)

// Results pass through the proxy as they come: it holds a row that must be masked, and of all else no more than
// its buffers, however much there is, however slowly it is read, and by however many at once.
func TestResultsLargerThanMemoryStream(t *testing.T) {
	f := newForge(t, testmesh.Policy(filepath.Join("testdata", "reader-masked")))
	one := f.trees(t, 1)[0]
	dora := f.idp.signIn(t, "dora")
	l := f.flow(dora, f.root(dora, one.planner), testmesh.Target, one.planner, one.a)
	f.mustServe(l, f.Address("target"))
	f.PG.Exec("SET ROLE shop_app", "CREATE TABLE wide (id int, body text)",
		"ALTER TABLE wide ALTER body SET STORAGE EXTERNAL", "INSERT INTO wide SELECT 1, repeat('w', 200 << 20)")
	connect := func() *pgconn.PgConn {
		t.Helper()
		conn, err := f.connect(l.leaf, f.Address("target"), l.credential())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Conn().Close() })
		return conn
	}
	before := resident(t, f.Proxy.Pid())
	const allowed = 64 << 20 // of more than before: buffers, and the race detector's part of them
	bounded := func(t *testing.T) {
		t.Helper()
		if now := resident(t, f.Proxy.Pid()); now > before+allowed {
			t.Errorf("the proxy holds %d MB, before it were %d", now>>20, before>>20)
		}
	}
	const many = "SELECT i, repeat('x', 1000), c.email FROM generate_series(1, 300000) i, customers c WHERE c.id = 1"
	t.Run("300 MB, a part of each row masked", func(t *testing.T) {
		n, rows, err := drain(connect(), many, func(got int64) {
			if got%(64<<20) < 64<<10 {
				bounded(t)
			}
		})
		if err != nil || rows != 300000 || n < 300_000_000 {
			t.Errorf("%d rows, %d bytes: %v", rows, n, err)
		}
		bounded(t)
	})
	t.Run("a value of 200 MB", func(t *testing.T) {
		n, rows, err := drain(connect(), "SELECT body FROM wide", func(int64) {})
		if err != nil || rows != 1 || n < 200<<20 {
			t.Errorf("%d rows, %d bytes: %v", rows, n, err)
		}
		bounded(t)
	})
	t.Run("a row too large to be masked", func(t *testing.T) {
		_, rows, err := drain(connect(), "SELECT w.body, c.email FROM wide w, customers c WHERE c.id = 1", func(int64) {})
		if rows != 0 || err == nil || !strings.Contains(err.Error(), "a row is too large to be masked") {
			t.Errorf("%d rows: %v", rows, err)
		}
		bounded(t)
	})
	t.Run("readers that stop", func(t *testing.T) {
		var readers []*pgconn.PgConn
		for range 20 {
			c := connect()
			send(t, c, many)
			readers = append(readers, c)
		}
		// The target stops when nobody takes more: everything in between is full then.
		waiting := func() bool {
			return f.PG.Value("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'ClientWrite' AND usename = 'shop_app'") == "20"
		}
		for limit := time.Now().Add(patience); !waiting(); time.Sleep(50 * time.Millisecond) {
			if time.Now().After(limit) {
				t.Fatal("the target doesn't wait for its readers")
			}
		}
		bounded(t)
		f.mustServe(l, f.Address("target")) // nobody else waits
		// One of them goes on; the others have had enough.
		n, rows, err := receive(readers[0], func(int64) {})
		if err != nil || rows != 300000 || n < 300_000_000 {
			t.Errorf("the reader that went on: %d rows, %d bytes: %v", rows, n, err)
		}
		var all sync.WaitGroup
		for _, c := range readers {
			all.Go(func() { _ = c.Conn().Close() })
		}
		all.Wait()
		for limit := time.Now().Add(patience); f.PG.Value("SELECT count(*) FROM pg_stat_activity WHERE usename = 'shop_app' AND state = 'active'") != "0"; time.Sleep(50 * time.Millisecond) {
			if time.Now().After(limit) {
				t.Fatal("the target still sends to readers that are gone")
			}
		}
	})
	f.Verify(t)
}

func send(t *testing.T, c *pgconn.PgConn, sql string) {
	t.Helper()
	msg := binary.BigEndian.AppendUint32([]byte{'Q'}, uint32(len(sql)+5))
	if _, err := c.Conn().Write(append(append(msg, sql...), 0)); err != nil {
		t.Fatal(err)
	}
}

// drain asks, and reads the whole answer without keeping it.
func drain(c *pgconn.PgConn, sql string, meanwhile func(int64)) (bytes, rows int64, err error) {
	msg := binary.BigEndian.AppendUint32([]byte{'Q'}, uint32(len(sql)+5))
	if _, err := c.Conn().Write(append(append(msg, sql...), 0)); err != nil {
		return 0, 0, err
	}
	return receive(c, meanwhile)
}

func receive(c *pgconn.PgConn, meanwhile func(int64)) (bytes, rows int64, err error) {
	_ = c.Conn().SetReadDeadline(time.Now().Add(2 * patience))
	r := bufio.NewReaderSize(c.Conn(), 64<<10)
	for {
		var head [5]byte
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return bytes, rows, err
		}
		size := int64(binary.BigEndian.Uint32(head[1:])) - 4
		switch head[0] {
		case 'E':
			text := make([]byte, size)
			_, _ = io.ReadFull(r, text)
			return bytes, rows, fmt.Errorf("%q", text)
		case 'D':
			rows++
		}
		if _, err := io.CopyN(io.Discard, r, size); err != nil {
			return bytes, rows, err
		}
		bytes += size
		meanwhile(bytes)
		if head[0] == 'Z' {
			return bytes, rows, nil
		}
	}
}

// resident is the memory of a process now, in bytes.
func resident(t *testing.T, pid int) int64 {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(cutOut(string(raw), "VmRSS:", "\n"), "kB")), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n << 10
}
