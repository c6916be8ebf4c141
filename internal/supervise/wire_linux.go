package supervise

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// maxWireBytes bounds one message between launcher and supervisors: an argument list and environment.
const maxWireBytes = 4 << 20

// wire carries JSON messages, with file descriptors, over a stream socket pair: a length of four bytes,
// which the descriptors ride on, then the message. Either end may be hostile to the other.
type wire struct {
	conn *net.UnixConn
	rmu  sync.Mutex
	wmu  sync.Mutex
}

func newWire(c *net.UnixConn) *wire { return &wire{conn: c} }

func (w *wire) Close() error { return w.conn.Close() }

func (w *wire) write(v any, files ...*os.File) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(body) > maxWireBytes {
		return fmt.Errorf("a message of %d bytes, the limit is %d: shorten arguments or environment", len(body), maxWireBytes)
	}
	var oob []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd())
		}
		oob = unix.UnixRights(fds...)
	}
	w.wmu.Lock()
	defer w.wmu.Unlock()
	head := binary.BigEndian.AppendUint32(nil, uint32(len(body)))
	n, _, err := w.conn.WriteMsgUnix(head, oob, nil)
	if err != nil {
		return err
	}
	_, err = w.conn.Write(append(head[n:], body...))
	return err
}

// read fills v. It returns the descriptors that came along, never more than maxFiles.
func (w *wire) read(v any, maxFiles int) ([]*os.File, error) {
	w.rmu.Lock()
	defer w.rmu.Unlock()
	var head [4]byte
	oob := make([]byte, unix.CmsgSpace(4*max(maxFiles, 1)))
	n, oobn, flags, _, err := w.conn.ReadMsgUnix(head[:], oob)
	if err != nil {
		return nil, err
	}
	if n == 0 {
		return nil, io.EOF
	}
	files, err := receivedFiles(oob[:oobn])
	if err != nil {
		return nil, err
	}
	if flags&unix.MSG_CTRUNC != 0 || len(files) > maxFiles {
		closeAll(files)
		return nil, fmt.Errorf("more than %d descriptors", maxFiles)
	}
	if err := w.body(head[:], n, v); err != nil {
		closeAll(files)
		return nil, err
	}
	return files, nil
}

func (w *wire) body(head []byte, have int, v any) error {
	if _, err := io.ReadFull(w.conn, head[have:]); err != nil {
		return err
	}
	size := binary.BigEndian.Uint32(head)
	if size > maxWireBytes {
		return fmt.Errorf("a message of %d bytes, the limit is %d", size, maxWireBytes)
	}
	// Grows as bytes arrive, so that a length alone costs nothing.
	var buf bytes.Buffer
	if _, err := io.CopyN(&buf, w.conn, int64(size)); err != nil {
		return err
	}
	dec := json.NewDecoder(&buf)
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return fmt.Errorf("reading a message: %w", err)
	}
	if dec.More() {
		return errors.New("bytes behind a message")
	}
	return nil
}

func receivedFiles(oob []byte) ([]*os.File, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("reading descriptors: %w", err)
	}
	var files []*os.File
	for _, m := range msgs {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			continue
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "received"))
		}
	}
	return files, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// socketPair is a connected pair: one end for this process, one to give away.
func socketPair() (*net.UnixConn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("making a socket pair: %w", err)
	}
	far := os.NewFile(uintptr(fds[1]), "socketpair")
	near, err := connFromFile(os.NewFile(uintptr(fds[0]), "socketpair"))
	if err != nil {
		far.Close()
		return nil, nil, err
	}
	return near, far, nil
}

// connFromFile takes the descriptor over.
func connFromFile(f *os.File) (*net.UnixConn, error) {
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("using the inherited socket: %w", err)
	}
	uc, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, errors.New("the inherited descriptor is no Unix socket")
	}
	return uc, nil
}
