//go:build bench

package load_test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/deputymesh/deputy/internal/testca"
	"github.com/deputymesh/deputy/internal/testmesh"
	"github.com/deputymesh/deputy/internal/testpg"
)

// scale of pgbench's tables: at least the number of clients, or TPC-B measures the locks of its branches.
const scale = 32

// postgres starts the target: durable, quiet, and large enough to answer from memory.
func (b *bench) postgres() *testpg.Server {
	b.t.Helper()
	// PgBouncer speaks to it without TLS, as poolers on the same host do.
	hba := b.file("pg_hba.conf", "hostssl all all 127.0.0.1/32 scram-sha-256\nhostnossl all all 127.0.0.1/32 scram-sha-256\n")
	pg := testmesh.Shop(b.t, "hba_file = '"+hba+"'", "fsync = on", "shared_buffers = '768MB'", "max_connections = 800",
		"max_wal_size = '4GB'", "checkpoint_timeout = '30min'")
	b.note("filling pgbench's tables, scale %d", scale)
	r := testmesh.Exec(b.t, testmesh.Command{Within: 10 * time.Minute,
		Args: []string{pg.Bin("pgbench"), "-i", "-q", "-s", strconv.Itoa(scale), pg.DSN(testpg.App, testpg.AppPassword, testpg.Database)}})
	if r.Code != 0 {
		b.t.Fatalf("pgbench -i: %s", r)
	}
	pg.ExecIn(testpg.Database, "checkpoint")
	return pg
}

// file writes a file that every uid may read.
func (b *bench) file(name, text string) string {
	b.t.Helper()
	path := filepath.Join(b.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		b.t.Fatal(err)
	}
	return path
}

// serve runs a peer until the end, under a uid that isn't root's, and waits until it listens.
func (b *bench) serve(address string, args ...string) (pid int) {
	b.t.Helper()
	return b.serveAs(b.nobody(), nil, address, args...)
}

func (b *bench) serveAs(who *syscall.Credential, input io.Reader, address string, args ...string) (pid int) {
	b.t.Helper()
	var out bytes.Buffer
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = input, &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Credential: who}
	if err := cmd.Start(); err != nil {
		b.t.Fatalf("starting %s: %v; scripts/setup bench installs it", args[0], err)
	}
	end := sync.OnceFunc(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	b.t.Cleanup(end)
	for limit := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			conn.Close()
			return cmd.Process.Pid
		}
		if time.Now().After(limit) {
			end()
			b.t.Fatalf("%s doesn't listen on %s:\n%s", args[0], address, &out)
		}
	}
}

// nobody is who peers run as, where we are root.
func (b *bench) nobody() *syscall.Credential {
	if os.Geteuid() != 0 {
		return nil
	}
	u, err := user.Lookup("nobody")
	if err != nil {
		b.t.Fatal(err)
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		b.t.Fatal(err)
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}
}

// route is a way to the database for an unmodified client.
type route struct {
	name string
	pid  int           // of the process in between; 0: none
	ours bool          // it can be profiled
	log  func() string // what it wrote, for when it has died; may be nil
	// env gives what libpq needs, with credentials that live as long as one measurement.
	env func() []string
	// inside, if set, is used instead: it makes the command that runs the client where everything is given to it.
	inside func(argv ...string) testmesh.Command
}

func libpq(port int, more ...string) []string {
	return append([]string{"PGHOST=127.0.0.1", "PGPORT=" + strconv.Itoa(port), "PGUSER=" + testpg.App, "PGDATABASE=" + testpg.Database,
		"PGSSLMODE=require", "PGGSSENCMODE=disable"}, more...)
}

func direct(pg *testpg.Server) route {
	return route{name: "direct", env: func() []string { return libpq(pg.Port, "PGPASSWORD="+testpg.AppPassword) }}
}

// pgbouncer takes TLS from clients and none to the server, a session per client.
func (b *bench) pgbouncer(pg *testpg.Server) route {
	b.t.Helper()
	dir := filepath.Join(b.dir, "pgbouncer")
	if err := os.Mkdir(dir, 0o755); err != nil {
		b.t.Fatal(err)
	}
	cert, key, _ := testca.New(b.t, "pooler.test").Server(dir, "127.0.0.1")
	for _, f := range []string{cert, key} {
		if err := os.Chmod(f, 0o644); err != nil {
			b.t.Fatal(err)
		}
	}
	port := testmesh.FreePorts(b.t, 1)
	users := b.file("pgbouncer/users.txt", fmt.Sprintf("%q %q\n", testpg.App, testpg.AppPassword))
	conf := b.file("pgbouncer/pgbouncer.ini", fmt.Sprintf(`[databases]
%s = host=127.0.0.1 port=%d dbname=%s
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %d
unix_socket_dir =
pool_mode = session
auth_type = scram-sha-256
auth_file = %s
client_tls_sslmode = require
client_tls_cert_file = %s
client_tls_key_file = %s
server_tls_sslmode = disable
max_client_conn = 1000
default_pool_size = 200
ignore_startup_parameters = extra_float_digits
log_connections = 0
log_disconnections = 0
`, testpg.Database, pg.Port, testpg.Database, port, users, cert, key))
	pid := b.serve(net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), "/usr/sbin/pgbouncer", "-q", conf)
	return route{name: "PgBouncer", pid: pid, env: func() []string { return libpq(port, "PGPASSWORD="+testpg.AppPassword) }}
}

// haproxy passes the bytes of TLS through: the floor of what a relay in between costs.
func (b *bench) haproxy(pg *testpg.Server) route {
	b.t.Helper()
	port := testmesh.FreePorts(b.t, 1)
	conf := b.file("haproxy.cfg", fmt.Sprintf(`global
  maxconn 2000
defaults
  mode tcp
  timeout connect 5s
  timeout client 1h
  timeout server 1h
listen postgres
  bind 127.0.0.1:%d
  server target 127.0.0.1:%d
`, port, pg.Port))
	pid := b.serve(net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), "/usr/sbin/haproxy", "-db", "-q", "-f", conf)
	return route{name: "HAProxy", pid: pid, env: func() []string { return libpq(port, "PGPASSWORD="+testpg.AppPassword) }}
}
