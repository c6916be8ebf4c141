package supervise

import "github.com/deputymesh/deputy/actor"

// NewRunDir makes an agent's folder, and returns its path and what removes it.
func NewRunDir(runtimeDir string, id actor.AgentID) (string, func() error, error) {
	d, err := newRunDir(runtimeDir, id)
	if err != nil {
		return "", nil, err
	}
	return d.path, d.remove, nil
}

// KeepPagesOut is what stands before each web service's listener.
var KeepPagesOut = keepPagesOut

// OfItself is exported for tests.
var OfItself = ofItself

// LocalServer is what speaks HTTP at a listener.
var LocalServer = localServer
