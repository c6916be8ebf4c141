package supervise

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/deputymesh/deputy/client"
)

// addressPrefix begins the variables that name the run's listeners of TCP services, and of hosts: DEPUTY_ADDRESS_CACHE=127.0.0.1:port.
const addressPrefix = "DEPUTY_ADDRESS_"

// tcpListener is the run's own way to a service that no engine speaks the protocol of, and to a host for clients of SSH that know no ProxyCommand.
type tcpListener struct {
	target client.Target
	tcp    *net.TCPListener
}

// openTCP opens one listener per TCP service and host.
func (s *Supervisor) openTCP(ctx context.Context) error {
	for _, t := range s.mesh.Targets {
		if t.Kind != "tcp" && t.Kind != "ssh" {
			continue
		}
		tcp, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			return fmt.Errorf("opening the listener of %s: %w", t.Name, err)
		}
		s.raw = append(s.raw, &tcpListener{t, tcp})
		port := &loopbackPort{s: s, target: t.Name, tcp: tcp, refuse: func(conn net.Conn, _ bool, why string) {
			if t.Kind == "ssh" {
				sayBeforeSSH(conn, why)
			}
			_ = conn.Close() // there are no words that every protocol knows; the run's own log has them
		}}
		relay := &client.StreamRelay{Target: t, Source: s.id, Log: s.log, Credential: func(ctx context.Context) (client.Credential, error) {
			return s.ex.Credential(ctx, t.Name, nil)
		}}
		if t.Kind == "ssh" {
			relay.HostKey = func(key string) error { return s.knownHosts.keep(tcp.Addr().String(), key) }
		}
		s.tasks.Go(func() {
			port.accept(ctx, func(conn net.Conn) {
				defer conn.Close()
				// A reset: the client must not take what is cut for an end that was meant.
				cut := func() {
					if c, ok := conn.(*slotConn); ok {
						_ = c.SetLinger(0)
					}
					_ = conn.Close()
				}
				stop := context.AfterFunc(ctx, cut)
				defer stop()
				var refused *client.StreamRefused
				switch err := relay.Serve(ctx, conn, conn); {
				case ctx.Err() != nil:
					cut() // before the plain end, if it hasn't been yet
				case err == nil:
				case t.Kind == "ssh" && errors.As(err, &refused):
					sayBeforeSSH(conn, refused.Text)
				default:
					s.log.WarnContext(ctx, "a connection was cut", "target", t.Name, "error", err)
					cut()
				}
			})
		})
	}
	return nil
}

// tcpEnvironment names the listeners.
func (s *Supervisor) tcpEnvironment() []string {
	var env []string
	for _, l := range s.raw {
		env = append(env, addressPrefix+variableOf(l.target.Name)+"="+l.tcp.Addr().String())
	}
	return env
}
