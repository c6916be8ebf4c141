package postgres

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// Request codes in the place of a protocol version, and the version that we speak.
const (
	protocol30    = 3 << 16
	codeCancel    = 80877102
	codeSSL       = 80877103
	codeGSSENC    = 80877104
	maxStartup    = 10000 // as PostgreSQL's MAX_STARTUP_PACKET_LENGTH
	maxCredential = 64 << 10
	tlsRecord     = 0x16 // first byte of a TLS handshake: libpq's sslnegotiation=direct
)

// packet is what comes before the first typed message.
type packet struct {
	code uint32
	body []byte
	// direct is set instead, to the bytes read so far, when TLS starts without an SSLRequest.
	direct []byte
}

// readPacket reads one startup packet and not one byte more, so that nothing is carried across the
// switch to TLS (CVE-2021-23222).
func readPacket(r io.Reader) (*packet, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	if head[0] == tlsRecord {
		return &packet{direct: head[:]}, nil
	}
	n := binary.BigEndian.Uint32(head[:])
	if n < 8 || n > maxStartup {
		return nil, protocolError("the startup packet says it has %d bytes; 8 to %d are accepted", n, maxStartup)
	}
	b := make([]byte, n-4)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, unexpected(err)
	}
	p := &packet{code: binary.BigEndian.Uint32(b), body: b[4:]}
	if (p.code == codeSSL || p.code == codeGSSENC) && len(p.body) > 0 {
		return nil, protocolError("an encryption request carries %d bytes too many", len(p.body))
	}
	return p, nil
}

// cancelKey is what BackendKeyData gave to a session.
type cancelKey struct {
	pid    uint32
	secret uint32
}

func (p *packet) cancel() (cancelKey, error) {
	if len(p.body) != 8 {
		return cancelKey{}, protocolError("a CancelRequest of protocol 3.0 has 8 bytes of key, not %d", len(p.body))
	}
	return cancelKey{pid: binary.BigEndian.Uint32(p.body), secret: binary.BigEndian.Uint32(p.body[4:])}, nil
}

// startup is what the agent asked for at the start.
type startup struct {
	minor    int
	user     string
	database string
	// settings are run-time parameters, names in lower case, that may be passed on.
	settings map[string]string
	// application is the agent's own application_name, for the record only.
	application string
	// replication is refused after authentication, so that it is on record.
	replication bool
	// unknown lists the _pq_. options, which we don't know.
	unknown []string
}

func (s *startup) negotiate() bool { return s.minor > 0 || len(s.unknown) > 0 }

// parseStartup reads a StartupMessage. A setting that would change what later SQL means is refused.
func parseStartup(p *packet) (*startup, error) {
	if major := p.code >> 16; major != 3 {
		return nil, &fault{code: "0A000", message: fmt.Sprintf("protocol %d.%d is not spoken here", major, p.code&0xffff), hint: "Use a client that speaks PostgreSQL's protocol 3."}
	}
	s := &startup{minor: int(p.code & 0xffff), settings: map[string]string{}}
	b := parts{b: p.body}
	seen := map[string]bool{}
	for {
		name := b.cstring()
		if b.bad {
			return nil, protocolError("the startup packet isn't a list of names and values")
		}
		if name == "" {
			break
		}
		value := b.cstring()
		if b.bad || !utf8.ValidString(name) || !utf8.ValidString(value) {
			return nil, protocolError("a startup parameter is cut off or not UTF-8")
		}
		key := strings.ToLower(name)
		if strings.HasPrefix(key, "_pq_.") {
			key = name
		}
		if seen[key] {
			return nil, protocolError("startup parameter %q is there twice", clip(name, 64))
		}
		seen[key] = true
		if err := s.take(key, value); err != nil {
			return nil, err
		}
	}
	if !b.done() {
		return nil, protocolError("the startup packet goes on after its end")
	}
	return s, nil
}

func (s *startup) take(key, value string) error {
	switch {
	case strings.HasPrefix(key, "_pq_."):
		s.unknown = append(s.unknown, key)
	case key == "user":
		s.user = value
	case key == "database":
		s.database = value
	case key == "application_name":
		s.application = value
	case key == "replication":
		on, known := parseBool(value)
		s.replication = !known || on
	case key == "options":
		return s.options(value)
	default:
		return s.setting(key, value)
	}
	return nil
}

// options accepts the two spellings of a setting that libpq documents, and nothing else.
func (s *startup) options(value string) error {
	words := strings.Fields(value)
	for i := 0; i < len(words); i++ {
		w := words[i]
		var pair string
		switch {
		case w == "-c" && i+1 < len(words):
			i++
			pair = words[i]
		case strings.HasPrefix(w, "-c"):
			pair = w[2:]
		case strings.HasPrefix(w, "--"):
			pair = strings.ReplaceAll(w[2:], "-", "_")
		}
		name, val, ok := strings.Cut(pair, "=")
		if !ok || name == "" || strings.ContainsAny(pair, `\'"`) {
			return &fault{code: "0A000", message: fmt.Sprintf("startup option %q isn't accepted", clip(w, 64)), hint: "Only -c name=value with a harmless setting is."}
		}
		if err := s.setting(strings.ToLower(name), val); err != nil {
			return err
		}
	}
	return nil
}

func (s *startup) setting(key, value string) error {
	if key == "application_name" {
		s.application = value
		return nil
	}
	if isPinned(key) {
		// SQL_ASCII asks for bytes without conversion, as libpq does on a terminal without a locale. It gets
		// UTF-8, and the status says so.
		if pinnedSame(key, value) || key == "client_encoding" && strings.EqualFold(value, "SQL_ASCII") {
			return nil
		}
		return &fault{code: "42501", message: fmt.Sprintf("%q is pinned at this proxy and can't be set", clip(key, 64)), hint: "Connect without it; use qualified names where search_path would matter."}
	}
	if !isHarmlessSetting(key) {
		return &fault{code: "42501", message: fmt.Sprintf("%q can't be set at connect", clip(key, 64)), hint: "Connect without it, and SET it afterwards if a policy allows that."}
	}
	if old, ok := s.settings[key]; ok && old != value {
		return protocolError("setting %q is there twice", clip(key, 64))
	}
	if len(value) > 256 {
		return protocolError("the value of %q is too long", clip(key, 64))
	}
	s.settings[key] = value
	return nil
}

// parsePassword reads the body of a PasswordMessage.
func parsePassword(body []byte) (string, error) {
	p := parts{b: body}
	s := p.cstring()
	if !p.done() {
		return "", protocolError("the password message isn't one string")
	}
	return s, nil
}

func parseBool(s string) (value, ok bool) {
	switch strings.ToLower(s) {
	case "true", "on", "yes", "1", "t", "y":
		return true, true
	case "false", "off", "no", "0", "f", "n", "":
		return false, true
	}
	return false, false
}

func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "…"
}

// isEOF says that the peer went away, as peers do.
func isEOF(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}
