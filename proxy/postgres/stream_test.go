package postgres_test

import (
	"context"
	"io"
	"net"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/deputymesh/deputy/internal/testpg"
	"github.com/deputymesh/deputy/proxy/postgres"
)

// tap is a connection to the target that counts what the proxy reads, and holds its writes back while the gate is closed.
type tap struct {
	net.Conn
	read, written *atomic.Int64
	limit         int64         // bytes that pass before the gate
	gate          chan struct{} // nil: no gate
}

func (c tap) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.read.Add(int64(n))
	return n, err
}

func (c tap) Write(b []byte) (int, error) {
	if c.gate != nil && c.written.Add(int64(len(b))) > c.limit {
		<-c.gate
	}
	return c.Conn.Write(b)
}

// tapped makes the engine dial through taps.
func tapped(t tap) func(*postgres.Config) {
	return func(c *postgres.Config) {
		c.Upstream.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := new(net.Dialer).DialContext(ctx, network, address)
			t.Conn = conn
			return t, err
		}
	}
}

// settled waits until the count doesn't grow any more.
func settled(t *testing.T, count func() int64) int64 {
	t.Helper()
	last, same := int64(-1), 0
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		now := count()
		if now == last && now > 1<<20 {
			if same++; same == 10 {
				return now
			}
			continue
		}
		last, same = now, 0
	}
	t.Fatalf("it never stops: %d bytes", last)
	return 0
}

// inFlight bounds what may be between a peer that stands still and one that goes on: buffers of the kernel on three sockets,
// and ours.
const inFlight = 48 << 20

// TestAnAgentThatReadsSlowlyStopsTheTarget: rows and copies aren't gathered in the proxy.
func TestAnAgentThatReadsSlowlyStopsTheTarget(t *testing.T) {
	pg := testpg.Start(t)
	for _, sql := range []string{
		"select repeat('x', 10000) from generate_series(1, 30000)",
		"copy (select repeat('x', 10000) from generate_series(1, 30000)) to stdout",
		"begin; declare c cursor for select repeat('x', 10000) from generate_series(1, 30000); fetch all from c",
	} {
		var read, written atomic.Int64
		w := worldOf(t, pg, []string{"clerk"}, tapped(tap{read: &read, written: &written}))
		f := w.frontend()
		f.Send(query(sql))
		if err := f.Flush(); err != nil {
			t.Fatal(err)
		}
		if n := settled(t, read.Load); n > inFlight {
			t.Errorf("%s: the proxy has read %d bytes for an agent that reads none", sql, n)
		}
		// When it reads on, all is there.
		rows := 0
		for done := false; !done; {
			m, err := f.Receive()
			if err != nil {
				t.Fatalf("%s: %v", sql, err)
			}
			switch m := m.(type) {
			case *pgproto3.DataRow, *pgproto3.CopyData:
				rows++
			case *pgproto3.ReadyForQuery:
				done = true
			case *pgproto3.ErrorResponse:
				t.Fatalf("%s: %s", sql, m.Message)
			}
		}
		if rows != 30000 {
			t.Errorf("%s: %d rows", sql, rows)
		}
	}
}

// TestATargetThatTakesSlowlyStopsTheAgent: what is copied in isn't gathered either.
func TestATargetThatTakesSlowlyStopsTheAgent(t *testing.T) {
	pg := testpg.Start(t)
	pg.Exec("set role "+testpg.App, "create table parts (x text)")
	var read, written, sent atomic.Int64
	gate := make(chan struct{})
	var once sync.Once
	open := func() { once.Do(func() { close(gate) }) }
	w := worldOf(t, pg, []string{"clerk"}, tapped(tap{read: &read, written: &written, limit: 1 << 20, gate: gate}))
	t.Cleanup(open) // before the engine ends
	conn := w.connect()
	line := strings.Repeat("y", 9999) + "\n"
	r := io.Reader(&counted{r: &repeated{line: line, left: 20000}, n: &sent})
	done := make(chan error, 1)
	go func() {
		_, err := conn.PgConn().CopyFrom(context.Background(), r, "copy parts from stdin")
		done <- err
	}()
	if n := settled(t, sent.Load); n > inFlight {
		t.Errorf("%d bytes were taken from the agent while the target took none", n)
	}
	open()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if got := pg.Value("select count(*) from parts"); got != "20000" {
		t.Errorf("%s rows", got)
	}
}

type counted struct {
	r io.Reader
	n *atomic.Int64
}

func (c *counted) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.n.Add(int64(n))
	return n, err
}

// repeated gives a line a number of times.
type repeated struct {
	line string
	left int
	rest string
}

func (r *repeated) Read(b []byte) (int, error) {
	if r.rest == "" {
		if r.left == 0 {
			return 0, io.EOF
		}
		r.left--
		r.rest = r.line
	}
	n := copy(b, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// clock is a connection that remembers the deadlines it got.
type clock struct {
	net.Conn
	mu          sync.Mutex
	read, write time.Time
}

func (c *clock) SetDeadline(t time.Time) error {
	c.mu.Lock()
	c.read, c.write = t, t
	c.mu.Unlock()
	return c.Conn.SetDeadline(t)
}

func (c *clock) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	c.read = t
	c.mu.Unlock()
	return c.Conn.SetReadDeadline(t)
}

func (c *clock) SetWriteDeadline(t time.Time) error {
	c.mu.Lock()
	c.write = t
	c.mu.Unlock()
	return c.Conn.SetWriteDeadline(t)
}

func (c *clock) ticks() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.read.IsZero() || !c.write.IsZero()
}

type clocks struct {
	net.Listener
	mu  sync.Mutex
	all []*clock
}

func (l *clocks) add(conn net.Conn) net.Conn {
	c := &clock{Conn: conn}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, c)
	return c
}

func (l *clocks) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return l.add(c), nil
}

// TestIdleSessionsHaveNoDeadline: hours may pass between two statements, and inside a transaction, a copy or a LISTEN.
func TestIdleSessionsHaveNoDeadline(t *testing.T) {
	pg := testpg.Start(t)
	pg.Exec("set role "+testpg.App, "create table parts (x text)")
	var l clocks
	w := worldOn(t, pg, []string{"clerk", "listener"}, func(inner net.Listener) net.Listener {
		l.Listener = inner
		return &l
	}, func(c *postgres.Config) {
		c.Upstream.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := new(net.Dialer).DialContext(ctx, network, address)
			if err != nil {
				return nil, err
			}
			return l.add(conn), nil
		}
	})
	f := w.frontend()
	idle := func(when string) {
		t.Helper()
		l.mu.Lock()
		defer l.mu.Unlock()
		if len(l.all) < 2 {
			t.Fatalf("%d connections", len(l.all))
		}
		for i, c := range l.all {
			if c.ticks() {
				t.Errorf("%s connection %d would end by itself", when, i)
			}
		}
	}
	w.script(t, f, 1, query("select 1"))
	idle("after a query")
	w.script(t, f, 1, query("begin; declare c cursor for select id from orders; fetch c"))
	idle("in a transaction")
	w.script(t, f, 1, query("rollback; listen jobs"))
	idle("listening")
	f.Send(query("copy parts from stdin"))
	if err := f.Flush(); err != nil {
		t.Fatal(err)
	}
	if m, err := f.Receive(); err != nil {
		t.Fatalf("%T %v", m, err)
	}
	idle("in a copy")
}

// TestBindingToTheChannelFailsClearly: the credential is a password inside TLS, which libpq doesn't take for channel binding.
func TestBindingToTheChannelFailsClearly(t *testing.T) {
	w := newWorld(t, []string{"clerk"})
	cmd := exec.CommandContext(t.Context(), w.pg.Bin("psql"), "-X", "-c", "select 1")
	cmd.Env = append(w.env(), "PGCHANNELBINDING=require")
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "channel binding") {
		t.Errorf("%v: %s", err, out)
	}
}

// TestProtocol32IsNegotiatedDown, with the short cancel key of 3.0.
func TestProtocol32IsNegotiatedDown(t *testing.T) {
	w := newWorld(t, []string{"clerk"})
	cfg := w.config()
	cfg.MaxProtocolVersion = "3.2"
	conn, err := connectWith(t, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(conn.PgConn().SecretKey()); n != 4 {
		t.Errorf("a cancel key of %d bytes", n)
	}
	if got, err := table(t.Context(), conn, "select 1"); err != nil || got[0] != "1" {
		t.Errorf("%v %v", got, err)
	}
	cfg = w.config()
	cfg.MinProtocolVersion, cfg.MaxProtocolVersion = "3.2", "3.2"
	if _, err := connectWith(t, cfg); err == nil || !strings.Contains(err.Error(), "3.2") && !strings.Contains(err.Error(), "protocol") {
		t.Errorf("a client that wants 3.2 or nothing: %v", err)
	}
}
