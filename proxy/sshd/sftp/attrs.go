package sftp

import "encoding/binary"

// Flags of attributes.
const (
	attrSize        = 0x00000001
	attrOwner       = 0x00000002
	attrPermissions = 0x00000004
	attrTimes       = 0x00000008
	attrExtended    = 0x80000000
)

// plainPermissions are those that make a file nobody else.
const plainPermissions = 0o777

const (
	modeType = 0o170000
	modeLink = 0o120000
)

// attrs are a file's attributes, or those that are to be set.
type attrs struct {
	flags                              uint32
	size                               uint64
	uid, gid, permissions, read, write uint32
}

func (c *cursor) attrs() attrs {
	a := attrs{flags: c.u32()}
	if a.flags&attrSize != 0 {
		a.size = c.u64()
	}
	if a.flags&attrOwner != 0 {
		a.uid, a.gid = c.u32(), c.u32()
	}
	if a.flags&attrPermissions != 0 {
		a.permissions = c.u32()
	}
	if a.flags&attrTimes != 0 {
		a.read, a.write = c.u32(), c.u32()
	}
	if a.flags&attrExtended != 0 {
		n := c.u32()
		if n > maxPairs {
			c.bad = true
		}
		for i := uint32(0); i < n && !c.bad; i++ {
			c.bytes(maxName)
			c.bytes(maxMessage)
		}
	}
	if a.flags&^(attrSize|attrOwner|attrPermissions|attrTimes|attrExtended) != 0 {
		c.bad = true
	}
	a.flags &^= attrExtended // nobody here knows what they mean
	return a
}

func appendAttrs(p []byte, a attrs) []byte {
	p = binary.BigEndian.AppendUint32(p, a.flags)
	if a.flags&attrSize != 0 {
		p = binary.BigEndian.AppendUint64(p, a.size)
	}
	if a.flags&attrOwner != 0 {
		p = binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(p, a.uid), a.gid)
	}
	if a.flags&attrPermissions != 0 {
		p = binary.BigEndian.AppendUint32(p, a.permissions)
	}
	if a.flags&attrTimes != 0 {
		p = binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(p, a.read), a.write)
	}
	return p
}
