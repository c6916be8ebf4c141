package mcpstdio

import (
	"context"
	"net/http"
	"time"
)

const (
	endTime     = 5 * time.Second
	againAfter  = time.Second // a session's own stream is opened anew, and more and more seldom if it ends at once
	seldomAfter = 30 * time.Second
)

// listen takes the session's own stream, as long as the server has one.
func (c *Client) listen(ctx context.Context) {
	wait := againAfter
	for {
		began := time.Now()
		q, err := http.NewRequestWithContext(ctx, http.MethodGet, c.Endpoint, nil)
		if err != nil {
			return
		}
		q.Header.Set("Accept", "text/event-stream")
		c.headers(q.Header)
		a, err := c.HTTP.Do(q)
		if err == nil {
			if a.StatusCode == http.StatusOK {
				_, err = c.events(a.Body, message{})
			}
			_ = a.Body.Close()
			if a.StatusCode >= 400 && a.StatusCode < 500 {
				return // there is none, or the session is over
			}
		}
		c.Log.DebugContext(ctx, "the session's own stream has ended", "error", err)
		if wait = min(2*wait, seldomAfter); time.Since(began) > seldomAfter {
			wait = againAfter
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// leave ends the session.
func (c *Client) leave(ctx context.Context) {
	c.mu.Lock()
	session := c.session
	c.mu.Unlock()
	if session == "" {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, endTime)
	defer cancel()
	q, err := http.NewRequestWithContext(ctx, http.MethodDelete, c.Endpoint, nil)
	if err != nil {
		return
	}
	c.headers(q.Header)
	if a, err := c.HTTP.Do(q); err == nil {
		_ = a.Body.Close()
	}
}

// headers are those of the session.
func (c *Client) headers(h http.Header) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.session != "" {
		h.Set(sessionHeader, c.session)
	}
	if c.version != "" {
		h.Set(versionHeader, c.version)
	}
}

func (c *Client) speaks() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.version
}
