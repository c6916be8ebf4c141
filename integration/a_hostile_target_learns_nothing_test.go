package integration_test

import (
	"bytes"
	"crypto/md5"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/deputymesh/deputy/internal/testmesh"
	"github.com/deputymesh/deputy/internal/testpg"
)

// Before a session begins a target can ask for the proxy's secrets, lie about who it is, talk without end or say nothing.
// It gets no password and no credential, no memory and no time of anybody else's.
func TestAHostileTargetLearnsNothing(t *testing.T) {
	h := newHostileTarget(t)
	f := newForge(t, h.behind()...)
	h.pg = f.PG
	x := f.trees(t, 1)[0]
	dora := f.idp.signIn(t, "dora")
	root := f.root(dora, x.planner)
	orders := f.flow(dora, root, testmesh.Target, x.planner, x.a)
	crm := f.flow(dora, root, testmesh.OtherTarget, x.planner, x.a)
	h.play(script{session: (*targetConn).idle})
	if in, why := f.letIn(x.a, f.Address("other-target"), crm.credential()); !in {
		t.Fatalf("while the target keeps to the protocol: %s", why)
	}
	other := newPlainTLS(t)
	start := residentPeak(t, f.Proxy.Pid())

	refuses := func(t *testing.T) {
		t.Helper()
		in, why := f.letIn(x.a, f.Address("other-target"), crm.credential())
		if in || !strings.HasPrefix(why, "08006 ") {
			t.Errorf("let in is %v, %s", in, why)
		}
		heard := h.heardSoFar()
		sum := md5.Sum([]byte(testpg.AppPassword + testpg.App))
		inner := hex.EncodeToString(sum[:])
		salted := md5.Sum([]byte(inner + "SALT"))
		for what, secret := range map[string]string{"the password": testpg.AppPassword, "its md5": hex.EncodeToString(salted[:]), "the credential": crm.parts[0][:40]} {
			if strings.Contains(heard, secret) {
				t.Errorf("the target heard %s", what)
			}
		}
	}
	asks := func(request string) func(*targetConn) bool {
		return func(c *targetConn) bool {
			c.bytes(request)
			b := make([]byte, 4096)
			_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
			n, _ := c.Read(b)
			h.overhear(b[:n])
			return c.say('R', "\x00\x00\x00\x00") && c.say('Z', "I")
		}
	}
	for name, s := range map[string]script{
		"no TLS": {plain: func(c net.Conn) bool {
			_, _ = c.Write([]byte{'N'})
			b := make([]byte, 4096)
			_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
			n, _ := c.Read(b)
			h.overhear(b[:n])
			return false
		}},
		"an error in plain": {plain: func(c net.Conn) bool {
			_, _ = io.WriteString(c, message('E', "SFATAL\x00C28000\x00Mtry without TLS\x00\x00"))
			return false
		}},
		"bytes behind the answer to SSLRequest": {plain: func(c net.Conn) bool {
			_, _ = io.WriteString(c, "S"+message('R', "\x00\x00\x00\x03"))
			return true
		}},
		"another certificate": {plain: func(c net.Conn) bool {
			_, _ = c.Write([]byte{'S'})
			b := make([]byte, 4096)
			conn := other(c)
			_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
			n, _ := conn.Read(b)
			h.overhear(b[:n])
			return false
		}},
		"a cleartext password":          {auth: asks(message('R', "\x00\x00\x00\x03"))},
		"an md5 password":               {auth: asks(message('R', "\x00\x00\x00\x05SALT"))},
		"GSS":                           {auth: asks(message('R', "\x00\x00\x00\x07"))},
		"SSPI":                          {auth: asks(message('R', "\x00\x00\x00\x09"))},
		"no password at all":            {auth: func(*targetConn) bool { return true }},
		"SCRAM without binding":         {auth: asks(message('R', "\x00\x00\x00\x0aSCRAM-SHA-256\x00\x00"))},
		"another mechanism":             {auth: asks(message('R', "\x00\x00\x00\x0aPLAIN\x00\x00"))},
		"a server that has no password": {auth: func(c *targetConn) bool { return h.scram(c, "SCRAM-SHA-256-PLUS SCRAM-SHA-256", 4096, bytes.ToUpper) }},
		"a cleartext password afterwards": {auth: func(c *targetConn) bool {
			return h.honestSCRAM(c) && asks(message('R', "\x00\x00\x00\x03"))(c) && false
		}},
		"SCRAM that costs hours": {auth: func(c *targetConn) bool { return h.scramFirst(c, 2_000_000_000) }},
		"another protocol":       {auth: func(c *targetConn) bool { return c.say('v', "\x00\x00\x00\x63\x00\x00\x00\x00") && false }},
		"a message of 1 GiB": {auth: func(c *targetConn) bool {
			return c.bytes("R\x3f\xff\xff\xff") && forever(c, strings.Repeat("\x00", 1<<16))
		}},
		"notices without end": {auth: func(c *targetConn) bool {
			return forever(c, message('N', "SNOTICE\x00C00000\x00M"+strings.Repeat("x", 8000)+"\x00\x00"))
		}},
		"parameters without end": {auth: func(c *targetConn) bool {
			if !h.honestSCRAM(c) || !c.say('R', "\x00\x00\x00\x00") {
				return false
			}
			for i := 0; c.say('S', fmt.Sprintf("p%d\x00%s\x00", i, strings.Repeat("x", 4000))); i++ {
			}
			return false
		}},
		"strings that mean something else": {ready: ready("standard_conforming_strings\x00off")},
		"another encoding":                 {ready: ready("client_encoding\x00SQL_ASCII")},
		"a parameter of the proxy's":       {ready: ready("deputy.session\x00" + strings.Repeat("0", 32))},
		"an answer to nothing": {ready: func(c *targetConn) bool {
			return ready()(c) && c.say('D', "\x00\x00") && c.say('C', "SELECT 1\x00") && c.say('Z', "I")
		}},
		"an end in the middle": {auth: func(c *targetConn) bool { return c.bytes("R\x00\x00\x00\x0c\x00") && false }},
	} {
		t.Run(name, func(t *testing.T) {
			h.play(s)
			if name == "an answer to nothing" {
				// It may come while the proxy isn't looking yet, or when it does: in no case does it reach the agent.
				if conn, err := f.connect(x.a, f.Address("other-target"), crm.credential()); err == nil {
					if got, err := served(conn, "SELECT 1"); err == nil {
						t.Errorf("served %q", got)
					}
				}
				return
			}
			refuses(t)
		})
	}
	if grown := residentPeak(t, f.Proxy.Pid()) - start; grown > 64<<20 {
		t.Errorf("the proxy grew by %d MiB", grown>>20)
	}

	// Saying nothing, at each step: the agent hears of it in time, and nobody else waits.
	t.Run("silence", func(t *testing.T) {
		silent := func(c *targetConn) bool { c.idle(); return false }
		var waiting sync.WaitGroup
		for name, s := range map[string]script{
			"before TLS":            {plain: func(c net.Conn) bool { _, _ = io.Copy(io.Discard, c); return false }},
			"in the authentication": {auth: silent},
			"in the middle of SCRAM": {auth: func(c *targetConn) bool {
				return c.say('R', "\x00\x00\x00\x0aSCRAM-SHA-256-PLUS\x00SCRAM-SHA-256\x00\x00") && silent(c)
			}},
			"after the authentication":  {ready: silent},
			"in the middle of a length": {ready: func(c *targetConn) bool { return c.bytes("R\x00\x00") && silent(c) }},
		} {
			h.play(s)
			began, met := time.Now(), make(chan struct{})
			var once sync.Once
			inner := s
			h.play(meeting(inner, func() { once.Do(func() { close(met) }) }))
			waiting.Go(func() {
				in, why := f.letIn(x.a, f.Address("other-target"), crm.credential())
				if in || !strings.HasPrefix(why, "08006 ") || time.Since(began) > 25*time.Second {
					t.Errorf("%s: let in is %v after %s, %s", name, in, time.Since(began), why)
				}
			})
			select {
			case <-met:
			case <-time.After(patience):
				t.Fatal("the proxy doesn't come to the target")
			}
		}
		f.mustServe(orders, f.Address("target"))
		waiting.Wait()
	})
	f.mustServe(orders, f.Address("target"))
	f.Verify(t)
}

// meeting tells when the proxy has come to the target.
func meeting(s script, met func()) script {
	before := s.plain
	s.plain = func(c net.Conn) bool {
		met()
		return before == nil || before(c)
	}
	return s
}

// ready ends the authentication, with parameters in between.
func ready(parameters ...string) func(*targetConn) bool {
	return func(c *targetConn) bool {
		c.say('R', "\x00\x00\x00\x00")
		for _, p := range parameters {
			c.say('S', p+"\x00")
		}
		return c.say('K', "\x00\x00\x00\x01\x00\x00\x00\x02") && c.say('Z', "I")
	}
}

// forever says the same until nobody listens.
func forever(c io.Writer, what string) bool {
	for {
		if _, err := io.WriteString(c, what); err != nil {
			return false
		}
	}
}
