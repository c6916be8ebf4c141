package mcpstdio

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"

	"github.com/deputymesh/deputy/internal/eventstream"
)

// request sends a request and writes what comes back, to its response.
func (c *Client) request(ctx context.Context, m message, data []byte) {
	a, err := c.post(ctx, m, data)
	if err != nil {
		c.fail(ctx, m, "the tool server can't be reached through the run's listener: "+err.Error(), nil)
		return
	}
	defer a.Body.Close()
	kind, _, _ := mime.ParseMediaType(a.Header.Get("Content-Type"))
	if kind == "text/event-stream" && a.StatusCode == http.StatusOK {
		c.begun(m, a)
		if answered, err := c.events(a.Body, m); !answered {
			c.fail(ctx, m, fmt.Sprintf("the answer broke off: %v", err), nil)
		}
		return
	}
	text, err := io.ReadAll(io.LimitReader(a.Body, maxToClient+1))
	if err != nil || len(text) > maxToClient {
		c.fail(ctx, m, "the answer broke off, or is longer than is taken", nil)
		return
	}
	answer, err := parse(text)
	if err != nil || !answer.isResponse() {
		c.fail(ctx, m, fmt.Sprintf("HTTP %d: %s", a.StatusCode, detailOf(text)), nil)
		return
	}
	if key(answer.ID) != key(m.ID) { // it was refused before it was read
		var no struct {
			Error struct {
				Code    int
				Message string
				Data    any
			}
		}
		_ = json.Unmarshal(text, &no) // it was parsed already
		c.write(errorMessage(m.ID, no.Error.Code, no.Error.Message, no.Error.Data))
		return
	}
	if a.StatusCode == http.StatusOK {
		c.begun(m, a)
	}
	c.learn(m, text)
	c.write(text)
}

// begun notes the session that an answer to initialize begins.
func (c *Client) begun(m message, a *http.Response) {
	if m.Method != "initialize" {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.session, c.version, c.listening = a.Header.Get(sessionHeader), "", false
}

// events writes the messages of a stream. It says whether the response to m was among them.
func (c *Client) events(body io.Reader, m message) (bool, error) {
	events := eventstream.New(body, maxToClient, nil)
	for {
		data, err := events.Next()
		if err != nil {
			return false, err
		}
		if data == nil {
			continue // it keeps the connection alive
		}
		got, err := parse(data)
		if err != nil {
			return false, err
		}
		mine := m.ID != nil && got.isResponse() && key(got.ID) == key(m.ID)
		if mine {
			c.learn(m, data)
		}
		c.write(data)
		if mine {
			return true, nil
		}
	}
}

// post sends one message with the headers that say the same.
func (c *Client) post(ctx context.Context, m message, data []byte) (*http.Response, error) {
	q, err := http.NewRequestWithContext(ctx, http.MethodPost, c.Endpoint, bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	h := q.Header
	h.Set("Content-Type", "application/json")
	h.Set("Accept", "application/json, text/event-stream")
	if version := versionOf(m.Params); version != "" {
		h.Set(versionHeader, version)
		c.describe(h, m)
	} else if m.Method != "initialize" {
		c.headers(h)
	}
	return c.HTTP.Do(q)
}

// detailOf is what an answer that is no message says.
func detailOf(text []byte) string {
	var problem struct{ Title, Detail string }
	if json.Unmarshal(text, &problem) == nil && problem.Title+problem.Detail != "" {
		return strings.TrimSpace(problem.Title + ": " + problem.Detail)
	}
	s := strings.TrimSpace(string(text[:min(len(text), 512)]))
	if s == "" {
		return "no text"
	}
	return s
}
