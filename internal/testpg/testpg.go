// Package testpg starts a real PostgreSQL for tests: its own cluster in a temporary folder, on a free loopback port, with TLS
// from internal/testca and SCRAM for everybody. It runs as an unprivileged user, since PostgreSQL refuses to run as root.
package testpg

import (
	"context"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/deputymesh/deputy/internal/testca"
)

// Names and passwords that every server has. Admin is a superuser; App owns the database and is what a proxy uses.
const (
	Admin         = "postgres"
	AdminPassword = "admin-Pa55"
	App           = "shop_app"
	AppPassword   = "app-Pa55"
	Catalog       = "deputy_catalog"
	CatalogPass   = "catalog-Pa55"
	Database      = "shop"
)

// Server is a running server.
type Server struct {
	t    testing.TB
	dir  string
	bin  string
	cred *syscall.Credential

	mu     sync.Mutex
	cmd    *exec.Cmd
	exited chan struct{} // closed when cmd has ended

	Host    string
	Port    int
	CAFile  string
	RootCAs *x509.CertPool
}

// Start makes a cluster and starts it. The test's end stops it.
func Start(t testing.TB, settings ...string) *Server {
	t.Helper()
	s := &Server{t: t, Host: "127.0.0.1", bin: binaries(t)}
	// t.TempDir's parents are closed to other users.
	dir, err := os.MkdirTemp("", "testpg")
	if err != nil {
		t.Fatalf("testpg: %v", err)
	}
	s.dir = dir
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if os.Getuid() == 0 {
		s.cred = unprivileged(t)
		if err := os.Chown(dir, int(s.cred.Uid), int(s.cred.Gid)); err != nil {
			t.Fatalf("testpg: %v", err)
		}
	}
	s.initialise(settings)
	s.start()
	s.fill()
	return s
}

// binaries is where Debian, or PATH, has the server.
func binaries(t testing.TB) string {
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	slices.Sort(found)
	if len(found) > 0 {
		return filepath.Dir(found[len(found)-1])
	}
	p, err := exec.LookPath("initdb")
	if err != nil {
		t.Fatalf("testpg: no PostgreSQL server; install Debian's postgresql-15 (apt-get install postgresql)")
	}
	return filepath.Dir(p)
}

func unprivileged(t testing.TB) *syscall.Credential {
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
		gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
		if err1 == nil && err2 == nil {
			return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		}
	}
	t.Fatal("testpg: there is no unprivileged user to run PostgreSQL as")
	return nil
}

func (s *Server) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(s.bin, name), args...)
	cmd.Dir = s.dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C.UTF-8", "HOME=" + s.dir}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.cred, Pdeathsig: syscall.SIGKILL}
	return cmd
}

func (s *Server) write(name, text string) string {
	s.t.Helper()
	path := filepath.Join(s.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		s.t.Fatalf("testpg: %v", err)
	}
	s.own(path)
	return path
}

func (s *Server) own(path string) {
	s.t.Helper()
	if s.cred == nil {
		return
	}
	if err := os.Chown(path, int(s.cred.Uid), int(s.cred.Gid)); err != nil {
		s.t.Fatalf("testpg: %v", err)
	}
}

func (s *Server) initialise(settings []string) {
	s.t.Helper()
	pw := s.write("password", AdminPassword)
	init := s.command("initdb", "--no-sync", "-D", "data", "-U", Admin, "--pwfile", pw, "-A", "scram-sha-256", "-E", "UTF8", "--locale=C.UTF-8")
	if out, err := init.CombinedOutput(); err != nil {
		s.t.Fatalf("testpg: initdb: %v\n%s", err, out)
	}
	ca := testca.New(s.t, "target.test")
	cert, key, caFile := ca.Server(s.dir, "localhost", "127.0.0.1")
	for _, f := range []string{cert, key, caFile} {
		s.own(f)
	}
	s.CAFile = caFile
	s.RootCAs = x509.NewCertPool()
	s.RootCAs.AddCert(ca.Certificate())
	s.Port = freePort(s.t)
	conf := []string{
		"listen_addresses = '127.0.0.1'", fmt.Sprintf("port = %d", s.Port), "unix_socket_directories = ''",
		"ssl = on", "ssl_cert_file = '" + cert + "'", "ssl_key_file = '" + key + "'", "password_encryption = 'scram-sha-256'",
		"fsync = off", "shared_buffers = '32MB'", "max_connections = 100", "log_min_messages = fatal", "log_statement = none",
	}
	s.write("data/postgresql.auto.conf", strings.Join(append(conf, settings...), "\n")+"\n")
	s.write("data/pg_hba.conf", "hostssl all all 127.0.0.1/32 scram-sha-256\n")
}

func freePort(t testing.TB) int {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("testpg: %v", err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func (s *Server) start() {
	s.t.Helper()
	s.t.Cleanup(s.stop)
	s.Begin()
}

// Begin starts the server that was killed again, and waits until it answers.
func (s *Server) Begin() {
	s.t.Helper()
	for deadline := time.Now().Add(60 * time.Second); ; {
		err := s.launch(deadline)
		if err == nil {
			return
		}
		// The processes of a killed server give its shared memory back a moment later.
		if !strings.Contains(err.Error(), "shared memory block") || time.Now().After(deadline) {
			s.t.Fatalf("testpg: %v", err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// launch starts the server and waits until it answers or ends.
func (s *Server) launch(deadline time.Time) error {
	log, err := os.Create(filepath.Join(s.dir, "log"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd, exited := s.command("postgres", "-D", "data"), make(chan struct{})
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return err
	}
	go func() {
		defer close(exited)
		_ = cmd.Wait()
	}()
	s.mu.Lock()
	s.cmd, s.exited = cmd, exited
	s.mu.Unlock()
	for {
		conn, err := s.Connect(context.Background(), Admin, AdminPassword, "postgres")
		if err == nil {
			_ = conn.Close(context.Background())
			return nil
		}
		select {
		case <-exited:
			text, _ := os.ReadFile(log.Name())
			return fmt.Errorf("the server didn't start:\n%s", text)
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the server doesn't answer: %w", err)
		}
	}
}

// Kill ends the server's first process with SIGKILL and waits for it. The others end when they notice.
func (s *Server) Kill() { s.signal(syscall.SIGKILL) }

func (s *Server) stop() { s.signal(syscall.SIGINT) } // fast shutdown

func (s *Server) signal(how syscall.Signal) {
	s.mu.Lock()
	cmd, exited := s.cmd, s.exited
	s.mu.Unlock()
	if cmd == nil {
		return
	}
	_ = cmd.Process.Signal(how)
	select {
	case <-exited:
	case <-time.After(10 * time.Second):
		_ = cmd.Process.Kill()
		<-exited
	}
}

// fill makes accounts and a small shop with personal fields.
func (s *Server) fill() {
	s.t.Helper()
	s.ExecIn("postgres",
		"create role "+App+" login password '"+AppPassword+"'",
		"create role "+Catalog+" login password '"+CatalogPass+"'",
		"create database "+Database+" owner "+App,
	)
	s.Exec(
		"grant create on schema public to "+App,
		"set role "+App,
		"create table customers (id int primary key, name text not null, email text unique, phone text, born date, attributes jsonb)",
		"insert into customers values (1,'Ada','ada@example.com','+4915112345678','1990-01-01','{\"k\":1}'),(2,'Bob','bob@example.com',null,'1980-02-02',null),(3,'Carol',null,'12','1970-03-03',null)",
		"create table orders (id int primary key, customer int references customers, amount numeric(10,2), note text)",
		"insert into orders select i, 1 + i % 3, i * 1.5, 'order ' || i from generate_series(1, 50) i",
	)
}

// Connect opens a connection of its own, past any proxy.
func (s *Server) Connect(ctx context.Context, account, password, database string) (*pgconn.PgConn, error) {
	cfg, err := pgconn.ParseConfig(s.DSN(account, password, database))
	if err != nil {
		return nil, err
	}
	return pgconn.ConnectConfig(ctx, cfg)
}

// DSN is how libpq and pgx connect to the server itself.
func (s *Server) DSN(account, password, database string) string {
	return fmt.Sprintf("host=%s port=%d user=%s password=%s dbname=%s sslmode=verify-full sslrootcert=%s", s.Host, s.Port, account, password, database, s.CAFile)
}

// Address is host:port.
func (s *Server) Address() string { return net.JoinHostPort(s.Host, strconv.Itoa(s.Port)) }

// Exec runs SQL as the superuser in the sample database, all in one session.
func (s *Server) Exec(sql ...string) { s.t.Helper(); s.ExecIn(Database, sql...) }

// ExecIn is Exec in another database.
func (s *Server) ExecIn(database string, sql ...string) {
	s.t.Helper()
	conn, err := s.Connect(context.Background(), Admin, AdminPassword, database)
	if err != nil {
		s.t.Fatalf("testpg: %v", err)
	}
	defer conn.Close(context.Background())
	for _, q := range sql {
		if _, err := conn.Exec(context.Background(), q).ReadAll(); err != nil {
			s.t.Fatalf("testpg: %s: %v", q, err)
		}
	}
}

// Value runs a query as the superuser and gives its one value as text; "" is NULL or no row.
func (s *Server) Value(sql string) string {
	s.t.Helper()
	conn, err := s.Connect(context.Background(), Admin, AdminPassword, Database)
	if err != nil {
		s.t.Fatalf("testpg: %v", err)
	}
	defer conn.Close(context.Background())
	r := conn.ExecParams(context.Background(), sql, nil, nil, nil, nil).Read()
	if r.Err != nil {
		s.t.Fatalf("testpg: %s: %v", sql, r.Err)
	}
	if len(r.Rows) == 0 {
		return ""
	}
	return string(r.Rows[0][0])
}

// Bin is the path of a client or server program such as psql.
func (s *Server) Bin(name string) string { return filepath.Join(s.bin, name) }
