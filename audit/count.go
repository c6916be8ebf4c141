package audit

// countKey is what refusals are counted by.
type countKey struct{ class, txn string }

// Count counts a refusal of somebody who isn't authenticated yet. Counts become one [Refused] record
// per class at the next heartbeat, so that nobody can fill the log from outside.
func (l *Log) Count(class string) { l.count(countKey{class: class}, nil) }

func (l *Log) count(key countKey, chain *Chain) {
	l.countMu.Lock()
	defer l.countMu.Unlock()
	c, ok := l.counts[key]
	if !ok {
		if len(l.counts) >= maxClasses {
			key = countKey{class: "other"}
			c = l.counts[key]
		}
		if c == nil {
			now := l.cfg.Now().UTC().Round(0)
			c = &Refused{Class: key.class, Since: &now, chain: chain, txn: key.txn}
			l.counts[key] = c
		}
	}
	c.Count++
}

// takeCounts returns what was counted since the last call.
func (l *Log) takeCounts() []*Refused {
	l.countMu.Lock()
	defer l.countMu.Unlock()
	var all []*Refused
	for key, c := range l.counts {
		all = append(all, c)
		delete(l.counts, key)
	}
	return all
}

// recount takes back what couldn't be recorded.
func (l *Log) recount(c *Refused) {
	l.countMu.Lock()
	defer l.countMu.Unlock()
	key := countKey{c.Class, c.txn}
	if have := l.counts[key]; have != nil {
		have.Count, have.Since = have.Count+c.Count, c.Since
		return
	}
	l.counts[key] = c
}
