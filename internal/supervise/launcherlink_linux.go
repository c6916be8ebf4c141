package supervise

import (
	"errors"
	"os"
	"sync"
	"syscall"
)

// What launcher and supervisors say to each other over the inherited socket pair.

// startRequest asks the launcher for a child. The uid isn't in it: the issuer chose it. The streams and
// the child's end of the grant link ride along as descriptors.
type startRequest struct {
	Ticket   []byte   `json:"ticket"`
	Argv     []string `json:"argv"`
	Env      []string `json:"env"`
	Cwd      string   `json:"cwd"`
	Terminal bool     `json:"terminal"`
	// Targets are names; nil is all that the launcher knows.
	Targets []string `json:"targets"`
}

type toLauncher struct {
	ID     uint64        `json:"id"`
	Start  *startRequest `json:"start,omitempty"`
	Signal int           `json:"signal,omitempty"`
	Kill   bool          `json:"kill,omitempty"`
}

type fromLauncher struct {
	ID     uint64   `json:"id"`
	Exited childEnd `json:"exited"`
}

// childEnd is how a child ended. Error is set where it could not be started.
type childEnd struct {
	Code  int    `json:"code"`
	Error string `json:"error,omitempty"`
}

// supervisorStart is the launcher's first message to a new supervisor.
type supervisorStart struct {
	Ticket   []byte   `json:"ticket"`
	Argv     []string `json:"argv"`
	Env      []string `json:"env"`
	Cwd      string   `json:"cwd"`
	Terminal bool     `json:"terminal"`
	Dir      string   `json:"dir"`
	Mesh     Mesh     `json:"mesh"`
}

// launcherLink is a supervisor's side.
type launcherLink struct {
	wire *wire

	mu       sync.Mutex
	next     uint64                  // guarded by mu
	children map[uint64]*remoteChild // guarded by mu; nil when the launcher is gone
}

// remoteChild is a child that the launcher runs for this supervisor.
type remoteChild struct {
	link *launcherLink
	id   uint64
	done chan childEnd // buffered
}

func newLauncherLink(w *wire) *launcherLink {
	return &launcherLink{wire: w, children: make(map[uint64]*remoteChild)}
}

var errNoLauncher = errors.New("the launcher is gone")

// serve delivers children's ends until the launcher is gone.
func (l *launcherLink) serve() error {
	var err error
	for {
		var m fromLauncher
		if _, err = l.wire.read(&m, 0); err != nil {
			break
		}
		l.mu.Lock()
		c := l.children[m.ID]
		delete(l.children, m.ID)
		l.mu.Unlock()
		if c != nil {
			c.done <- m.Exited
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.children {
		c.done <- childEnd{Code: exitFailed, Error: errNoLauncher.Error()}
	}
	l.children = nil
	return err
}

func (l *launcherLink) start(req startRequest, files []*os.File) (*remoteChild, error) {
	l.mu.Lock()
	if l.children == nil {
		l.mu.Unlock()
		return nil, errNoLauncher
	}
	l.next++
	c := &remoteChild{link: l, id: l.next, done: make(chan childEnd, 1)}
	l.children[c.id] = c
	l.mu.Unlock()
	if err := l.wire.write(toLauncher{ID: c.id, Start: &req}, files...); err != nil {
		l.mu.Lock()
		delete(l.children, c.id)
		l.mu.Unlock()
		return nil, err
	}
	return c, nil
}

func (c *remoteChild) signal(s syscall.Signal) error {
	return c.link.wire.write(toLauncher{ID: c.id, Signal: int(s)})
}

// kill ends the child and everything below it; a child that has ended already is left alone.
func (c *remoteChild) kill() { _ = c.link.wire.write(toLauncher{ID: c.id, Kill: true}) }
