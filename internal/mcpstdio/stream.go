package mcpstdio

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
)

// stream writes an event stream.
type stream struct {
	w     http.ResponseWriter
	gone  context.Context // done when nothing more comes, with the reason as its cause
	begun bool
}

// next waits for the next message, and keeps a stream that has begun alive.
func (o *stream) next(ctx context.Context, c *call) ([]byte, error) {
	alive := time.NewTicker(keepAlive)
	defer alive.Stop()
	for {
		select {
		case data := <-c.messages:
			return data, nil
		case <-o.gone.Done():
			return nil, fmt.Errorf("the server has ended: %w", context.Cause(o.gone))
		case <-ctx.Done():
			return nil, fmt.Errorf("the client has left, or the shim ends: %w", ctx.Err())
		case <-c.replaced:
			return nil, errors.New("another stream took its place")
		case <-alive.C:
			if o.begun {
				_, _ = io.WriteString(o.w, ":\n\n")
				o.flush()
			}
		}
	}
}

// relay writes what comes for a request, to its response: as JSON with the status of that, or as a stream once something comes before. It gives the
// response, if there was one.
func (o *stream) relay(ctx context.Context, c *call, m message, status func(answer message) int) (answer message, answered bool) {
	for {
		data, err := o.next(ctx, c)
		switch {
		case err == nil:
		case o.begun && errors.Is(err, errClosed):
			return message{}, false
		case o.begun:
			o.event(errorMessage(m.ID, codeInternal, err.Error(), nil))
			return message{}, false
		default:
			say(o.w, http.StatusBadGateway, m.ID, codeInternal, err.Error()) // who is gone hears nothing
			return message{}, false
		}
		answer, err := parse(data)
		if last := err == nil && answer.isResponse(); !last || o.begun {
			o.event(data)
			if last {
				return answer, true
			}
			continue
		}
		o.w.Header().Set("Content-Type", "application/json")
		o.w.WriteHeader(status(answer))
		_, _ = o.w.Write(data) // who is gone hears nothing
		return answer, true
	}
}

func (o *stream) begin() {
	o.begun = true
	o.w.Header().Set("Content-Type", "text/event-stream")
	o.w.Header().Set("Cache-Control", "no-store")
	o.w.WriteHeader(http.StatusOK)
	o.flush()
}

func (o *stream) event(data []byte) {
	if !o.begun {
		o.begin()
	}
	text, err := line(data)
	if err != nil {
		return // what can't be parsed isn't passed on
	}
	var b bytes.Buffer
	b.WriteString("event: message\ndata: ")
	b.Write(text)
	b.WriteByte('\n')
	_, _ = o.w.Write(b.Bytes()) // who is gone hears nothing
	o.flush()
}

func (o *stream) flush() { _ = http.NewResponseController(o.w).Flush() }
