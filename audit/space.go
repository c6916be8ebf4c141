package audit

import (
	"errors"
	"fmt"
)

// Space is what an [FS] offers that knows how full its disk is. Without it the disk's own refusal is the only limit.
type Space interface {
	// Free returns how many bytes may still be written to the disk of dir, and how large it is.
	Free(dir string) (free, total int64, err error)
}

// Holder is what the lock of an [FS] offers that can tell whether its folder is still the one that was locked.
type Holder interface {
	Held() error
}

// held finds that the folder was moved away or replaced: then segments would go where the log isn't.
func (w *writer) held() error {
	if h, ok := w.l.unlock.(Holder); ok {
		return h.Held()
	}
	return nil
}

const (
	maxDefaultFree = 1 << 30
	// defaultFreePart of the disk is left free.
	defaultFreePart = 20
)

// errLowSpace: a segment would take what is left for others.
var errLowSpace = errors.New("too little free space on its disk")

// minFree is how much of a disk of that size the log leaves to others.
func (c *Config) minFree(total int64) int64 {
	if c.MinFree > 0 {
		return c.MinFree
	}
	return min(total/defaultFreePart, maxDefaultFree)
}

// mayGrow refuses a segment that would leave less free than MinFree. A log that fills its disk to the last byte
// would stop its neighbours, and whoever has to make room there. It tells the quota what is left.
func (w *writer) mayGrow() error {
	disk, ok := w.l.cfg.FS.(Space)
	if !ok {
		return nil
	}
	free, total, err := disk.Free(w.l.cfg.Dir)
	if err != nil {
		return fmt.Errorf("looking for free space: %w", err)
	}
	keep := w.l.cfg.minFree(total)
	left := free - w.l.cfg.SegmentSize - keep
	w.l.quota.room.Store(max(left, 0))
	if left < 0 {
		return fmt.Errorf("%w: %d bytes, and %d of them stay free", errLowSpace, free, keep)
	}
	return nil
}
