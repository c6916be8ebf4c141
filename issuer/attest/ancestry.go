package attest

import (
	"errors"
	"fmt"
)

const (
	// maxAncestors bounds a walk. A process that nests deeper than this can't be placed, and is refused.
	maxAncestors = 1024
	// ancestryAttempts bounds how often a walk begins again because somebody died under it.
	ancestryAttempts = 16
)

// Ancestor names one process for good: a pid alone may be used again.
type Ancestor struct {
	PID   int
	Start uint64
}

var errMoved = errors.New("its ancestors change too fast")

// Ancestry returns p and its ancestors, innermost first. A process can't fake it: an orphan is adopted by its nearest
// living subreaper, which is again an ancestor, and each link is read twice, so a reused pid shows.
func Ancestry(p *Process) ([]Ancestor, error) {
	for range ancestryAttempts {
		chain, err := walk(p.pid)
		if errors.Is(err, errMoved) || errors.Is(err, ErrDead) {
			if dead := p.Alive(); dead != nil {
				return nil, fmt.Errorf("placing process %d: %w", p.pid, dead)
			}
			continue
		}
		if err == nil {
			err = p.Alive()
		}
		if err != nil {
			return nil, fmt.Errorf("placing process %d: %w", p.pid, err)
		}
		if chain[0].Start != p.start {
			return nil, fmt.Errorf("placing process %d: %w", p.pid, ErrDead)
		}
		return chain, nil
	}
	return nil, fmt.Errorf("placing process %d: %w", p.pid, errMoved)
}

func walk(pid int) ([]Ancestor, error) {
	cur, err := readStat(pid)
	if err != nil {
		return nil, err
	}
	chain := []Ancestor{{pid, cur.start}}
	for cur.ppid != 0 { // 0: init, or a parent outside our PID namespace
		if len(chain) == maxAncestors {
			return nil, fmt.Errorf("more than %d ancestors", maxAncestors)
		}
		parent, err := readStat(cur.ppid)
		if err != nil {
			return nil, err
		}
		// Had the parent ended and its pid been used again, the child would have another parent by now.
		again, err := readStat(pid)
		if err != nil {
			return nil, err
		}
		if again != cur {
			return nil, errMoved
		}
		pid, cur = cur.ppid, parent
		chain = append(chain, Ancestor{pid, cur.start})
	}
	return chain, nil
}
