package supervise

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
)

// loopbackPort is a loopback port for the run's own processes only: the kernel says which of them hold a connection.
type loopbackPort struct {
	s      *Supervisor
	target string
	tcp    *net.TCPListener
	// refuse tells a client, in its protocol, why it isn't served, and closes the connection.
	refuse func(conn net.Conn, busy bool, why string)
}

// accept gives admitted connections to handle until the port is closed, and waits for it.
func (p *loopbackPort) accept(ctx context.Context, handle func(net.Conn)) {
	slots := make(chan struct{}, maxLocalConns)
	var work sync.WaitGroup
	defer work.Wait()
	for {
		conn, err := p.tcp.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			p.s.log.Warn("a local connection was not accepted", "target", p.target, "error", err)
			continue
		}
		select {
		case slots <- struct{}{}:
		default:
			p.refuse(conn, true, fmt.Sprintf("the run's listener of %s has %d connections already", p.target, maxLocalConns))
			continue
		}
		work.Go(func() {
			held := &slotConn{TCPConn: conn.(*net.TCPConn), slots: slots}
			if err := p.s.admitHolders(ctx, conn); err != nil {
				p.s.log.WarnContext(ctx, "a local connection was refused", "target", p.target, "error", plain(err))
				p.refuse(held, false, plain(err).Error())
				return
			}
			handle(held)
		})
	}
}

// slotConn gives its slot back.
type slotConn struct {
	*net.TCPConn
	slots chan struct{}
	once  sync.Once
}

func (c *slotConn) Close() error {
	err := c.TCPConn.Close()
	c.once.Do(func() { <-c.slots })
	return err
}
