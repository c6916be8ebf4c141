// Package lobby is where connections wait until their agents have shown a credential. It has places of its own, so that whoever
// has no credential takes no session's.
package lobby

import (
	"container/list"
	"net"
	"sync"
)

// Limits of connections that have shown no credential yet, beside those of sessions.
const (
	maxStrangers = 256 // that haven't shown an SVID
	maxOfOne     = 128 // of one agent: a pool may open all of its connections at once
)

// Room holds the connections of one engine. When it is full the oldest has to go: an honest agent stays for milliseconds, so it is
// the others' that grow old. Strangers never push out whoever has shown an SVID, nor does one agent another. The zero value is ready
// for use.
type Room struct {
	mu        sync.Mutex // guards what follows
	strangers list.List  // of *Guest, oldest first
	agents    map[string]*list.List
}

// Guest is one connection.
type Guest struct {
	conn  net.Conn
	agent string     // "" for a stranger
	place *list.List // nil when it has left
	at    *list.Element
	// Slot says that it has the place of a session; for its own goroutine.
	Slot bool
}

// Enter lets a connection in; it reports whether another one had to go.
func (r *Room) Enter(conn net.Conn) (g *Guest, full bool) {
	g = &Guest{conn: conn}
	r.mu.Lock()
	out := r.seat(g, &r.strangers, maxStrangers)
	r.mu.Unlock()
	return g, out.close()
}

// Recognise is called when a connection has shown the SVID of an agent. It reports whether another one had to go.
func (r *Room) Recognise(g *Guest, agent string) (full bool) {
	return r.recognise(g, agent).close()
}

func (r *Room) recognise(g *Guest, agent string) (out *Guest) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if g.place == nil {
		return nil // it had to go meanwhile
	}
	r.drop(g)
	g.agent = agent
	if r.agents == nil {
		r.agents = map[string]*list.List{}
	}
	if r.agents[agent] == nil {
		r.agents[agent] = list.New()
	}
	return r.seat(g, r.agents[agent], maxOfOne)
}

// Leave is called when a connection has a session, or ends.
func (r *Room) Leave(g *Guest) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.drop(g)
}

// close ends the connection of whoever had to go, if anybody had. It is called without the lock: a connection may leave the room as it ends.
func (g *Guest) close() (full bool) {
	if g != nil {
		_ = g.conn.Close()
	}
	return g != nil
}

// seat gives a place, and says who has to go for it. It needs the lock.
func (r *Room) seat(g *Guest, in *list.List, most int) (out *Guest) {
	if in.Len() >= most {
		out, _ = in.Front().Value.(*Guest)
		r.drop(out)
	}
	g.place, g.at = in, in.PushBack(g)
	if g.agent != "" {
		r.agents[g.agent] = in // drop may have taken the last one's list away
	}
	return out
}

// drop needs the lock.
func (r *Room) drop(g *Guest) {
	if g.place == nil {
		return
	}
	g.place.Remove(g.at)
	if g.agent != "" && g.place.Len() == 0 {
		delete(r.agents, g.agent)
	}
	g.place, g.at = nil, nil
}
