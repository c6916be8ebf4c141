package sqlparse

import (
	"container/list"
	"sync"
)

// cache keeps the facts of recent texts, bounded by bytes; the least recently used go first.
type cache struct {
	max int

	mu    sync.Mutex
	size  int
	order *list.List // of *entry, most recent first
	byKey map[string]*list.Element
}

// entry is what a key comes to. Its statements are shared and never changed.
type entry struct {
	key        string
	statements []Statement
	// tail counts the bytes of the text behind the only statement of a template.
	tail int
	size int
}

// entryOverhead is about what an entry takes besides key and facts.
const entryOverhead = 256

func newCache(max int) *cache {
	return &cache{max: max, order: list.New(), byKey: map[string]*list.Element{}}
}

func (c *cache) get(key string) (*entry, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.byKey[key]
	if !ok {
		return nil, false
	}
	c.order.MoveToFront(e)
	return e.Value.(*entry), true
}

// put adds an entry whose facts took size bytes on the wire.
func (c *cache) put(e *entry, size int) {
	e.size = 2*len(e.key) + size + entryOverhead
	if e.size > c.max/8 {
		return // one text must not push everything out
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.byKey[e.key]; ok {
		return
	}
	c.byKey[e.key] = c.order.PushFront(e)
	c.size += e.size
	for c.size > c.max {
		last := c.order.Back()
		old := c.order.Remove(last).(*entry)
		delete(c.byKey, old.key)
		c.size -= old.size
	}
}
