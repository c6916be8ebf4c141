package sshd

import (
	"errors"
	"net"
	"reflect"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/crypto/ssh"
)

// x/crypto/ssh (v0.59.0) takes packets off the wire in one goroutine and acts on them in another, with room for 16 between them. The second
// one ends at a packet that it won't take, and waits in Close for the first to end; the first one waits for room. A peer that sends one wrong
// packet and twenty more keeps both for good, with the last packets: Wait and Close never return. So a connection's end is seen by its
// channels, which are closed before that, and what is left between the two is taken out here.

// packets is where a connection's packets lie between the two; nil where the library isn't built like that any more, which a
// test notices.
func packets(conn ssh.Conn) <-chan []byte {
	if s, ok := conn.(*ssh.ServerConn); ok {
		conn = s.Conn
	}
	v := reflect.Indirect(reflect.ValueOf(conn))
	for _, name := range []string{"transport", "incoming"} {
		if v.Kind() != reflect.Struct {
			return nil
		}
		if v = v.FieldByName(name); v.Kind() == reflect.Interface {
			v = v.Elem()
		}
		v = reflect.Indirect(v)
	}
	if !v.IsValid() || !v.CanAddr() || v.Type() != reflect.TypeFor[chan []byte]() {
		return nil
	}
	return *(*chan []byte)(unsafe.Pointer(v.UnsafeAddr())) //nolint:gosec // the one way to free what the library keeps; its type was checked
}

// over waits for the end of a connection whose channels have ended, and says why.
func over(conn ssh.Conn) error {
	if p := packets(conn); p != nil {
		for range p {
			continue
		}
	}
	return conn.Wait()
}

// abandon closes a connection that nobody serves, and returns when it is closed.
func abandon(conn ssh.Conn, channels <-chan ssh.NewChannel, requests <-chan *ssh.Request) {
	var left sync.WaitGroup
	left.Go(func() {
		for r := range requests {
			_ = r.Reply(false, nil)
		}
	})
	left.Go(func() {
		for n := range channels {
			_ = n.Reject(ssh.Prohibited, "not opened here")
		}
		_ = over(conn)
	})
	_ = conn.Close()
	left.Wait()
}

// startupBytes bounds what SSH may take to read until a session begins, beside the credential: exchanges of keys and a banner.
const startupBytes = 64 << 10

var errLongStartup = errors.New("it sends too much before its session begins")

// brief is a connection that takes only so many bytes before its session begins: what a failed handshake leaves behind can't be freed
// (see packets), so that it must be little.
type brief struct {
	net.Conn
	left   atomic.Int64
	begun  atomic.Bool
	writes atomic.Int64
	once   sync.Once
	read   chan struct{} // closed when nothing more is read
}

func newBrief(conn net.Conn, most int64) *brief {
	b := &brief{Conn: conn, read: make(chan struct{})}
	b.left.Store(most)
	return b
}

func (b *brief) Read(p []byte) (int, error) {
	if b.begun.Load() {
		return b.Conn.Read(p)
	}
	n, err := b.Conn.Read(p)
	if b.left.Add(int64(-n)) < 0 && !b.begun.Load() {
		n, err = 0, errLongStartup
	}
	if err != nil {
		b.once.Do(func() { close(b.read) })
	}
	return n, err
}

func (b *brief) Write(p []byte) (int, error) {
	b.writes.Add(1)
	return b.Conn.Write(p)
}

// leaves says, of a handshake that failed, whether the library's reader stays behind. There is one once more than the version was written.
func (b *brief) leaves() bool {
	_ = b.Conn.Close()
	if b.writes.Load() < 2 {
		return false
	}
	late := time.NewTimer(leavesWithin)
	defer late.Stop()
	select {
	case <-b.read:
		return false
	case <-late.C:
		return true
	}
}
