package postgres

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

// room is where connections wait until their agents have shown a credential. It has places of its own, so that whoever has no
// credential takes no session's. When it is full the oldest has to go: an honest agent stays for milliseconds, so it is the
// others' that grow old. Strangers never push out whoever has shown an SVID, nor does one agent another.
type room struct {
	mu        sync.Mutex // guards what follows
	strangers list.List  // of *guest, oldest first
	agents    map[string]*list.List
}

type guest struct {
	conn  net.Conn
	agent string     // "" for a stranger
	place *list.List // nil when it has left
	at    *list.Element
	slot  bool // it has the place of a session; for its own goroutine
}

// enter lets a connection in; it reports whether another one had to go.
func (r *room) enter(conn net.Conn) (g *guest, full bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	g = &guest{conn: conn}
	return g, r.seat(g, &r.strangers, maxStrangers)
}

// recognise is called when a connection has shown the SVID of an agent. It reports whether another one had to go.
func (r *room) recognise(g *guest, agent string) (full bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if g.place == nil {
		return false // it had to go meanwhile
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

// leave is called when a connection has a session, or ends.
func (r *room) leave(g *guest) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.drop(g)
}

// seat needs the lock.
func (r *room) seat(g *guest, in *list.List, most int) (full bool) {
	if full = in.Len() >= most; full {
		oldest, _ := in.Front().Value.(*guest)
		r.drop(oldest)
		_ = oldest.conn.Close()
	}
	g.place, g.at = in, in.PushBack(g)
	if g.agent != "" {
		r.agents[g.agent] = in // drop may have taken the last one's list away
	}
	return full
}

// drop needs the lock.
func (r *room) drop(g *guest) {
	if g.place == nil {
		return
	}
	g.place.Remove(g.at)
	if g.agent != "" && g.place.Len() == 0 {
		delete(r.agents, g.agent)
	}
	g.place, g.at = nil, nil
}
