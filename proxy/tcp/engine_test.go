package tcp_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/deputymesh/deputy/internal/target"
	"github.com/deputymesh/deputy/internal/testca"
	"github.com/deputymesh/deputy/policy"
	"github.com/deputymesh/deputy/proxy"
	"github.com/deputymesh/deputy/proxy/internal/hop"
	"github.com/deputymesh/deputy/proxy/internal/hop/hoptest"
	"github.com/deputymesh/deputy/proxy/internal/preface"
	"github.com/deputymesh/deputy/proxy/tcp"
)

const patience = 20 * time.Second

// ledger stands in for the core, as [hoptest.Ledger] does for engines of HTTP.
type ledger struct{ *hoptest.Ledger }

func (l ledger) Open(ctx context.Context, peer proxy.Peer, credential string, conn proxy.Connection) (tcp.Session, error) {
	s, err := l.Ledger.Open(ctx, peer, credential, conn)
	if err != nil {
		return nil, err
	}
	return session{s}, nil
}

type session struct{ hop.Session }

// Close returns when what hangs on the session's context has most likely had its turn.
func (s session) Close(reason, detail string) {
	s.Session.Close(reason, detail)
	for range 200 {
		turn := make(chan struct{})
		context.AfterFunc(s.Context(), func() { close(turn) })
		<-turn
	}
}

func (s session) Authorize(ctx context.Context, cmd proxy.Command) (tcp.Pass, error) {
	p, err := s.Session.Authorize(ctx, cmd)
	if err != nil {
		return nil, err
	}
	return p, nil
}

// rig is an engine in front of a service.
type rig struct {
	ledger
	t       *testing.T
	address string
	tls     *tls.Config // of the agent
	heard   chan net.Conn
	stop    func()
}

func newRig(t *testing.T, changes ...func(*tcp.Config)) *rig {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	r := &rig{ledger: ledger{hoptest.NewLedger()}, t: t, heard: make(chan net.Conn, 8)}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = c.SetDeadline(time.Now().Add(patience))
			r.heard <- c
		}
	}()
	ca := testca.New(t, "test.example")
	cfg := config(t, ca, r.ledger, l.Addr().String())
	for _, c := range changes {
		c(&cfg)
	}
	e, err := tcp.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	r.address, r.stop = hoptest.Serve(t, e)
	r.tls = hoptest.AgentTLS(ca, hoptest.Agent)
	r.tls.NextProtos = []string{preface.TCP}
	return r
}

func config(t *testing.T, ca *testca.CA, core tcp.Core, address string) tcp.Config {
	t.Helper()
	name, err := target.ParseName("billing")
	if err != nil {
		t.Fatal(err)
	}
	server := ca.SVID(ca.ID("/deputy/proxy/main"), testca.Hosts("localhost"))
	return tcp.Config{
		Core: core, Name: name, Target: spiffeid.RequireFromString(hoptest.Target), TLS: proxy.ServerTLS(server, ca.Bundle(), ca.TrustDomain()),
		Address: address, Logger: slog.New(slog.DiscardHandler),
	}
}

// dial does TLS as the agent.
func (r *rig) dial() *tls.Conn {
	r.t.Helper()
	c, err := tls.DialWithDialer(&net.Dialer{Timeout: patience}, "tcp", r.address, r.tls)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(patience))
	return c
}

// knock shows a credential and gives the answer.
func (r *rig) knock(credential string) (c *tls.Conn, status byte, text string) {
	r.t.Helper()
	c = r.dial()
	if _, err := c.Write(frame(credential)); err != nil {
		r.t.Fatal(err)
	}
	head := make([]byte, len(preface.TCP)+5)
	if _, err := io.ReadFull(c, head); err != nil {
		r.t.Fatalf("no answer: %v", err)
	}
	if string(head[:len(preface.TCP)]) != preface.TCP {
		r.t.Fatalf("an answer %q", head)
	}
	b := make([]byte, binary.BigEndian.Uint32(head[len(preface.TCP)+1:]))
	if _, err := io.ReadFull(c, b); err != nil {
		r.t.Fatal(err)
	}
	return c, head[len(preface.TCP)], string(b)
}

func frame(credential string) []byte {
	return append(binary.BigEndian.AppendUint32([]byte(preface.TCP), uint32(len(credential))), credential...)
}

// connect gives both ends of a connection that is let through.
func (r *rig) connect() (agent *tls.Conn, service *net.TCPConn) {
	r.t.Helper()
	agent, status, text := r.knock(hoptest.Credential)
	if status != preface.Welcome {
		r.t.Fatalf("refused: %s", text)
	}
	c := <-r.heard
	r.t.Cleanup(func() { _ = c.Close() })
	return agent, c.(*net.TCPConn)
}

// unheard fails if the service heard of anything.
func (r *rig) unheard() {
	r.t.Helper()
	r.stop()
	if n := len(r.heard); n != 0 || len(r.All("forwarded")) != 0 {
		r.t.Errorf("the service heard of %d connections", n)
	}
}

func TestBytesPassBothWaysAndEachEndIsPassedOn(t *testing.T) {
	r := newRig(t)
	agent, service := r.connect()
	question, answer := bytes.Repeat([]byte("question"), 100_000), bytes.Repeat([]byte("answer"), 200_000)
	go func() {
		_, _ = agent.Write(question)
		_ = agent.CloseWrite()
	}()
	got, err := io.ReadAll(service) // until the agent's end
	if err != nil || !bytes.Equal(got, question) {
		t.Fatalf("the service got %d bytes, %v", len(got), err)
	}
	go func() {
		_, _ = service.Write(answer)
		_ = service.CloseWrite()
	}()
	if got, err = io.ReadAll(agent); err != nil || !bytes.Equal(got, answer) {
		t.Fatalf("the agent got %d bytes, %v", len(got), err)
	}
	out := r.Await(t, "completed", "connect").Out
	if out.Status != "ok" || out.Sent != int64(len(question)) || out.Bytes != int64(len(answer)) {
		t.Errorf("the outcome: %+v", out)
	}
	if d := r.All("decided"); len(d) != 1 || !d[0].Cmd.Ops[0].Write {
		t.Errorf("decided: %+v", d)
	}
	r.Await(t, "closed", "client")
}

// What both sides have ended stays what it was, however late the agent reads it.
func TestTheEndOfASessionTakesNothingAway(t *testing.T) {
	r := newRig(t)
	agent, service := r.connect()
	if err := agent.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	answer := bytes.Repeat([]byte("answer"), 100_000) // more than the agent's side takes before it is read
	if _, err := service.Write(answer); err != nil {
		t.Fatal(err)
	}
	_ = service.CloseWrite()
	<-r.Last().Context().Done()
	if got, err := io.ReadAll(agent); err != nil || !bytes.Equal(got, answer) {
		t.Errorf("the agent got %d bytes, %v", len(got), err)
	}
}

func TestWhatIsRefusedNeverReachesTheService(t *testing.T) {
	for name, c := range map[string]struct {
		credential string
		set        func(*hoptest.Ledger)
		want       string
	}{
		"a credential":     {"token", func(*hoptest.Ledger) {}, "rec-open"},
		"by policy":        {hoptest.Credential, func(l *hoptest.Ledger) { l.Allow = func(proxy.Command) bool { return false } }, "rec-refused"},
		"a limit":          {hoptest.Credential, func(l *hoptest.Ledger) { l.Ob.MaxRows = 1 }, "rec-refused"},
		"a full recording": {hoptest.Credential, func(l *hoptest.Ledger) { l.Ob.Record = policy.RecordFull }, "rec-refused"},
		"what isn't on disk": {hoptest.Credential, func(l *hoptest.Ledger) {
			l.Durable = func(context.Context) error { return errors.New("secret of the disk") }
		}, "couldn't be decided"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.Set(func() { c.set(r.ledger.Ledger) })
			agent, status, text := r.knock(c.credential)
			if status != preface.Refused || !strings.Contains(text, c.want) || strings.Contains(text, "secret") {
				t.Errorf("%d %q", status, text)
			}
			if b, _ := io.ReadAll(agent); len(b) != 0 {
				t.Errorf("behind the refusal: %q", b)
			}
			r.unheard()
		})
	}
}

func TestAPrefaceThatIsNoneIsNotAnswered(t *testing.T) {
	for name, text := range map[string][]byte{
		"another name": append([]byte(preface.SSH), frame(hoptest.Credential)[len(preface.TCP):]...),
		"nothing":      frame(""),
		"too much":     binary.BigEndian.AppendUint32([]byte(preface.TCP), 1<<31),
		"HTTP":         []byte("GET / HTTP/1.1\r\nHost: billing\r\n\r\n"),
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			c := r.dial()
			if _, err := c.Write(text); err != nil {
				t.Fatal(err)
			}
			if b, _ := io.ReadAll(c); len(b) != 0 {
				t.Errorf("answered %q", b)
			}
			if n := r.Opened.Load(); n != 0 {
				t.Errorf("%d sessions", n)
			}
			r.unheard()
		})
	}
}

func TestAConnectionEndsWithItsSessionByAReset(t *testing.T) {
	for name, end := range map[string]func(*rig){"revoked": func(r *rig) { r.Last().Revoke() }, "shutdown": func(r *rig) { r.stop() }} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			agent, service := r.connect()
			end(r)
			// A plain end would be taken for one that was meant.
			if _, err := service.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
				t.Errorf("the service sees %v", err)
			}
			if _, err := agent.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
				t.Errorf("the agent sees %v", err)
			}
			if out := r.Await(t, "completed", "connect").Out; out.Status != "cut" {
				t.Errorf("the outcome: %+v", out)
			}
		})
	}
}

// An end that breaks isn't passed on as one that was meant.
func TestAResetIsPassedOnAsOne(t *testing.T) {
	r := newRig(t)
	agent, service := r.connect()
	_ = service.SetLinger(0)
	_ = service.Close()
	if _, err := agent.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("the agent sees %v", err)
	}
	if out := r.Await(t, "completed", "connect").Out; out.Status != "cut" {
		t.Errorf("the outcome: %+v", out)
	}
}

func TestConnectionsAreBounded(t *testing.T) {
	r := newRig(t, func(c *tcp.Config) { c.MaxConnections = 1 })
	agent, service := r.connect()
	if _, status, text := r.knock(hoptest.Credential); status != preface.Refused || !strings.Contains(text, "as many connections") {
		t.Errorf("%d %q", status, text)
	}
	_ = agent.Close()
	_ = service.Close()
	r.Await(t, "closed", "client")
}

func TestAnUnreachableServiceIsSaidSo(t *testing.T) {
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone := l.Addr().String()
	_ = l.Close()
	r := newRig(t, func(c *tcp.Config) { c.Address = gone })
	if _, status, text := r.knock(hoptest.Credential); status != preface.Refused || !strings.Contains(text, "can't be reached") || !strings.Contains(text, "rec-decided") || strings.Contains(text, gone) {
		t.Errorf("%d %q", status, text)
	}
	if out := r.Await(t, "completed", "connect").Out; out.Status != "error" {
		t.Errorf("the outcome: %+v", out)
	}
	r.Await(t, "closed", "upstream")
}

// A service whose certificate isn't the configured authority's hears nothing of the agent.
func TestAServiceOfAnotherAuthorityHearsNothing(t *testing.T) {
	r := newRig(t, func(c *tcp.Config) { c.RootCAs, c.StartupTimeout = x509.NewCertPool(), patience })
	agent := r.dial()
	if _, err := agent.Write(append(frame(hoptest.Credential), "early"...)); err != nil {
		t.Fatal(err)
	}
	service := <-r.heard
	hello := make([]byte, 1)
	if _, err := io.ReadFull(service, hello); err != nil || hello[0] != 22 { // a handshake of TLS, never the agent's bytes
		t.Errorf("the service got %v, %v", hello, err)
	}
	_ = service.Close()
	if b, _ := io.ReadAll(agent); !bytes.Contains(b, []byte("can't be reached")) {
		t.Errorf("the agent got %q", b)
	}
}

func TestAnEngineThatWouldBeOpenIsNotMade(t *testing.T) {
	ca := testca.New(t, "test.example")
	for name, change := range map[string]func(*tcp.Config){
		"no core":      func(c *tcp.Config) { c.Core = nil },
		"no TLS":       func(c *tcp.Config) { c.TLS = nil },
		"any agent":    func(c *tcp.Config) { c.TLS = &tls.Config{MinVersion: tls.VersionTLS13} },
		"no port":      func(c *tcp.Config) { c.Address = "127.0.0.1" },
		"in the clear": func(c *tcp.Config) { c.Address = "192.0.2.1:80" },
		"by a name":    func(c *tcp.Config) { c.Address = "localhost:80" },
	} {
		cfg := config(t, ca, ledger{hoptest.NewLedger()}, "127.0.0.1:1")
		change(&cfg)
		if _, err := tcp.New(cfg); err == nil {
			t.Errorf("%s: made", name)
		}
	}
}

// A session that ends while its service keeps the proxy waiting is over at once, and the agent hears why.
func TestASessionEndsWhileItsServiceIsAwaited(t *testing.T) {
	r := newRig(t, func(c *tcp.Config) { c.RootCAs, c.ServerName = x509.NewCertPool(), "localhost" })
	go func() {
		<-r.heard // connected to, and it says nothing
		r.Last().Revoke()
	}()
	began := time.Now()
	_, status, text := r.knock(hoptest.Credential)
	if took := time.Since(began); status != preface.Refused || !strings.Contains(text, "this session has ended: ") || took > 5*time.Second {
		t.Errorf("status %d after %s: %s", status, took, text)
	}
	if out := r.Await(t, "completed", "connect").Out; out.Status != "cut" {
		t.Errorf("the outcome: %+v", out)
	}
}

// An agent's bytes end with TLS's goodbye alone: the end of the connection below it is what is left of a reset that the proxy heard of in the middle of writing,
// or somebody else's doing.
func TestAnEndWithoutAGoodbyeIsPassedOnAsAReset(t *testing.T) {
	r := newRig(t)
	agent, service := r.connect()
	if _, err := agent.Write([]byte("half")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(service, make([]byte, 4)); err != nil {
		t.Fatal(err)
	}
	_ = agent.NetConn().Close()
	if _, err := service.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("the service sees %v", err)
	}
	if out := r.Await(t, "completed", "connect").Out; out.Status != "cut" {
		t.Errorf("the outcome: %+v", out)
	}
}

// A reset that was met in the middle of writing leaves an end to be read, which isn't one that was meant.
func TestAResetThatAWriteHasMetIsNoEnd(t *testing.T) {
	pair := func() (near, far *net.TCPConn) {
		l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		_ = c.SetDeadline(time.Now().Add(patience))
		other, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = other.Close() })
		return other.(*net.TCPConn), c.(*net.TCPConn)
	}
	agent, agentsEnd := pair()
	service, servicesEnd := pair()
	_ = servicesEnd.SetLinger(0)
	_ = servicesEnd.Close()
	for err := error(nil); err == nil; _, err = service.Write([]byte("x")) {
	}
	out := tcp.Relay(agent, service)
	if out.Status != "cut" {
		t.Errorf("the outcome: %+v", out)
	}
	if _, err := agentsEnd.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("the agent sees %v", err)
	}
}
