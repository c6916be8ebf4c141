package integration_test

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/deputymesh/deputy/internal/testmesh"
)

// In a session a target can answer what nobody asked, lie about its answers, never stop or never begin. No value that
// must be masked comes through because of it, the proxy keeps its memory and its other targets, and a revocation ends
// the session all the same.
func TestAHostileTargetBreaksNothing(t *testing.T) {
	h := newHostileTarget(t)
	f := newForge(t, h.behind()...)
	h.pg = f.PG
	x := f.trees(t, 1)[0]
	dora := f.idp.signIn(t, "dora")
	root := f.root(dora, x.planner)
	orders := f.flow(dora, root, testmesh.Target, x.planner, x.a)
	crm := f.flow(dora, root, testmesh.OtherTarget, x.planner, x.a)
	start := residentPeak(t, f.Proxy.Pid())

	id, err := strconv.ParseUint(f.PG.Value("select 'public.customers'::regclass::oid"), 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	customers := uint32(id)
	if id, err = strconv.ParseUint(f.PG.Value("select 'public.orders'::regclass::oid"), 10, 32); err != nil {
		t.Fatal(err)
	}
	ordersID := uint32(id)
	row := func(values ...string) string {
		b := binary.BigEndian.AppendUint16(nil, uint16(len(values)))
		for _, v := range values {
			b = append(binary.BigEndian.AppendUint32(b, uint32(len(v))), v...)
		}
		return message('D', string(b))
	}
	described := func(table uint32, columns ...uint16) string {
		b := binary.BigEndian.AppendUint16(nil, uint16(len(columns)))
		for _, n := range columns {
			b = append(b, "email\x00"...)
			b = binary.BigEndian.AppendUint32(b, table)
			b = binary.BigEndian.AppendUint16(b, n)
			b = append(b, "\x00\x00\x00\x19\xff\xff\xff\xff\xff\xff\x00\x00"...)
		}
		return message('T', string(b))
	}
	const secret = "SECRET@example.com"
	email := described(customers, 3)
	trouble := "SERROR\x00VERROR\x00C22P02\x00Mbad " + secret + "\x00D" + secret + "\x00\x00"
	done, idle := message('C', "SELECT 1\x00"), message('Z', "I")
	answer := func(parts ...string) func(*targetConn) {
		return func(c *targetConn) {
			if kind, _, ok := c.hear(); ok && kind == 'Q' {
				c.bytes(strings.Join(parts, ""))
			}
			c.idle()
		}
	}
	ask := func(t *testing.T, s func(*targetConn)) (string, error) {
		t.Helper()
		h.play(script{session: s})
		return f.raw(t, crm, f.Address("other-target"), "SELECT email FROM customers WHERE id = 1")
	}
	got, err := ask(t, answer(email, row(secret), done, idle))
	if err != nil || !strings.Contains(got, "S***@example.com") || strings.Contains(got, secret) {
		t.Fatalf("an honest answer: %q %v", got, err)
	}

	for name, c := range map[string]struct {
		session func(*targetConn)
		// goes: the session goes on afterwards.
		goes bool
	}{
		"a row before its description":        {answer(row(secret), done, idle), false},
		"a row of another width":              {answer(email, row(secret, secret), done, idle), false},
		"a row of no width":                   {answer(email, message('D', "\x00\x00"), done, idle), false},
		"a value beyond the row":              {answer(email, message('D', "\x00\x01\x7f\xff\xff\xff"+secret)), false},
		"a row cut off":                       {func(c *targetConn) { c.hear(); c.bytes(email + row(secret)[:15]); _ = c.Close() }, false},
		"two answers":                         {answer(email, row(secret), done, row(secret), done, idle), false},
		"an answer after the end":             {answer(email, row("a@b"), done, idle, email, row(secret), done, idle), false},
		"ready at once":                       {answer(idle), false},
		"copy out":                            {answer(message('H', "\x00\x00\x01\x00\x00"), message('d', secret+"\n"), message('c', ""), done, idle), false},
		"copy in":                             {answer(message('G', "\x00\x00\x01\x00\x00")), false},
		"copy both":                           {answer(message('W', "\x00\x00\x01\x00\x00"), message('d', secret)), false},
		"a function's result":                 {answer(message('V', "\x00\x00\x00\x12"+secret)), false},
		"another authentication":              {answer(message('R', "\x00\x00\x00\x03"), email, row(secret), done, idle), false},
		"another key for cancels":             {answer(message('K', "\x00\x00\x00\x01\x00\x00\x00\x02"), email, row(secret), done, idle), false},
		"another protocol":                    {answer(message('v', "\x00\x03\x00\x00\x00\x00\x00\x00"), email, row(secret), done, idle), false},
		"answers to Parse and Bind":           {answer(message('1', ""), message('2', ""), email, row(secret), done, idle), false},
		"parameters of a statement":           {answer(message('t', "\x00\x00"), email, row(secret), done, idle), false},
		"an unknown message":                  {answer(message('~', secret), email, row(secret), done, idle), false},
		"a message shorter than itself":       {answer("T\x00\x00\x00\x01"), false},
		"a message of 2 GiB":                  {answer("T\x7f\xff\xff\xff" + secret), false},
		"a description of many columns":       {answer(message('T', "\x7f\xff"+strings.Repeat("x\x00", 4000))), false},
		"a description that ends early":       {answer(email[:len(email)-4] + done), false},
		"a notification":                      {answer(message('A', "\x00\x00\x00\x01"+secret+"\x00"+secret+"\x00"), email, row("a@b"), done, idle), true},
		"an error with a value":               {answer(message('E', trouble), idle), true},
		"a notice with a value":               {answer(message('N', trouble), email, row("a@b"), done, idle), true},
		"an error that isn't one":             {answer(message('E', secret)), false},
		"a fatal error with a value":          {answer(message('E', strings.ReplaceAll(trouble, "ERROR", "FATAL"))), false},
		"strings that mean something else":    {answer(message('S', "standard_conforming_strings\x00off\x00"), email, row(secret), done, idle), false},
		"another encoding":                    {answer(message('S', "client_encoding\x00SQL_ASCII\x00"), email, row(secret), done, idle), false},
		"another user":                        {answer(message('S', "session_authorization\x00postgres\x00"), email, row(secret), done, idle), false},
		"another search path":                 {answer(message('S', "search_path\x00evil\x00"), email, row(secret), done, idle), false},
		"a parameter of the proxy's":          {answer(message('S', "deputy.session\x00"+strings.Repeat("0", 32)+"\x00"), email, row(secret), done, idle), false},
		"half a parameter":                    {answer(message('S', "x"), email, row(secret), done, idle), false},
		"a harmless parameter":                {answer(message('S', "TimeZone\x00UTC\x00"), email, row("a@b"), done, idle), true},
		"a description of a table that isn't": {answer(described(4_000_000_000, 1), row(secret), done, idle), true},
		"a description of a whole row":        {answer(described(customers, 0), row(secret), done, idle), true},
		"a description of a dropped one":      {answer(described(customers, 77), row(secret), done, idle), true},
		"a description of nothing":            {answer(described(0, 0), row(secret), done, idle), true},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := ask(t, c.session)
			if strings.Contains(got, secret) || strings.Contains(got, "SECRET") {
				t.Errorf("the value came through: %q", got)
			}
			if goes := err == nil; goes != c.goes {
				t.Errorf("the session goes on is %v, want %v: %q %v", goes, c.goes, got, err)
			}
		})
	}

	t.Run("a row that doesn't end", func(t *testing.T) {
		got, err := ask(t, func(c *targetConn) {
			c.hear()
			c.bytes(email + "D\x3f\xff\xff\xff\x00\x01\x3f\xff\xff\xf0")
			forever(c, strings.Repeat("x", 1<<16))
		})
		if err == nil || !strings.Contains(got+err.Error(), "54000") {
			t.Errorf("%.200q %v", got, err)
		}
	})
	// An agent that doesn't read, and a target that doesn't stop: neither fills the proxy.
	for name, flood := range map[string]string{
		"notices without end":    message('N', "SNOTICE\x00VNOTICE\x00C00000\x00M"+strings.Repeat("x", 8000)+"\x00\x00"),
		"parameters without end": message('S', "TimeZone\x00"+strings.Repeat("x", 8000)+"\x00"),
		"rows without end":       row(strings.Repeat("x", 8000)),
	} {
		t.Run(name, func(t *testing.T) {
			var sent atomic.Int64
			stuck := make(chan struct{})
			h.play(script{session: func(c *targetConn) {
				c.hear()
				c.bytes(described(ordersID, 5))
				for {
					_ = c.SetWriteDeadline(time.Now().Add(time.Second))
					n, err := c.Write([]byte(flood))
					sent.Add(int64(n))
					var timeout net.Error
					if errors.As(err, &timeout) && timeout.Timeout() {
						close(stuck)
						c.idle()
					}
					if err != nil {
						return
					}
				}
			}})
			conn, err := f.connect(x.a, f.Address("other-target"), crm.credential())
			if err != nil {
				t.Fatal(err)
			}
			raw := conn.Conn()
			defer raw.Close()
			if _, err := io.WriteString(raw, message('Q', "SELECT status FROM orders\x00")); err != nil {
				t.Fatal(err)
			}
			select {
			case <-stuck:
			case <-time.After(patience):
				t.Fatal("the proxy takes it all")
			}
			if n := sent.Load(); n > 64<<20 {
				t.Errorf("the proxy took %d MiB for an agent that doesn't read", n>>20)
			}
			f.mustServe(orders, f.Address("target"))
		})
	}

	// A refused statement is, for the target, a portal that doesn't exist.
	inStep := func(c *targetConn) {
		for {
			switch kind, _, ok := c.hear(); {
			case !ok:
				return
			case kind == 'Q':
				c.bytes(email + row(secret) + done + idle)
			case kind == 'S':
				c.bytes(message('E', "SERROR\x00VERROR\x00C34000\x00Mno portal\x00\x00") + idle)
			}
		}
	}
	t.Run("what the catalogue says", func(t *testing.T) {
		for name, catalogue := range map[string]func(*targetConn){
			"rows without end": func(c *targetConn) { forever(c, row("16400", "public", strings.Repeat("x", 60), "r", "f")) },
			"notices": func(c *targetConn) {
				forever(c, message('N', "SNOTICE\x00C00000\x00M"+strings.Repeat("x", 8000)+"\x00\x00"))
			},
			"a row of 1 GiB":    func(c *targetConn) { c.bytes("D\x3f\xff\xff\xff"); forever(c, strings.Repeat("x", 1<<16)) },
			"one column":        func(c *targetConn) { c.bytes(row("x") + done + idle); c.idle() },
			"what is no number": func(c *targetConn) { c.bytes(row("x", "y", "z", "r", "f") + done + idle); c.idle() },
			"an end":            func(c *targetConn) { _ = c.Close() },
			"silence":           func(c *targetConn) { f.mustServe(orders, f.Address("target")); _ = c.Close() },
		} {
			t.Run(name, func(t *testing.T) {
				h.play(script{session: inStep, catalogue: func(c *targetConn) {
					c.hear() // BEGIN
					c.bytes(message('C', "BEGIN\x00") + message('Z', "T"))
					c.hear()
					c.bytes(message('1', "") + message('2', "") + described(0, 0))
					catalogue(c)
				}})
				// The proxy's own connection ends, and with the next unknown name it opens another.
				h.hangUp()
				for range 2 {
					got, err := f.raw(t, crm, f.Address("other-target"), "SELECT email FROM never_seen_"+strings.ToLower(rand.Text()))
					if strings.Contains(got, "SECRET") || err != nil || !strings.Contains(got, "catalogue") {
						t.Errorf("%q %v", got, err)
					}
				}
				f.mustServe(orders, f.Address("target"))
			})
		}
	})

	t.Run("a revocation", func(t *testing.T) {
		var sessions sync.WaitGroup
		for name, s := range map[string]func(*targetConn){
			"before the answer":      func(c *targetConn) { c.idle() },
			"in the middle of a row": func(c *targetConn) { c.hear(); c.bytes(email + row(secret)[:12]); c.idle() },
			"while it floods": func(c *targetConn) {
				c.hear()
				forever(c, message('N', "SNOTICE\x00C00000\x00M"+strings.Repeat("x", 8000)+"\x00\x00"))
			},
			"after ReadyForQuery":     func(c *targetConn) { c.hear(); c.bytes(email + row("a@b") + done + idle); c.idle() },
			"while it takes no bytes": func(c *targetConn) { time.Sleep(5 * time.Second) }, // as a hung server
		} {
			h.play(script{session: s})
			doomed := f.flow(dora, f.root(dora, x.planner), testmesh.OtherTarget, x.planner, x.a)
			conn, err := f.connect(x.a, f.Address("other-target"), doomed.credential())
			if err != nil {
				t.Fatal(err)
			}
			raw := conn.Conn()
			if _, err := io.WriteString(raw, message('Q', "SELECT email FROM customers WHERE id = 1\x00")); err != nil {
				t.Fatal(err)
			}
			ended := make(chan time.Time, 1)
			sessions.Go(func() {
				defer raw.Close()
				_, _ = io.Copy(io.Discard, raw)
				ended <- time.Now()
			})
			// The agent gives up its own token; that is the shortest way to a revocation.
			began := time.Now()
			if a := f.post(x.a, "/revoke", "token="+doomed.parts[0]); a.status != 200 {
				t.Fatalf("giving up a token: %s", a)
			}
			select {
			case at := <-ended:
				if took := at.Sub(began); took > 3*time.Second { // a second, and what a busy machine adds
					t.Errorf("%s: the session ended %s after the revocation", name, took)
				}
			case <-time.After(patience):
				t.Fatalf("%s: the session goes on", name)
			}
		}
		sessions.Wait()
	})
	if grown := residentPeak(t, f.Proxy.Pid()) - start; grown > 700<<20 {
		t.Errorf("the proxy grew by %d MiB", grown>>20)
	}
	f.mustServe(orders, f.Address("target"))
	f.Verify(t)
}

// raw asks one simple query and returns all that comes back, as text; an error means that the session didn't go on.
func (f *forge) raw(t *testing.T, l flow, address, sql string) (string, error) {
	t.Helper()
	conn, err := f.connect(l.leaf, address, l.credential())
	if err != nil {
		return "", err
	}
	defer conn.Close(context.Background())
	front, raw := conn.Frontend(), conn.Conn()
	_ = raw.SetDeadline(time.Now().Add(patience))
	front.SendQuery(&pgproto3.Query{String: sql})
	if err := front.Flush(); err != nil {
		return "", err
	}
	var all strings.Builder
	var ready bool
	for {
		msg, err := front.Receive()
		var timeout net.Error
		if ready && errors.As(err, &timeout) && timeout.Timeout() {
			return all.String(), nil
		}
		if err != nil {
			return all.String(), err
		}
		switch m := msg.(type) {
		case *pgproto3.ErrorResponse:
			fmt.Fprintf(&all, "%s %s %s %s %s\n", m.Severity, m.Code, m.Message, m.Detail, m.Hint)
			if m.Severity == "FATAL" {
				return all.String(), errors.New(m.Code + " " + m.Message)
			}
		case *pgproto3.ReadyForQuery:
			ready = true
			// It must say nothing more, nor end: wait a little for what comes out of turn.
			_ = raw.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		case *pgproto3.DataRow:
			for _, v := range m.Values {
				fmt.Fprintf(&all, "%s|", v)
			}
		default:
			fmt.Fprintf(&all, "%+v\n", msg)
		}
	}
}
