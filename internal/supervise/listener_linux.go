package supervise

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/deputymesh/deputy/client"
	"github.com/deputymesh/deputy/internal/supervise/kernel"
)

const (
	localPort = 5432
	// maxLocalConns bounds the live connections of one listener.
	maxLocalConns = 256
	// placeholder stands where a client demands a name and the run has none; client.PostgresRelay takes
	// it out again.
	placeholder = "deputy"
)

// pgListener is the run's own way to one PostgreSQL target: a Unix socket, whose callers the kernel
// names, and a loopback port with a random password for clients that know no Unix sockets.
type pgListener struct {
	s        *Supervisor
	target   client.Target
	password string
	unix     *net.UnixListener
	tcp      *net.TCPListener
	conns    sync.WaitGroup
	slots    chan struct{}
}

// openListeners opens one listener per PostgreSQL target and writes the files that clients find them by.
func (s *Supervisor) openListeners(ctx context.Context) error {
	for i := range s.mesh.Targets {
		t := &s.mesh.Targets[i]
		t.SocketDir = ""
		if t.Kind != "postgres" {
			continue
		}
		l := &pgListener{s: s, slots: make(chan struct{}, maxLocalConns)}
		if err := l.open(t); err != nil {
			l.close()
			return fmt.Errorf("opening the listener of %s: %w", t.Name, err)
		}
		l.target = *t
		s.listeners = append(s.listeners, l)
	}
	if len(s.listeners) == 0 {
		return nil
	}
	if err := s.writeServiceFiles(); err != nil {
		return err
	}
	for _, l := range s.listeners {
		s.tasks.Go(func() { l.serveUnix(ctx) })
		s.tasks.Go(func() { l.serveTCP(ctx) })
	}
	return nil
}

func (l *pgListener) open(t *client.Target) error {
	dir := filepath.Join(l.s.cfg.Dir, "pg", t.Name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	var err error
	if l.unix, err = listenUnix(filepath.Join(dir, ".s.PGSQL."+strconv.Itoa(localPort))); err != nil {
		return err
	}
	if l.tcp, err = net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}); err != nil {
		return err
	}
	var random [16]byte
	rand.Read(random[:])
	l.password = hex.EncodeToString(random[:])
	t.SocketDir = dir
	return nil
}

func (l *pgListener) close() {
	if l.unix != nil {
		l.unix.Close()
	}
	if l.tcp != nil {
		l.tcp.Close()
	}
}

// startup is user and database as clients must name them.
func (l *pgListener) startup() (user, database string) {
	if user = l.target.User; user == "" {
		user = placeholder
	}
	if database = l.target.Database; database == "" {
		database = user
	}
	return user, database
}

func (s *Supervisor) serviceFile() string { return filepath.Join(s.cfg.Dir, "pg_service.conf") }
func (s *Supervisor) passFile() string    { return filepath.Join(s.cfg.Dir, "pgpass") }

// writeServiceFiles names one service per target, over the loopback port: JDBC reads no PG* variable but
// PGSERVICEFILE, and knows no Unix sockets. The password opens the local listener only.
func (s *Supervisor) writeServiceFiles() error {
	var services, passes strings.Builder
	for _, l := range s.listeners {
		port := l.tcp.Addr().(*net.TCPAddr).Port
		user, database := l.startup()
		for _, v := range []string{user, database} {
			if strings.ContainsAny(v, "\r\n") {
				return fmt.Errorf("database or user of %s holds a line break", l.target.Name)
			}
		}
		fmt.Fprintf(&services, "[%s]\nhost=127.0.0.1\nport=%d\ndbname=%s\nuser=%s\npassword=%s\nsslmode=disable\n\n", l.target.Name, port, database, user, l.password)
		fmt.Fprintf(&passes, "127.0.0.1:%d:*:*:%s\n", port, l.password)
	}
	if err := os.WriteFile(s.serviceFile(), []byte(services.String()), 0o600); err != nil {
		return fmt.Errorf("writing the service file: %w", err)
	}
	if err := os.WriteFile(s.passFile(), []byte(passes.String()), 0o600); err != nil {
		return fmt.Errorf("writing the password file: %w", err)
	}
	return nil
}

func (l *pgListener) serveUnix(ctx context.Context) {
	l.accept(l.unix, func(conn net.Conn) {
		caller, err := kernel.PeerOf(conn.(*net.UnixConn))
		if err == nil {
			err = l.s.admit(ctx, caller.Held)
			caller.Close()
		}
		l.relay(ctx, conn, "", err)
	})
}

func (l *pgListener) serveTCP(ctx context.Context) {
	l.accept(l.tcp, func(conn net.Conn) {
		l.relay(ctx, conn, l.password, l.s.admitHolders(ctx, conn))
	})
}

func (l *pgListener) accept(from net.Listener, handle func(net.Conn)) {
	defer l.conns.Wait()
	for {
		conn, err := from.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			l.s.log.Warn("a local connection was not accepted", "target", l.target.Name, "error", err)
			continue
		}
		select {
		case l.slots <- struct{}{}:
		default:
			client.RefusePostgres(conn, "53300", fmt.Errorf("the run's listener of %s has %d connections already", l.target.Name, maxLocalConns))
			continue
		}
		l.conns.Go(func() {
			defer func() { <-l.slots }()
			handle(conn)
		})
	}
}

func (l *pgListener) relay(ctx context.Context, conn net.Conn, password string, refused error) {
	if refused != nil {
		l.s.log.WarnContext(ctx, "a local connection was refused", "target", l.target.Name, "error", plain(refused))
		client.RefusePostgres(conn, "28000", plain(refused))
		return
	}
	r := &client.PostgresRelay{
		Target: l.target, Source: l.s.id, Password: password, Log: l.s.log,
		Credential: func(ctx context.Context) (client.Credential, error) {
			return l.s.ex.Credential(ctx, l.target.Name, nil)
		},
	}
	if err := r.Serve(ctx, conn); err != nil {
		l.s.log.DebugContext(ctx, "a connection ended", "target", l.target.Name, "error", err)
	}
}
