package sftp

import (
	"encoding/binary"
	"strings"
)

// status is an SSH_FXP_STATUS.
type status struct {
	code uint32
	text string
}

// name is what a status is called in records.
func (s status) name() string {
	switch s.code {
	case fxOK:
		return "ok"
	case fxEOF:
		return "eof"
	case fxNoSuchFile:
		return "no such file"
	case fxPermissionDenied:
		return "not permitted"
	case fxOpUnsupported:
		return "unsupported"
	}
	return "failure"
}

func (s status) encode(id uint32) []byte {
	return seal(appendText(appendText(binary.BigEndian.AppendUint32(begin(fxpStatus, id), s.code), s.text), ""))
}

// entry is one name of an SSH_FXP_NAME.
type entry struct {
	name, long string
	attrs      attrs
}

// reply is one answer of the target, of one of the kinds that its request may have.
type reply struct {
	kind   byte
	status status
	handle string
	data   []byte // in the buffer that it was read into, or a copy
	names  []entry
	attrs  attrs
	values []uint64 // of statvfs and limits
}

// answerTo is the kind of a request's answer beside a status.
func (r request) answerTo() byte {
	switch r.kind {
	case fxpOpen, fxpOpendir:
		return fxpHandle
	case fxpRead:
		return fxpData
	case fxpReaddir, fxpRealpath, fxpReadlink:
		return fxpName
	case fxpStat, fxpLstat, fxpFstat:
		return fxpAttrs
	case fxpExtended:
		switch r.extension {
		case extStatvfs, extFstatvfs, extLimits:
			return fxpExtendedReply
		case extExpandPath:
			return fxpName
		}
	}
	return fxpStatus
}

// parseReply reads the target's answer to a request, behind its id.
func parseReply(to request, kind byte, body []byte) (reply, error) {
	c := cursor{b: body}
	out := reply{kind: kind}
	want := to.answerTo()
	switch {
	case kind == fxpStatus:
		out.status.code = c.u32()
		if len(c.b) > 0 { // old servers say nothing more
			out.status.text = printable(c.text(maxMessage))
			c.bytes(maxName)
		}
		if out.status.code > fxOpUnsupported || out.status.code == fxOK && want != fxpStatus {
			c.bad = true
		}
	case kind != want:
		return out, malformedf("an answer of the kind %d to a request of the kind %d", kind, to.kind)
	case kind == fxpHandle:
		out.handle = c.text(maxHandle)
		c.bad = c.bad || out.handle == ""
	case kind == fxpData:
		out.data = c.bytes(int(to.length))
	case kind == fxpAttrs:
		out.attrs = c.attrs()
	case kind == fxpName:
		out.parseNames(&c, to)
	case kind == fxpExtendedReply:
		n := 11
		if to.extension == extLimits {
			n = 4
		}
		for range n {
			out.values = append(out.values, c.u64())
		}
	}
	if !c.whole() {
		return out, malformedf("an answer of the kind %d can't be read, or holds more than was asked for", kind)
	}
	return out, nil
}

// parseNames takes one name where one is asked for. Those of a folder are single names: a client joins them to its path.
func (r *reply) parseNames(c *cursor, to request) {
	n := c.u32()
	listing := to.kind == fxpReaddir
	if !listing && n != 1 {
		c.bad = true
	}
	for i := uint32(0); i < n && !c.bad; i++ {
		e := entry{name: c.text(maxPath), long: c.text(maxLongName), attrs: c.attrs()}
		if strings.ContainsRune(e.name, 0) || listing && (e.name == "" || strings.ContainsRune(e.name, '/')) {
			c.bad = true
		}
		r.names = append(r.names, e)
	}
}

// encode writes the answer for the agent.
func (r reply) encode(id uint32) []byte {
	if r.kind == fxpStatus {
		return r.status.encode(id)
	}
	p := begin(r.kind, id)
	switch r.kind {
	case fxpHandle:
		p = appendText(p, r.handle)
	case fxpData:
		p = append(binary.BigEndian.AppendUint32(p, uint32(len(r.data))), r.data...)
	case fxpAttrs:
		p = appendAttrs(p, r.attrs)
	case fxpName:
		p = binary.BigEndian.AppendUint32(p, uint32(len(r.names)))
		for _, e := range r.names {
			p = appendAttrs(appendText(appendText(p, e.name), e.long), e.attrs)
		}
	case fxpExtendedReply:
		for _, v := range r.values {
			p = binary.BigEndian.AppendUint64(p, v)
		}
	}
	return seal(p)
}

// parseVersion reads the target's first packet: what it speaks, and which of the known extensions.
func parseVersion(kind byte, body []byte) (map[string]bool, error) {
	c := cursor{b: body}
	if version := c.u32(); kind != fxpVersion || c.bad || version != protocolVersion {
		return nil, malformedf("it doesn't speak version %d of SFTP", protocolVersion)
	}
	known := map[string]bool{}
	for n := 0; !c.bad && len(c.b) > 0; n++ {
		if name, version := c.text(maxName), c.text(maxMessage); knownExtension(name, version) {
			known[name] = true
		}
		if n >= maxPairs {
			c.bad = true
		}
	}
	if !c.whole() {
		return nil, malformedf("the packet that begins the session can't be read")
	}
	return known, nil
}

func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 || r >= 0x7f && r <= 0x9f || r == 0xfffd {
			return '?'
		}
		return r
	}, s)
}
