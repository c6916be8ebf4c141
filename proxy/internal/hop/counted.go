package hop

import (
	"io"
	"sync/atomic"
)

// Counted adds the bytes that are read of a body to N.
type Counted struct {
	io.ReadCloser
	N *atomic.Int64
}

func (c Counted) Read(b []byte) (int, error) {
	n, err := c.ReadCloser.Read(b)
	c.N.Add(int64(n))
	return n, err
}
