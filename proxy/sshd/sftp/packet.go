package sftp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Bounds of what either side may send.
const (
	// maxPacket is what may follow a packet's length, as at OpenSSH (SFTP_MAX_MSG_LENGTH).
	maxPacket = 256 << 10
	// maxTransfer is the most that one request reads or writes, as at OpenSSH.
	maxTransfer = maxPacket - 1024
	maxHandle   = 256
	maxPath     = 4096
	maxName     = 255     // of an extension
	maxMessage  = 4 << 10 // of a status
	maxLongName = 8 << 10 // of a line of a listing
	maxPairs    = 64      // of extensions or attributes
)

// Kinds of packets.
const (
	fxpInit          = 1
	fxpVersion       = 2
	fxpOpen          = 3
	fxpClose         = 4
	fxpRead          = 5
	fxpWrite         = 6
	fxpLstat         = 7
	fxpFstat         = 8
	fxpSetstat       = 9
	fxpFsetstat      = 10
	fxpOpendir       = 11
	fxpReaddir       = 12
	fxpRemove        = 13
	fxpMkdir         = 14
	fxpRmdir         = 15
	fxpRealpath      = 16
	fxpStat          = 17
	fxpRename        = 18
	fxpReadlink      = 19
	fxpSymlink       = 20
	fxpStatus        = 101
	fxpHandle        = 102
	fxpData          = 103
	fxpName          = 104
	fxpAttrs         = 105
	fxpExtended      = 200
	fxpExtendedReply = 201
)

// Codes of SSH_FXP_STATUS.
const (
	fxOK               = 0
	fxEOF              = 1
	fxNoSuchFile       = 2
	fxPermissionDenied = 3
	fxFailure          = 4
	fxBadMessage       = 5
	fxOpUnsupported    = 8
)

const protocolVersion = 3

// malformed says that a peer's packet isn't one.
type malformed struct{ what string }

func (m *malformed) Error() string { return m.what }

func malformedf(format string, args ...any) error { return &malformed{fmt.Sprintf(format, args...)} }

// readPacket reads one packet into buf, which grows as needed. The error is io.EOF between packets only.
func readPacket(r io.Reader, buf *[]byte) (kind byte, body []byte, err error) {
	var head [5]byte
	if n, err := io.ReadFull(r, head[:]); err != nil {
		if n > 0 && errors.Is(err, io.ErrUnexpectedEOF) {
			return 0, nil, malformedf("it ends in the middle of a packet")
		}
		return 0, nil, err
	}
	length := binary.BigEndian.Uint32(head[:4])
	if length < 1 || length > maxPacket {
		return 0, nil, malformedf("a packet of %d bytes; 1 to %d are taken", length, maxPacket)
	}
	n := int(length) - 1
	if cap(*buf) < n {
		*buf = make([]byte, max(n, 4<<10))
	}
	body = (*buf)[:n]
	if _, err := io.ReadFull(r, body); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
			return 0, nil, malformedf("it ends in the middle of a packet")
		}
		return 0, nil, err
	}
	return head[4], body, nil
}

// cursor takes values off a packet. What isn't there makes it bad, and everything behind it zero.
type cursor struct {
	b   []byte
	bad bool
}

func (c *cursor) take(n int) []byte {
	if c.bad || n > len(c.b) {
		c.bad = true
		return nil
	}
	out := c.b[:n]
	c.b = c.b[n:]
	return out
}

func (c *cursor) u32() uint32 {
	if b := c.take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (c *cursor) u64() uint64 {
	if b := c.take(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

func (c *cursor) bytes(most int) []byte {
	n := c.u32()
	if c.bad || uint64(n) > uint64(most) {
		c.bad = true
		return nil
	}
	return c.take(int(n))
}

func (c *cursor) text(most int) string { return string(c.bytes(most)) }

// whole says whether everything was there, and nothing else.
func (c *cursor) whole() bool { return !c.bad && len(c.b) == 0 }

// begin begins a packet; seal puts in its length.
func begin(kind byte, id uint32) []byte {
	return binary.BigEndian.AppendUint32(append(make([]byte, 4, 64), kind), id)
}

func seal(p []byte) []byte {
	binary.BigEndian.PutUint32(p, uint32(len(p)-4))
	return p
}

func appendText(p []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint32(p, uint32(len(s))), s...)
}
