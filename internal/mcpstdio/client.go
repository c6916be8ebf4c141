package mcpstdio

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"strings"
	"sync"
	"time"
)

const (
	maxAtOnce   = 64 // requests of a client under way
	noticeTime  = time.Minute
	endTime     = 5 * time.Second
	againAfter  = time.Second // a session's own stream is opened anew, and more and more seldom if it ends at once
	seldomAfter = 30 * time.Second
	versionMeta = "io.modelcontextprotocol/protocolVersion"

	versionHeader = "Mcp-Protocol-Version"
	sessionHeader = "Mcp-Session-Id"
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
	r := bufio.NewReaderSize(body, 32<<10)
	for {
		data, err := readEvent(r, maxToClient)
		if err != nil {
			return false, err
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

// versionOf is the version that a message of the stateless protocol names; "" for any other.
func versionOf(params json.RawMessage) string {
	var p struct {
		Meta map[string]json.RawMessage `json:"_meta"`
	}
	var version string
	if json.Unmarshal(params, &p) != nil || json.Unmarshal(p.Meta[versionMeta], &version) != nil {
		return ""
	}
	return version
}

// describe sets the headers that repeat the message (SEP-2243).
func (c *Client) describe(h http.Header, m message) {
	if m.Method == "" {
		return
	}
	h.Set("Mcp-Method", m.Method)
	var p struct {
		Name, URI string
		Arguments map[string]json.RawMessage
	}
	if json.Unmarshal(m.Params, &p) != nil {
		return
	}
	switch m.Method {
	case "tools/call":
		h.Set("Mcp-Name", spell(p.Name))
		c.mu.Lock()
		defer c.mu.Unlock()
		for argument, name := range c.params[p.Name] {
			if value, there := scalar(p.Arguments[argument]); there {
				h.Set("Mcp-Param-"+name, spell(value))
			}
		}
	case "prompts/get":
		h.Set("Mcp-Name", spell(p.Name))
	case "resources/read":
		h.Set("Mcp-Name", spell(p.URI))
	}
}

// learn notes the session's version, and which arguments of tools stand in headers.
func (c *Client) learn(m message, text []byte) {
	var a struct {
		Result struct {
			ProtocolVersion string
			Tools           []struct {
				Name        string
				InputSchema struct {
					Properties map[string]json.RawMessage
				}
			}
		}
	}
	if json.Unmarshal(text, &a) != nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch m.Method {
	case "initialize":
		c.version = a.Result.ProtocolVersion
	case "tools/list":
		for _, t := range a.Result.Tools {
			delete(c.params, t.Name)
			for argument, schema := range t.InputSchema.Properties {
				var s struct {
					Header string `json:"x-mcp-header"`
				}
				if json.Unmarshal(schema, &s) != nil || !isToken(s.Header) || len(c.params) >= maxTools {
					continue
				}
				if c.params[t.Name] == nil {
					c.params[t.Name] = map[string]string{}
				}
				c.params[t.Name][argument] = s.Header
			}
		}
	}
}

const maxTools = 4096

func isToken(s string) bool {
	return s != "" && len(s) <= 64 && strings.Trim(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_") == ""
}

// scalar is an argument as it stands in a header.
func scalar(raw json.RawMessage) (string, bool) {
	switch {
	case len(raw) == 0 || raw[0] == '{' || raw[0] == '[' || string(raw) == "null":
		return "", false
	case raw[0] == '"':
		var s string
		err := json.Unmarshal(raw, &s)
		return s, err == nil
	}
	return string(raw), true
}

// spell writes a value as a header can hold it.
func spell(s string) string {
	plain := s == strings.TrimSpace(s) && !strings.HasPrefix(s, "=?base64?")
	for _, c := range []byte(s) {
		plain = plain && c >= 0x20 && c < 0x7f
	}
	if plain {
		return s
	}
	return "=?base64?" + base64.StdEncoding.EncodeToString([]byte(s)) + "?="
}

// fail answers a request that got no answer; a request that was cancelled gets none.
func (c *Client) fail(ctx context.Context, m message, why string, data any) {
	if ctx.Err() == nil {
		c.write(errorMessage(m.ID, codeInternal, why, data))
	}
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
