package integration_test

import (
	"crypto/tls"
	"io"
	"net"
	"testing"
	"time"

	"github.com/deputymesh/deputy/internal/testmesh"
)

// Whoever has no credential takes nobody's place: not by thousands of connections that say nothing, not by an SVID alone.
func TestStrangersHoldNobodyUp(t *testing.T) {
	f := newForge(t)
	x := f.trees(t, 1)[0]
	dora := f.idp.signIn(t, "dora")
	root := f.root(dora, x.planner)
	mine := f.flow(dora, root, testmesh.Target, x.planner, x.a)
	other := f.flow(dora, root, testmesh.Target, x.planner, x.b)
	f.mustServe(mine, f.Address("target"))
	live, err := f.connect(x.b, f.Address("target"), other.credential())
	if err != nil {
		t.Fatal(err)
	}
	defer live.Close(t.Context())

	// More than a proxy's sessions, and each of them half way into the protocol.
	const many = 1500
	var strangers []net.Conn
	defer func() {
		for _, c := range strangers {
			_ = c.Close()
		}
	}()
	for i := range many {
		c, err := net.DialTimeout("tcp", f.Address("target"), patience)
		if err != nil {
			t.Fatal(err)
		}
		strangers = append(strangers, c)
		switch i % 3 {
		case 1:
			_, _ = c.Write([]byte{0, 0, 0})
		case 2:
			_, _ = c.Write([]byte{0, 0, 0, 8, 4, 210, 22, 47, 0x16, 3, 1})
		}
	}
	f.mustServe(mine, f.Address("target"))

	// One agent that has an SVID, and never says more.
	for range 100 {
		c, err := net.DialTimeout("tcp", f.Address("target"), patience)
		if err != nil {
			t.Fatal(err)
		}
		strangers = append(strangers, c)
		_ = c.SetDeadline(time.Now().Add(patience))
		if _, err := c.Write([]byte{0, 0, 0, 8, 4, 210, 22, 47}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		secured := tls.Client(c, f.tls(x.a))
		// What startup asks for, and then silence where the credential is due.
		if _, err := secured.Write([]byte("\x00\x00\x00\x17\x00\x03\x00\x00database\x00shop\x00\x00")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(secured, make([]byte, 9)); err != nil {
			t.Fatal(err)
		}
	}
	f.mustServe(other, f.Address("target"))
	f.mustServe(mine, f.Address("target")) // its own newer connection, too
	if got, err := served(live, "SELECT 'still'"); err != nil || got != "still" {
		t.Errorf("a live session: %q %v", got, err)
	}
	// Those that had to go are gone.
	gone := 0
	for _, c := range strangers[:many] {
		_ = c.SetReadDeadline(time.Now().Add(5 * time.Millisecond))
		if _, err := io.Copy(io.Discard, c); err == nil {
			gone++
		}
	}
	if gone < many/2 {
		t.Errorf("of %d strangers %d were sent away", many, gone)
	}
	f.Verify(t)
}
