package lobby

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"
)

// Accept gives every connection on l to handle, which doesn't block, until ctx is done, and closes l. An error means that the listener, of
// the target with that name, is broken.
func Accept(ctx context.Context, l net.Listener, name string, handle func(net.Conn)) error {
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	defer l.Close()
	var pause time.Duration
	for {
		conn, err := l.Accept()
		if ctx.Err() != nil {
			if err == nil {
				_ = conn.Close()
			}
			return nil
		}
		var passing interface {
			Timeout() bool
			Temporary() bool
		}
		switch {
		case err == nil:
			pause = 0
			handle(conn)
		case errors.Is(err, net.ErrClosed) || !errors.As(err, &passing) || !passing.Temporary() && !passing.Timeout():
			return fmt.Errorf("accepting agents for %s: %w", name, err)
		default:
			// Out of file descriptors, as a rule: wait until some are free again.
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			select {
			case <-ctx.Done():
			case <-time.After(pause):
			}
		}
	}
}
