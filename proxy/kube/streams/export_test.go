package streams

import (
	"io"

	"github.com/moby/spdystream/spdy"
)

// ReadFrames reads frames as they are read from a peer, until an error.
func ReadFrames(r io.Reader, each func(spdy.Frame)) error {
	in, err := newFrames(r)
	for err == nil {
		var f spdy.Frame
		if f, err = in.next(); err == nil {
			each(f)
		}
	}
	return err
}
