package client

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// The PostgreSQL frontend/backend protocol, as far as a relay needs it: the packets before and during
// authentication. What follows is relayed without a look.

const (
	maxStartupBytes = 10000    // as PostgreSQL itself (MAX_STARTUP_PACKET_LENGTH)
	maxAuthBytes    = 64 << 10 // one message of the server before ReadyForQuery
	maxCancelKey    = 256      // protocol 3.2

	codeSSL    = 80877103
	codeGSSENC = 80877104
	codeCancel = 80877102

	// placeholderUser stands where libpq demands a user name and the run names none. The relay takes it
	// out of the startup packet, so that the target decides.
	placeholderUser = "deputy"
)

type startupKind int

const (
	startupSession startupKind = iota
	startupCancel
	startupNegotiate // SSLRequest or GSSENCRequest
)

// readStartupPacket reads one packet of a connection's first phase, length included.
func readStartupPacket(r io.Reader) ([]byte, startupKind, error) {
	var head [8]byte
	if _, err := io.ReadFull(r, head[:4]); err != nil {
		return nil, 0, err
	}
	n := binary.BigEndian.Uint32(head[:4])
	if n < 8 || n > maxStartupBytes {
		return nil, 0, fmt.Errorf("the first packet claims %d bytes, want 8 to %d: is this a PostgreSQL client, without direct TLS?", n, maxStartupBytes)
	}
	if _, err := io.ReadFull(r, head[4:]); err != nil {
		return nil, 0, err
	}
	code := binary.BigEndian.Uint32(head[4:])
	switch code {
	case codeSSL, codeGSSENC:
		if n != 8 {
			return nil, 0, fmt.Errorf("an encryption request of %d bytes", n)
		}
		return head[:], startupNegotiate, nil
	case codeCancel:
		if n < 16 || n > 12+maxCancelKey {
			return nil, 0, fmt.Errorf("a cancel request of %d bytes", n)
		}
	default:
		if code>>16 != 3 {
			return nil, 0, fmt.Errorf("protocol %d.%d isn't supported, want 3.x", code>>16, code&0xffff)
		}
	}
	packet := make([]byte, n)
	copy(packet, head[:])
	if _, err := io.ReadFull(r, packet[8:]); err != nil {
		return nil, 0, err
	}
	if code == codeCancel {
		return packet, startupCancel, nil
	}
	return packet, startupSession, nil
}

// fillStartup takes the placeholder user (and the database that libpq names after it) out of a startup
// packet, and puts the target's own in where the client names none. Everything else, duplicates too, is
// left for the proxy to judge.
func fillStartup(packet []byte, database, user string) ([]byte, error) {
	out := append(make([]byte, 0, len(packet)+64), packet[:8]...)
	haveUser, haveDatabase, placeholder := false, false, false
	type pair struct{ k, v []byte }
	var pairs []pair
	for rest := packet[8:]; ; {
		k, r, ok := bytes.Cut(rest, []byte{0})
		if !ok {
			return nil, errors.New("the startup packet isn't terminated")
		}
		if len(k) == 0 {
			if len(r) != 0 {
				return nil, errors.New("bytes behind the end of the startup packet")
			}
			break
		}
		v, r, ok := bytes.Cut(r, []byte{0})
		if !ok {
			return nil, fmt.Errorf("startup parameter %q has no value", printable(string(k)))
		}
		if string(k) == "user" && string(v) == placeholderUser && user == "" {
			placeholder = true
		}
		pairs = append(pairs, pair{k, v})
		rest = r
	}
	for _, p := range pairs {
		switch string(p.k) {
		case "user":
			if placeholder && string(p.v) == placeholderUser {
				continue
			}
			haveUser = true
		case "database":
			if placeholder && string(p.v) == placeholderUser {
				continue
			}
			haveDatabase = true
		}
		out = appendPair(out, p.k, p.v)
	}
	if !haveUser && user != "" {
		out = appendPair(out, []byte("user"), []byte(user))
	}
	if !haveDatabase && database != "" {
		out = appendPair(out, []byte("database"), []byte(database))
	}
	out = append(out, 0)
	if len(out) > maxStartupBytes {
		return nil, fmt.Errorf("the startup packet is longer than %d bytes", maxStartupBytes)
	}
	binary.BigEndian.PutUint32(out, uint32(len(out)))
	return out, nil
}

func appendPair(b, k, v []byte) []byte {
	b = append(append(b, k...), 0)
	return append(append(b, v...), 0)
}

// readMessage reads one typed message, header included.
func readMessage(r io.Reader, limit int) ([]byte, error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[1:])
	if n < 4 || int64(n) > int64(limit) {
		return nil, fmt.Errorf("message %q claims %d bytes, the limit is %d", head[0], n, limit)
	}
	msg := make([]byte, 1+n)
	copy(msg, head[:])
	_, err := io.ReadFull(r, msg[5:])
	return msg, err
}

func message(kind byte, body []byte) []byte {
	b := append(make([]byte, 0, 5+len(body)), kind)
	b = binary.BigEndian.AppendUint32(b, uint32(4+len(body)))
	return append(b, body...)
}

func passwordMessage(password string) []byte { return message('p', append([]byte(password), 0)) }

// fatal is an ErrorResponse that ends the connection.
func fatal(sqlstate, text, hint string) []byte {
	var b []byte
	field := func(k byte, v string) {
		if v != "" {
			b = append(append(append(b, k), v...), 0)
		}
	}
	field('S', "FATAL")
	field('V', "FATAL")
	field('C', sqlstate)
	field('M', printable(text))
	field('H', printable(hint))
	return message('E', append(b, 0))
}

// parameterStatus splits an S message.
func parameterStatus(msg []byte) (name, value string, ok bool) {
	k, rest, ok := bytes.Cut(msg[5:], []byte{0})
	if !ok {
		return "", "", false
	}
	v, rest, ok := bytes.Cut(rest, []byte{0})
	return string(k), string(v), ok && len(rest) == 0
}
