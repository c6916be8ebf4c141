package sftp

import "bytes"

// Again reads a packet of an agent as Serve does, and writes it as the target would get it under the same id.
func Again(packet []byte) ([]byte, error) {
	var buf []byte
	kind, body, err := readPacket(bytes.NewReader(packet), &buf)
	if err != nil {
		return nil, err
	}
	r, err := parseRequest(kind, body)
	if err != nil {
		return nil, err
	}
	return r.encode(r.id), nil
}

// AgainReply does the same with an answer of the target to a request.
func AgainReply(request, packet []byte) ([]byte, error) {
	var buf []byte
	kind, body, err := readPacket(bytes.NewReader(request), &buf)
	if err != nil {
		return nil, err
	}
	r, err := parseRequest(kind, body)
	if err != nil {
		return nil, err
	}
	if kind, body, err = readPacket(bytes.NewReader(packet), &buf); err != nil {
		return nil, err
	}
	c := cursor{b: body}
	id := c.u32()
	rep, err := parseReply(r, kind, c.b)
	if err != nil || c.bad {
		return nil, malformedf("%v", err)
	}
	return rep.encode(id), nil
}
