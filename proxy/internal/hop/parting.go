package hop

import (
	"errors"
	"net"
	"net/http"
	"time"
)

// partingTime is how long a connection may stand after its session, to say why it ends.
const partingTime = 250 * time.Millisecond

// errStopping is why connections end with the engine.
var errStopping = errors.New("the proxy is shutting down")

// Parting has f run when the connection of a request is to be ended from this side, with the reason, before it is closed, and for no longer than
// partingTime; f returns when the connection is closed, at the latest. It is for a request that left HTTP, which has its connection to itself. stop takes f back.
func (h *Hop) Parting(r *http.Request, f func(why error)) (stop func()) {
	c, _ := r.Context().Value(connKey{}).(*agentConn)
	if c == nil {
		return func() {}
	}
	c.parting.Store(&f)
	return func() { c.parting.Store(nil) }
}

// cutOnPanic makes an answer in HTTP/1.0 that breaks off end by a reset, and not by TLS's goodbye: nothing but the end of the connection says there that an
// answer is whole. It is deferred.
func (c *agentConn) cutOnPanic() {
	if v := recover(); v != nil {
		c.reset()
		panic(v)
	}
}

func (c *agentConn) reset() {
	if t, ok := c.Conn.(*net.TCPConn); ok {
		_ = t.SetLinger(0)
	}
	_ = c.Close()
}

// part ends a connection from this side. Of several that end it, for the session and for the engine, the first does, and the others wait for it.
func (c *agentConn) part(why error) {
	c.parted.Do(func() { c.sayAndClose(why) })
}

func (c *agentConn) sayAndClose(why error) {
	if c.bare.Load() {
		defer c.reset() // what http.Server hasn't sent yet of an answer is missing from it
	} else {
		defer c.Close()
	}
	f := c.parting.Load()
	if f == nil {
		if !errors.Is(why, errStopping) {
			c.awaitRefusals()
		}
		return
	}
	said := make(chan struct{})
	go func() {
		defer close(said)
		(*f)(why)
	}()
	timer := time.NewTimer(partingTime)
	defer timer.Stop()
	select {
	case <-said:
	case <-timer.C:
	}
	_ = c.Close()
	<-said
}

// awaitRefusals gives the requests under way, which end with the session, time to say why: closed at once, the connection would hardly ever carry it. One
// that has just ended is under way, too: http.Server sends the last of an answer behind its handler.
func (c *agentConn) awaitRefusals() {
	c.h.mu.Lock()
	idle := c.running == 0 && time.Since(c.answered) > partingTime
	c.h.mu.Unlock()
	if idle {
		return
	}
	timer := time.NewTimer(partingTime)
	defer timer.Stop()
	select {
	case <-c.open.Done():
	case <-timer.C:
	}
}
