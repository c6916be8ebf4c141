package supervise

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/deputymesh/deputy/internal/supervise/kernel"
)

const (
	streamsToken   = 16
	maxStreamCalls = 16
)

// streamDesk takes the standard streams of callers that start an isolated child: gRPC can't carry file
// descriptors. A caller shows the random token that its Spawn was answered with, once.
type streamDesk struct {
	s        *Supervisor
	path     string
	listener *net.UnixListener

	mu      sync.Mutex
	waiting map[[streamsToken]byte]chan []*os.File // guarded by mu
}

func newStreamDesk(s *Supervisor) *streamDesk {
	return &streamDesk{s: s, waiting: make(map[[streamsToken]byte]chan []*os.File)}
}

func (d *streamDesk) open(path string) (err error) {
	d.path = path
	d.listener, err = listenUnix(path)
	return err
}

func (d *streamDesk) close() {
	if d.listener != nil {
		d.listener.Close()
	}
}

// expect makes a token; the streams that come with it are delivered once and are the receiver's to close.
func (d *streamDesk) expect() ([streamsToken]byte, <-chan []*os.File) {
	var t [streamsToken]byte
	rand.Read(t[:])
	c := make(chan []*os.File, 1)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.waiting[t] = c
	return t, c
}

func (d *streamDesk) forget(t [streamsToken]byte) {
	d.mu.Lock()
	c := d.waiting[t]
	delete(d.waiting, t)
	d.mu.Unlock()
	select {
	case files := <-c:
		closeAll(files)
	default:
	}
}

func (d *streamDesk) serve(ctx context.Context) {
	var calls sync.WaitGroup
	defer calls.Wait()
	slots := make(chan struct{}, maxStreamCalls)
	for {
		conn, err := d.listener.AcceptUnix()
		if err != nil {
			return
		}
		slots <- struct{}{}
		calls.Go(func() {
			defer func() { <-slots }()
			defer conn.Close()
			if err := d.take(ctx, conn); err != nil {
				d.s.log.WarnContext(ctx, "standard streams were not taken", "error", err)
			}
		})
	}
}

func (d *streamDesk) take(ctx context.Context, conn *net.UnixConn) error {
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	caller, err := kernel.PeerOf(conn)
	if err != nil {
		return err
	}
	defer caller.Close()
	if err := d.s.admit(ctx, caller.Held); err != nil {
		return err
	}
	var t [streamsToken]byte
	oob := make([]byte, unix.CmsgSpace(4*3))
	n, oobn, flags, _, err := conn.ReadMsgUnix(t[:], oob)
	if err != nil {
		return err
	}
	files, err := receivedFiles(oob[:oobn])
	if err != nil {
		return err
	}
	if _, err := io.ReadFull(conn, t[n:]); err != nil || flags&unix.MSG_CTRUNC != 0 || len(files) != 3 {
		closeAll(files)
		return fmt.Errorf("want a token and three descriptors, got %d", len(files))
	}
	d.mu.Lock()
	c := d.waiting[t]
	delete(d.waiting, t)
	d.mu.Unlock()
	if c == nil {
		closeAll(files)
		return fmt.Errorf("nobody waits for these streams")
	}
	c <- files
	_, err = conn.Write([]byte{0})
	return err
}

// sendStreams is the caller's side.
func sendStreams(path string, token []byte, files [3]*os.File) error {
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return fmt.Errorf("handing over the standard streams: %w", err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	oob := unix.UnixRights(int(files[0].Fd()), int(files[1].Fd()), int(files[2].Fd()))
	if _, _, err := conn.WriteMsgUnix(token, oob, nil); err != nil {
		return fmt.Errorf("handing over the standard streams: %w", err)
	}
	var ack [1]byte
	if _, err := io.ReadFull(conn, ack[:]); err != nil {
		return fmt.Errorf("handing over the standard streams: the supervisor did not take them: %w", err)
	}
	return nil
}
