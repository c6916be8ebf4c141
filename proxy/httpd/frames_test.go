package httpd_test

import (
	"bytes"
	"crypto/tls"
	"io"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// frames speaks HTTP/2 to the engine frame by frame.
func (r *rig) frames() (*http2.Framer, *tls.Conn) {
	r.t.Helper()
	cfg := r.tls.Clone()
	cfg.NextProtos = []string{"h2"}
	conn, err := tls.Dial("tcp", r.address, cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		r.t.Fatal(err)
	}
	f := http2.NewFramer(conn, conn)
	if err := f.WriteSettings(); err != nil {
		r.t.Fatal(err)
	}
	return f, conn
}

func (r *rig) head(path string) []byte {
	var b bytes.Buffer
	enc := hpack.NewEncoder(&b)
	for _, h := range [][2]string{{":method", "GET"}, {":scheme", "https"}, {":authority", r.address}, {":path", path}, {"authorization", "Bearer " + goodCredential}} {
		if err := enc.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]}); err != nil {
			r.t.Fatal(err)
		}
	}
	return b.Bytes()
}

// Streams that are reset at once (CVE-2023-44487) never make more work than a connection may have, and hold up nobody else.
func TestStreamsThatAreResetAtOnceStayBounded(t *testing.T) {
	var now, most atomic.Int64
	r := newRig(t, http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if q.URL.Path == "/reset" {
			n := now.Add(1)
			defer now.Add(-1)
			for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
			}
			<-q.Context().Done()
			return
		}
		echo(w, q)
	}))
	f, conn := r.frames()
	go func() { _, _ = io.Copy(io.Discard, conn) }()
	head := r.head("/reset")
	sent := 0
	for i := range 20_000 {
		id := uint32(2*i + 1)
		err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: head, EndStream: true, EndHeaders: true})
		if err == nil {
			err = f.WriteRSTStream(id, http2.ErrCodeCancel)
		}
		if err != nil {
			break // cut off for it
		}
		sent++
	}
	if sent < 200 {
		t.Fatalf("only %d streams were tried", sent)
	}
	r.Await(t, "decided", "GET /reset")
	if most.Load() > 100 {
		t.Errorf("%d requests of one connection at once", most.Load())
	}
	// Nothing of it is taken from the others.
	if a, _ := r.do("GET", "/other", nil); a.StatusCode != 200 {
		t.Errorf("another agent's request: %d", a.StatusCode)
	}
}

// A header that never ends (CONTINUATION flood, CVE-2024-27316) is cut, and not kept until then.
func TestAHeaderWithoutAnEndIsCut(t *testing.T) {
	r := newRig(t, http.HandlerFunc(echo))
	f, conn := r.frames()
	go func() { _, _ = io.Copy(io.Discard, conn) }()
	if err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: r.head("/"), EndStream: true}); err != nil {
		t.Fatal(err)
	}
	var more bytes.Buffer
	if err := hpack.NewEncoder(&more).WriteField(hpack.HeaderField{Name: "x-more", Value: string(bytes.Repeat([]byte("x"), 8<<10))}); err != nil {
		t.Fatal(err)
	}
	sent := 0
	for ; sent < 64<<20; sent += more.Len() {
		if err := f.WriteContinuation(1, false, more.Bytes()); err != nil {
			break
		}
	}
	if sent >= 64<<20 {
		t.Error("64 MiB of one header were taken")
	}
	if n := len(r.All("decided")); n != 0 {
		t.Errorf("%d requests were decided", n)
	}
	if a, _ := r.do("GET", "/other", nil); a.StatusCode != 200 {
		t.Errorf("another request: %d", a.StatusCode)
	}
}
