package mcpstdio

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"sync"
	"time"
)

const (
	maxAtOnce  = 64 // requests of a client under way
	noticeTime = time.Minute
)

// Client relays a local client's standard input and output to a tool server's endpoint.
type Client struct {
	// Endpoint is the server's URL.
	Endpoint string
	// HTTP makes the requests, without a time limit of its own; http.DefaultClient if nil.
	HTTP *http.Client
	Log  *slog.Logger

	out   io.Writer
	outMu sync.Mutex // one line at a time
	ended context.CancelCauseFunc

	work    sync.WaitGroup // requests
	streams sync.WaitGroup // what ends with the input

	mu        sync.Mutex
	over      bool   // nothing more is begun; guarded by mu, as is what follows
	version   string // of the session
	session   string
	listening bool
	underWay  map[string]context.CancelFunc // requests, by id
	params    map[string]map[string]string  // by tool: the arguments that stand in headers, too
}

// Serve relays until in has ended and every request of it is answered, ctx is done, or out takes no more. A message over its limit is an error.
func (c *Client) Serve(ctx context.Context, in io.Reader, out io.Writer) error {
	if c.HTTP == nil {
		c.HTTP = http.DefaultClient
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	c.out, c.underWay, c.params = out, map[string]context.CancelFunc{}, map[string]map[string]string{}
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	c.ended = end
	listen, drained := context.WithCancel(ctx)
	defer drained()
	read := make(chan error, 1)
	go func() { read <- c.read(ctx, listen, in) }() // a read of standard input can't be broken off: it may outlive Serve, with the process
	var err error
	select {
	case err = <-read:
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	if err != nil {
		end(err)
	}
	// Half-closed: what was asked is answered; what would go on for ever ends.
	drained()
	c.mu.Lock()
	c.over = true
	c.mu.Unlock()
	c.work.Wait()
	c.streams.Wait()
	c.leave(context.WithoutCancel(ctx))
	if err == nil {
		err = context.Cause(ctx) // of a request meanwhile
	}
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// read takes the client's messages until their end.
func (c *Client) read(ctx, listen context.Context, in io.Reader) error {
	slots := make(chan struct{}, maxAtOnce)
	r := bufio.NewReaderSize(in, 32<<10)
	for {
		data, err := readLine(r, maxToServer)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading the client: %w", err)
		}
		m, err := parse(data)
		if err != nil {
			c.write(errorMessage(nil, codeInvalid, "no message of JSON-RPC: "+err.Error(), nil))
			continue
		}
		if !m.isRequest() {
			c.notice(ctx, listen, m, data)
			continue
		}
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		life, group := ctx, &c.work
		if m.Method == "subscriptions/listen" { // it has no answer before its end
			life, group = listen, &c.streams
		}
		own, cancel := context.WithCancel(life)
		c.mu.Lock()
		c.underWay[key(m.ID)] = cancel
		c.mu.Unlock()
		c.start(group, func() {
			defer func() { <-slots }()
			c.request(own, m, data)
			c.mu.Lock()
			delete(c.underWay, key(m.ID))
			c.mu.Unlock()
			cancel()
		})
	}
}

// notice sends a notification or a response, in its turn.
func (c *Client) notice(ctx, listen context.Context, m message, data []byte) {
	if m.Method == "notifications/cancelled" && c.cancelled(m) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, noticeTime)
	defer cancel()
	a, err := c.post(ctx, m, data)
	if err != nil {
		c.Log.WarnContext(ctx, "a message was not sent", "method", m.Method, "error", err)
		return
	}
	text, _ := io.ReadAll(io.LimitReader(a.Body, 4<<10))
	_ = a.Body.Close()
	if a.StatusCode >= 400 {
		c.Log.WarnContext(ctx, "a message was refused", "method", m.Method, "status", a.StatusCode, "answer", string(text))
		return
	}
	c.mu.Lock()
	start := m.Method == "notifications/initialized" && c.session != "" && !c.listening
	c.listening = c.listening || start
	c.mu.Unlock()
	if start {
		c.start(&c.streams, func() { c.listen(listen) })
	}
}

// cancelled ends a request of the stateless protocol, which is how it is cancelled over HTTP. It says whether it was one.
func (c *Client) cancelled(m message) bool {
	var p struct {
		RequestID json.RawMessage `json:"requestId"`
	}
	if json.Unmarshal(m.Params, &p) != nil || c.speaks() != "" && versionOf(m.Params) == "" {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if cancel, there := c.underWay[key(p.RequestID)]; there {
		cancel()
	}
	return true
}

// start runs f unless the relay is ending already.
func (c *Client) start(group *sync.WaitGroup, f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.over {
		group.Go(f)
	}
}

// fail answers a request that got no answer; a request that was cancelled gets none.
func (c *Client) fail(ctx context.Context, m message, why string, data any) {
	if ctx.Err() == nil {
		c.write(errorMessage(m.ID, codeInternal, why, data))
	}
}

// write gives the client one message.
func (c *Client) write(data []byte) {
	text, err := line(data)
	if err != nil {
		c.Log.Warn("an answer isn't JSON", "error", err)
		return
	}
	c.outMu.Lock()
	defer c.outMu.Unlock()
	if _, err := c.out.Write(text); err != nil {
		c.ended(fmt.Errorf("writing to the client: %w", err))
	}
}
