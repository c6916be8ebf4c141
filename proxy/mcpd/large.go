package mcpd

import "io"

// Messages are held whole. Small ones are bounded by the number of requests; large ones by the places for them, so that neither agents nor
// servers can fill the memory of the proxy.
const (
	small    = 128 << 10
	maxLarge = 32
)

// readAll reads at most one byte more than max.
func (x *exchange) readAll(r io.Reader, max int) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, small))
	if err != nil || len(data) < small {
		return data, err
	}
	if !x.takeLarge() {
		return nil, errLarge
	}
	rest, err := io.ReadAll(io.LimitReader(r, int64(max-small+1)))
	return append(data, rest...), err
}

// takeLarge takes a place for a large message, which the exchange keeps to its end.
func (x *exchange) takeLarge() bool {
	if x.large {
		return true
	}
	select {
	case x.e.large <- struct{}{}:
		x.large = true
	default:
	}
	return x.large
}

// holdEvent takes a place for an event of size bytes if it is large.
func (x *exchange) holdEvent(size int) error {
	if size > small && !x.takeLarge() {
		return errLarge
	}
	return nil
}

// leaveEvent gives back the place of an event that has gone through, unless what the agent sent has it: a stream may stay open for hours.
func (x *exchange) leaveEvent() {
	if x.large && !x.asked {
		<-x.e.large
		x.large = false
	}
}

func (x *exchange) leaveLarge() {
	if x.large {
		<-x.e.large
	}
}
