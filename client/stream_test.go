package client_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"

	"github.com/deputymesh/deputy/client"
	"github.com/deputymesh/deputy/internal/testca"
)

const tcpPreface = "deputy-tcp/1"

// relayed is a connection of a client's that a relay serves: the client's end, and what a proxy has of it.
type relayed struct {
	near  *net.TCPConn
	proxy *tls.Conn
	done  chan error
	end   context.CancelFunc
}

// newRelayed makes one to a TCP service.
func newRelayed(t *testing.T) *relayed {
	t.Helper()
	ca := testca.New(t, "corp.test")
	src := newSource(ca, agentPath("planner"))
	mesh := broker(t, ca, "/deputy/broker", func(w http.ResponseWriter, _ *http.Request) { token(w, "t", 300) })
	cred, err := exchanger(t, mesh, src, chainFor(t, ca, src.at.ID), nil).Credential(t.Context(), "orders-db", nil)
	if err != nil {
		t.Fatal(err)
	}
	cfg := tlsconfig.MTLSServerConfig(ca.SVID(ca.ID("/deputy/proxy/main")), ca.Bundle(), tlsconfig.AuthorizeMemberOf(ca.TrustDomain()))
	cfg.MinVersion, cfg.NextProtos = tls.VersionTLS13, []string{tcpPreface}
	proxies, locals := listen(t), listen(t)
	relay := &client.StreamRelay{
		Target: client.Target{Name: "cache", Kind: "tcp", Address: proxies.Addr().String(), Proxy: ca.ID("/deputy/proxy/main")}, Source: src,
		Credential: func(context.Context) (client.Credential, error) { return cred, nil },
	}
	r := &relayed{done: make(chan error, 1)}
	near, err := net.Dial("tcp", locals.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	r.near = near.(*net.TCPConn)
	far, err := locals.Accept()
	if err != nil {
		t.Fatal(err)
	}
	ctx, end := context.WithCancel(t.Context())
	r.end = end
	t.Cleanup(func() { end(); _ = near.Close(); _ = far.Close() })
	go func() { r.done <- relay.Serve(ctx, far, far) }()
	raw, err := proxies.Accept()
	if err != nil {
		t.Fatal(err)
	}
	r.proxy = tls.Server(raw, cfg)
	t.Cleanup(func() { _ = raw.Close() })
	_ = near.SetDeadline(time.Now().Add(20 * time.Second))
	_ = raw.SetDeadline(time.Now().Add(20 * time.Second))
	head := make([]byte, len(tcpPreface)+4)
	if _, err := io.ReadFull(r.proxy, head); err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(io.Discard, r.proxy, int64(binary.BigEndian.Uint32(head[len(tcpPreface):]))); err != nil {
		t.Fatal(err)
	}
	if _, err := r.proxy.Write(append([]byte(tcpPreface+"\x00\x00\x00\x00\x02"), "s1"...)); err != nil {
		t.Fatal(err)
	}
	return r
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// pass sends a byte all the way, so that both sides are being relayed.
func (r *relayed) pass(t *testing.T) {
	t.Helper()
	for _, way := range []struct{ from, to net.Conn }{{r.near, r.proxy}, {r.proxy, r.near}} {
		if _, err := way.from.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(way.to, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
}

// cut fails unless a connection ends by a reset.
func cut(t *testing.T, who string, c net.Conn) {
	t.Helper()
	if _, err := io.ReadAll(c); err == nil || errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("%s sees an end that looks meant: %v", who, err)
	} else if timeout := net.Error(nil); errors.As(err, &timeout) && timeout.Timeout() {
		t.Errorf("%s sees no end", who)
	}
}

// A service may end its half first, and go on listening.
func TestEachHalfOfATCPConnectionEndsOnItsOwn(t *testing.T) {
	r := newRelayed(t)
	r.pass(t)
	if err := r.proxy.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(r.near); err != nil || len(got) != 0 {
		t.Fatalf("the client gets %q, %v", got, err)
	}
	late := bytes.Repeat([]byte("late"), 100_000)
	go func() {
		_, _ = r.near.Write(late)
		_ = r.near.CloseWrite()
	}()
	if got, err := io.ReadAll(r.proxy); err != nil || !bytes.Equal(got, late) {
		t.Errorf("the proxy gets %d bytes, %v", len(got), err)
	}
	if err := <-r.done; err != nil {
		t.Error(err)
	}
}

// A client that breaks off isn't taken for one that has said all it had to.
func TestAClientThatBreaksOffIsCutAtTheProxy(t *testing.T) {
	r := newRelayed(t)
	r.pass(t)
	_ = r.near.SetLinger(0)
	_ = r.near.Close()
	cut(t, "the proxy", r.proxy)
	<-r.done
}

func TestWhatEndsWithTheRunIsCutAtTheProxy(t *testing.T) {
	r := newRelayed(t)
	r.pass(t)
	r.end()
	cut(t, "the proxy", r.proxy)
	if err := <-r.done; err != nil {
		t.Error(err)
	}
}

func TestWhatTheProxyCutsIsAnError(t *testing.T) {
	r := newRelayed(t)
	r.pass(t)
	raw := r.proxy.NetConn().(*net.TCPConn)
	_ = raw.SetLinger(0)
	_ = raw.Close()
	if err := <-r.done; err == nil {
		t.Error("a cut is an end")
	}
}
