package client_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"

	"github.com/deputymesh/deputy/client"
	"github.com/deputymesh/deputy/internal/testca"
)

// pgProxy is a scripted proxy: it records what it gets, and speaks the first lines of the protocol.
type pgProxy struct {
	ca   *testca.CA
	addr string
	// tls is the answer to SSLRequest.
	tls byte
	// hello is sent after the startup packet, then after the password.
	hello, welcome []byte

	mu       sync.Mutex
	startups [][]byte
	password string
}

func msg(kind byte, body ...byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{kind}, uint32(4+len(body))), body...)
}

var (
	askPassword = msg('R', 0, 0, 0, 3)
	authOK      = msg('R', 0, 0, 0, 0)
	ready       = msg('Z', 'I')
)

func parameter(k, v string) []byte { return msg('S', []byte(k+"\x00"+v+"\x00")...) }

func startPGProxy(t *testing.T, ca *testca.CA, path string, p *pgProxy) *pgProxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p.ca, p.addr = ca, l.Addr().String()
	if p.tls == 0 {
		p.tls = 'S'
	}
	if p.hello == nil {
		p.hello = askPassword
	}
	if p.welcome == nil {
		p.welcome = bytes.Join([][]byte{authOK, parameter("server_version", "15"), ready}, nil)
	}
	cfg := tlsconfig.MTLSServerConfig(ca.SVID(ca.ID(path)), ca.Bundle(), tlsconfig.AuthorizeMemberOf(ca.TrustDomain()))
	cfg.MinVersion = tls.VersionTLS13
	var conns sync.WaitGroup
	t.Cleanup(func() { l.Close(); conns.Wait() })
	conns.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns.Go(func() {
				defer c.Close()
				c.SetDeadline(time.Now().Add(10 * time.Second))
				p.serve(c, cfg)
			})
		}
	})
	return p
}

func (p *pgProxy) serve(raw net.Conn, cfg *tls.Config) {
	request := make([]byte, 8)
	if _, err := io.ReadFull(raw, request); err != nil {
		return
	}
	raw.Write([]byte{p.tls})
	c := tls.Server(raw, cfg)
	head := make([]byte, 4)
	if _, err := io.ReadFull(c, head); err != nil {
		return
	}
	packet := make([]byte, binary.BigEndian.Uint32(head))
	copy(packet, head)
	if _, err := io.ReadFull(c, packet[4:]); err != nil {
		return
	}
	p.mu.Lock()
	p.startups = append(p.startups, packet)
	p.mu.Unlock()
	if binary.BigEndian.Uint32(packet[4:]) == 80877102 {
		return
	}
	c.Write(p.hello)
	m := make([]byte, 5)
	if _, err := io.ReadFull(c, m); err != nil {
		return
	}
	body := make([]byte, binary.BigEndian.Uint32(m[1:])-4)
	if _, err := io.ReadFull(c, body); err != nil {
		return
	}
	p.mu.Lock()
	p.password = strings.TrimSuffix(string(body), "\x00")
	p.mu.Unlock()
	c.Write(p.welcome)
	io.Copy(c, c) // from here on an echo
}

func (p *pgProxy) got(t *testing.T) (startup map[string]string, password string) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.startups) == 0 {
		t.Fatal("the proxy got no startup packet")
	}
	startup = map[string]string{}
	f := bytes.Split(bytes.TrimSuffix(p.startups[len(p.startups)-1][8:], []byte("\x00\x00")), []byte{0})
	for i := 0; i+1 < len(f); i += 2 {
		startup[string(f[i])] = string(f[i+1])
	}
	return startup, p.password
}

type relayEnv struct {
	ca    *testca.CA
	src   *source
	cred  client.Credential
	relay *client.PostgresRelay
}

func newRelay(t *testing.T, p *pgProxy, path string) *relayEnv {
	t.Helper()
	ca := testca.New(t, "corp.test")
	e := &relayEnv{ca: ca, src: newSource(ca, agentPath("planner"))}
	mesh := broker(t, ca, "/deputy/broker", func(w http.ResponseWriter, _ *http.Request) { token(w, "t", 300) })
	ex := exchanger(t, mesh, e.src, chainFor(t, ca, e.src.at.ID), nil)
	var err error
	if e.cred, err = ex.Credential(t.Context(), "orders-db", nil); err != nil {
		t.Fatal(err)
	}
	startPGProxy(t, ca, path, p)
	e.relay = &client.PostgresRelay{
		Target: client.Target{Name: "orders-db", Kind: "postgres", Address: p.addr, Proxy: ca.ID("/deputy/proxy/db")},
		Source: e.src,
		Credential: func(ctx context.Context) (client.Credential, error) {
			return e.cred, nil
		},
	}
	return e
}

// serve gives the client's end of a connection to the relay.
func (e *relayEnv) serve(t *testing.T) (net.Conn, <-chan error) {
	t.Helper()
	near, far := net.Pipe()
	done := make(chan error, 1)
	go func() { done <- e.relay.Serve(t.Context(), far) }()
	near.SetDeadline(time.Now().Add(10 * time.Second))
	t.Cleanup(func() { near.Close() })
	return near, done
}

func startup(params ...string) []byte {
	b := binary.BigEndian.AppendUint32(nil, 0)
	b = binary.BigEndian.AppendUint32(b, 3<<16)
	for _, p := range params {
		b = append(append(b, p...), 0)
	}
	b = append(b, 0)
	binary.BigEndian.PutUint32(b, uint32(len(b)))
	return b
}

func read(t *testing.T, c net.Conn, n int) []byte {
	t.Helper()
	b := make([]byte, n)
	if got, err := io.ReadFull(c, b); err != nil {
		t.Fatalf("reading %d bytes: %v after %q", n, err, b[:got])
	}
	return b
}

func TestRelayAnswersForTheClient(t *testing.T) {
	for name, tt := range map[string]struct {
		user, database string
		send           []string
		want           map[string]string
	}{
		"as said":             {"", "", []string{"user", "bob", "database", "shop"}, map[string]string{"user": "bob", "database": "shop"}},
		"placeholder":         {"", "", []string{"user", "deputy", "database", "deputy", "application_name", "x"}, map[string]string{"application_name": "x"}},
		"placeholder with db": {"", "shop", []string{"user", "deputy"}, map[string]string{"database": "shop"}},
		"configured user":     {"app", "shop", nil, map[string]string{"user": "app", "database": "shop"}},
		"a user named deputy": {"deputy", "shop", []string{"user", "deputy"}, map[string]string{"user": "deputy", "database": "shop"}},
	} {
		t.Run(name, func(t *testing.T) {
			p := &pgProxy{}
			e := newRelay(t, p, "/deputy/proxy/db")
			e.relay.Target.User, e.relay.Target.Database = tt.user, tt.database
			c, _ := e.serve(t)
			for _, code := range []uint32{80877104, 80877103} { // GSSENCRequest, then SSLRequest, as libpq does
				c.Write(binary.BigEndian.AppendUint32([]byte{0, 0, 0, 8}, code))
				if got := read(t, c, 1); got[0] != 'N' {
					t.Fatalf("answered %q to an encryption request", got)
				}
			}
			c.Write(startup(tt.send...))
			if got := read(t, c, len(p.welcome)); !bytes.Equal(got, p.welcome) {
				t.Fatalf("got %q", got)
			}
			c.Write([]byte("anything at all"))
			if got := read(t, c, 15); string(got) != "anything at all" {
				t.Errorf("relayed %q", got)
			}
			params, password := p.got(t)
			if d := cmp.Diff(tt.want, params); d != "" {
				t.Errorf("startup (-want +got):\n%s", d)
			}
			if password != e.cred.Reveal() {
				t.Error("the proxy did not get the credential as the password")
			}
		})
	}
}

func TestRelayRefusals(t *testing.T) {
	for name, tt := range map[string]struct {
		proxy *pgProxy
		path  string
		send  []byte
		want  string
	}{
		"another proxy":        {path: "/deputy/proxy/other", send: startup("user", "a"), want: "unexpected ID"},
		"no TLS at the proxy":  {proxy: &pgProxy{tls: 'N'}, send: startup("user", "a"), want: "only TLS is spoken"},
		"MD5 asked for":        {proxy: &pgProxy{hello: msg('R', 0, 0, 0, 5, 1, 2, 3, 4)}, send: startup("user", "a"), want: "asks for authentication 5"},
		"SASL asked for":       {proxy: &pgProxy{hello: msg('R', 0, 0, 0, 10, 0)}, send: startup("user", "a"), want: "asks for authentication 10"},
		"password asked twice": {proxy: &pgProxy{welcome: askPassword}, send: startup("user", "a"), want: "want a password once"},
		"huge message":         {proxy: &pgProxy{hello: []byte{'R', 0x7f, 0xff, 0xff, 0xff}}, send: startup("user", "a"), want: "the limit is"},
		"direct TLS":           {send: []byte{0x16, 3, 1, 2, 0, 1, 0, 1}, want: "is this a PostgreSQL client"},
		"tiny packet":          {send: []byte{0, 0, 0, 4, 0, 0, 0, 0}, want: "want 8 to"},
		"protocol 2":           {send: []byte{0, 0, 0, 9, 0, 2, 0, 0, 0}, want: "isn't supported"},
		"not terminated":       {send: []byte{0, 0, 0, 9, 0, 3, 0, 0, 'x'}, want: "isn't terminated"},
		"trailing bytes":       {send: []byte{0, 0, 0, 10, 0, 3, 0, 0, 0, 'x'}, want: "bytes behind the end"},
	} {
		t.Run(name, func(t *testing.T) {
			if tt.path == "" {
				tt.path = "/deputy/proxy/db"
			}
			p := tt.proxy
			if p == nil {
				p = &pgProxy{}
			}
			e := newRelay(t, p, tt.path)
			c, done := e.serve(t)
			go c.Write(tt.send)
			out, _ := io.ReadAll(c)
			if !bytes.Contains(out, []byte("FATAL")) || !bytes.Contains(out, []byte(tt.want)) {
				t.Errorf("the client was told %q, want %q", out, tt.want)
			}
			err := <-done
			var pe *client.PostgresError
			if !errors.As(err, &pe) || pe.SQLState == "" {
				t.Errorf("error %v", err)
			}
			if bytes.Contains(out, []byte(e.cred.Reveal())) || strings.Contains(fmt.Sprint(err), e.cred.Reveal()) {
				t.Error("the credential was shown")
			}
		})
	}
}

func TestRelayAsksForItsOwnPassword(t *testing.T) {
	for _, tt := range []struct {
		give string
		ok   bool
	}{{"right", true}, {"wrong", false}, {"", false}, {"righ", false}} {
		t.Run(tt.give, func(t *testing.T) {
			p := &pgProxy{}
			e := newRelay(t, p, "/deputy/proxy/db")
			e.relay.Password = "right"
			c, _ := e.serve(t)
			go c.Write(startup("user", "a"))
			if got := read(t, c, len(askPassword)); !bytes.Equal(got, askPassword) {
				t.Fatalf("got %q", got)
			}
			go c.Write(msg('p', []byte(tt.give+"\x00")...))
			first := read(t, c, 1)
			if ok := first[0] == 'R'; ok != tt.ok {
				t.Errorf("password %q: answered %q", tt.give, first)
			}
			p.mu.Lock()
			defer p.mu.Unlock()
			if !tt.ok && len(p.startups) > 0 {
				t.Error("a client with a wrong password reached the proxy")
			}
		})
	}
}

func TestCancelGoesOverTLSWithTheSVID(t *testing.T) {
	p := &pgProxy{}
	e := newRelay(t, p, "/deputy/proxy/db")
	c, _ := e.serve(t)
	packet := binary.BigEndian.AppendUint32([]byte{0, 0, 0, 16}, 80877102)
	packet = append(packet, 0, 0, 0, 42, 1, 2, 3, 4)
	c.Write(packet)
	if rest, err := io.ReadAll(c); len(rest) != 0 || err != nil {
		t.Errorf("a cancel was answered: %q, %v", rest, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.startups) != 1 || !bytes.Equal(p.startups[0], packet) {
		t.Errorf("the proxy got %v", p.startups)
	}
}

func TestSessionIsRenewedBeforeItsCredentialEnds(t *testing.T) {
	p := &pgProxy{welcome: bytes.Join([][]byte{authOK, parameter("deputy.session", "s/1"), ready}, nil)}
	e := newRelay(t, p, "/deputy/proxy/db")
	type renewal struct{ path, body, peer string }
	renewals := make(chan renewal, 8)
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		renewals <- renewal{r.URL.EscapedPath(), string(b), r.TLS.PeerCertificates[0].URIs[0].String()}
	}))
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.Listener = tls.NewListener(srv.Listener, tlsconfig.MTLSServerConfig(e.ca.SVID(e.ca.ID("/deputy/proxy/db")), e.ca.Bundle(), tlsconfig.AuthorizeMemberOf(e.ca.TrustDomain())))
	srv.Start()
	t.Cleanup(srv.Close)
	e.relay.Target.RenewalURL = "https://" + srv.Listener.Addr().String()
	first := e.cred
	first.ExpiresAt = time.Now().Add(400 * time.Millisecond)
	second := e.cred
	var calls int
	e.relay.Credential = func(context.Context) (client.Credential, error) {
		if calls++; calls == 1 {
			return first, nil
		}
		return second, nil
	}
	c, _ := e.serve(t)
	go c.Write(startup("user", "a"))
	read(t, c, len(p.welcome))
	select {
	case r := <-renewals:
		if d := cmp.Diff(renewal{"/sessions/s%2F1/credential", second.Reveal(), e.src.at.ID.String()}, r, cmp.AllowUnexported(renewal{})); d != "" {
			t.Errorf("renewal (-want +got):\n%s", d)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("the session was not renewed")
	}
	c.Close()
}

func FuzzRelayStartup(f *testing.F) {
	f.Add(startup("user", "a", "database", "b"))
	f.Add([]byte{0, 0, 0, 8, 4, 210, 22, 47})
	f.Add([]byte{0, 0, 0, 16, 4, 210, 22, 46, 0, 0, 0, 1, 0, 0, 0, 2})
	f.Fuzz(func(t *testing.T, in []byte) {
		near, far := net.Pipe()
		done := make(chan error, 1)
		r := &client.PostgresRelay{Target: client.Target{Name: "x", Database: "d"}, Credential: func(context.Context) (client.Credential, error) {
			return client.Credential{}, errors.New("no")
		}, Source: newNoSource()}
		go func() { done <- r.Serve(t.Context(), far) }()
		go io.Copy(io.Discard, near)
		near.SetDeadline(time.Now().Add(2 * time.Second))
		near.Write(in)
		near.Close()
		<-done
	})
}
