package sftp

import (
	"encoding/binary"
)

// Flags of SSH_FXP_OPEN.
const (
	openRead     = 0x01
	openWrite    = 0x02
	openAppend   = 0x04
	openCreate   = 0x08
	openTruncate = 0x10
	openNew      = 0x20 // SSH_FXF_EXCL
)

// The extensions that are known here, with the version that is.
const (
	extPosixRename = "posix-rename@openssh.com"
	extHardlink    = "hardlink@openssh.com"
	extStatvfs     = "statvfs@openssh.com"
	extFstatvfs    = "fstatvfs@openssh.com"
	extFsync       = "fsync@openssh.com"
	extLsetstat    = "lsetstat@openssh.com"
	extLimits      = "limits@openssh.com"
	extExpandPath  = "expand-path@openssh.com"
)

func knownExtension(name, version string) bool {
	switch name {
	case extPosixRename, extHardlink, extFsync, extLsetstat, extLimits, extExpandPath:
		return version == "1"
	case extStatvfs, extFstatvfs:
		return version == "2"
	}
	return false
}

// request is one request of the agent. data lies in the buffer that it was read into.
type request struct {
	kind      byte
	id        uint32
	extension string // where kind is fxpExtended
	path, to  string
	handle    string
	flags     uint32
	attrs     attrs
	offset    uint64
	length    uint32
	data      []byte
}

// parseInit takes the version that the agent speaks. What it says of its own extensions is read, and not used.
func parseInit(kind byte, body []byte) (version uint32, err error) {
	if kind != fxpInit {
		return 0, malformedf("the first packet is of the kind %d and doesn't begin a session", kind)
	}
	c := cursor{b: body}
	version = c.u32()
	for n := 0; !c.bad && len(c.b) > 0; n++ {
		c.bytes(maxName)
		c.bytes(maxMessage)
		if n >= maxPairs {
			c.bad = true
		}
	}
	if !c.whole() {
		return 0, malformedf("the packet that begins the session can't be read")
	}
	return version, nil
}

// parseRequest reads a packet behind the first.
func parseRequest(kind byte, body []byte) (request, error) {
	c := cursor{b: body}
	r := request{kind: kind, id: c.u32()}
	switch kind {
	case fxpOpen:
		r.path, r.flags, r.attrs = c.text(maxPath), c.u32(), c.attrs()
		if r.flags&^(openRead|openWrite|openAppend|openCreate|openTruncate|openNew) != 0 {
			c.bad = true
		}
	case fxpClose, fxpFstat, fxpReaddir:
		r.handle = c.text(maxHandle)
	case fxpRead:
		r.handle, r.offset, r.length = c.text(maxHandle), c.u64(), c.u32()
	case fxpWrite:
		r.handle, r.offset, r.data = c.text(maxHandle), c.u64(), c.bytes(maxTransfer)
	case fxpFsetstat:
		r.handle, r.attrs = c.text(maxHandle), c.attrs()
	case fxpSetstat, fxpMkdir:
		r.path, r.attrs = c.text(maxPath), c.attrs()
	case fxpLstat, fxpStat, fxpOpendir, fxpRemove, fxpRmdir, fxpRealpath, fxpReadlink:
		r.path = c.text(maxPath)
	case fxpRename, fxpSymlink:
		// OpenSSH's order for a link is that of symlink(2): what it holds, then where it stands.
		r.path, r.to = c.text(maxPath), c.text(maxPath)
	case fxpExtended:
		r.extension = c.text(maxName)
		r.parseExtension(&c)
	default:
		return r, malformedf("a packet of the kind %d, which is no request", kind)
	}
	if !c.whole() {
		return r, malformedf("a packet of the kind %d can't be read, or holds more than it may", kind)
	}
	return r, nil
}

func (r *request) parseExtension(c *cursor) {
	switch r.extension {
	case extPosixRename, extHardlink:
		r.path, r.to = c.text(maxPath), c.text(maxPath)
	case extStatvfs, extExpandPath:
		r.path = c.text(maxPath)
	case extFstatvfs, extFsync:
		r.handle = c.text(maxHandle)
	case extLsetstat:
		r.path, r.attrs = c.text(maxPath), c.attrs()
	case extLimits:
	default:
		c.b = nil // answered as not supported, whatever it holds
	}
}

// encode writes the request for the target.
func (r request) encode(id uint32) []byte {
	p := begin(r.kind, id)
	switch r.kind {
	case fxpOpen:
		p = appendAttrs(binary.BigEndian.AppendUint32(appendText(p, r.path), r.flags), r.attrs)
	case fxpClose, fxpFstat, fxpReaddir:
		p = appendText(p, r.handle)
	case fxpRead:
		p = binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint64(appendText(p, r.handle), r.offset), r.length)
	case fxpWrite:
		p = binary.BigEndian.AppendUint64(appendText(p, r.handle), r.offset)
		p = append(binary.BigEndian.AppendUint32(p, uint32(len(r.data))), r.data...)
	case fxpFsetstat:
		p = appendAttrs(appendText(p, r.handle), r.attrs)
	case fxpSetstat, fxpMkdir:
		p = appendAttrs(appendText(p, r.path), r.attrs)
	case fxpLstat, fxpStat, fxpOpendir, fxpRemove, fxpRmdir, fxpRealpath, fxpReadlink:
		p = appendText(p, r.path)
	case fxpRename, fxpSymlink:
		p = appendText(appendText(p, r.path), r.to)
	case fxpExtended:
		p = appendText(p, r.extension)
		switch r.extension {
		case extPosixRename, extHardlink:
			p = appendText(appendText(p, r.path), r.to)
		case extStatvfs, extExpandPath:
			p = appendText(p, r.path)
		case extFstatvfs, extFsync:
			p = appendText(p, r.handle)
		case extLsetstat:
			p = appendAttrs(appendText(p, r.path), r.attrs)
		}
	}
	return seal(p)
}
