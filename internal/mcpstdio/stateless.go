package mcpstdio

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"syscall"
	"time"
)

// single is a request of the stateless protocol with a process of its own: without sessions, nothing else would keep the processes of two users apart.
// What the process writes can be for that request only.
type single struct {
	p    *process
	m    message
	call *call

	gone context.Context // done when nothing more comes, or nobody takes it
	end  context.CancelCauseFunc

	written chan struct{} // closed once the server has the whole request
}

// errClosed is the end of a subscription that the server has ended, which over HTTP is the end of its stream.
var errClosed = errors.New("it has cancelled the request")

// alone starts a process for a request, relays its answer, and ends the process.
func (s *Server) alone(w http.ResponseWriter, r *http.Request, m message, body []byte) {
	p, err := s.start(r.Context())
	if err != nil {
		s.notBegun(w, m, err)
		return
	}
	one := &single{p: p, m: m, call: &call{messages: make(chan []byte)}, written: make(chan struct{})}
	one.gone, one.end = context.WithCancelCause(r.Context())
	var ran sync.WaitGroup
	ran.Go(one.read)
	ran.Go(func() { one.write(body) })
	out := &stream{w: w, gone: one.gone}
	_, answered := out.relay(r.Context(), one.call, m, func(answer message) int { return statusOf(m.Method, answer) })
	one.end(errors.New("its request is over"))
	s.places.ends()
	go func() {
		if !answered {
			one.cancel()
		}
		s.stop(p, &ran)
		s.cfg.Log.Info("a request's process has ended", "method", m.Method, "reason", context.Cause(one.gone), "server", p.err)
	}()
}

// read gives on what the process writes, until its answer is taken or the process may write no more.
func (o *single) read() {
	var late *time.Timer
	for {
		data, err := o.p.next()
		last := false
		if err == nil {
			last, err = o.check(data)
		} else if errors.Is(err, io.EOF) {
			err = errors.New("it wrote no more before the answer; what it wrote to the standard error of deputy mcp may say why")
		}
		if errors.Is(err, errClosed) {
			if late == nil { // its result may still come
				late = time.AfterFunc(quitTime, func() { o.end(errClosed) })
				defer late.Stop()
			}
			continue
		}
		if err != nil {
			o.end(err)
			return
		}
		select {
		case o.call.messages <- data:
		case <-o.gone.Done():
			return
		}
		if last {
			return
		}
	}
}

// check says whether a message is the answer. An error says why the process may write no more.
func (o *single) check(data []byte) (answer bool, err error) {
	got, err := parse(data)
	switch {
	case err != nil:
		return false, fmt.Errorf("it wrote what is no message of JSON-RPC: %w", err)
	case got.isRequest():
		return false, fmt.Errorf("it asked the client (%.64q), which it can by its result alone where there is no session; begin one with initialize", got.Method)
	case got.isResponse() && (got.ID == nil || key(got.ID) != key(o.m.ID)):
		return false, errors.New("it answered another request than the one that it got")
	case got.Method == "notifications/cancelled":
		var p struct{ RequestID json.RawMessage }
		if json.Unmarshal(got.Params, &p) == nil && p.RequestID != nil && key(p.RequestID) == key(o.m.ID) {
			return false, errClosed
		}
	}
	return got.isResponse(), nil
}

// write gives the process the request. A process that closes its input says by its output what it thinks of the request.
func (o *single) write(body []byte) {
	switch err := o.p.send(body, writeTime); {
	case err == nil:
		close(o.written)
	case !errors.Is(err, syscall.EPIPE):
		o.end(err)
	}
}

// cancel tells a process that has the request that nobody waits for its answer any more.
func (o *single) cancel() {
	select {
	case <-o.written:
	default:
		return
	}
	data, err := json.Marshal(map[string]any{"jsonrpc": "2.0", "method": "notifications/cancelled", "params": map[string]any{"requestId": o.m.ID}})
	if err == nil {
		_ = o.p.send(data, quitTime) // it ends in any case
	}
}

// statusOf is HTTP's status for an answer, by the codes that the protocol has one for. A client of both eras takes a refusal of server/discover with 400
// for a server that knows sessions alone (2026-07-28, "Streamable HTTP", Backward Compatibility).
func statusOf(method string, answer message) int {
	var fault struct{ Code int }
	switch {
	case answer.Result != nil:
		return http.StatusOK
	case json.Unmarshal(answer.Error, &fault) == nil && fault.Code == codeNoMethod:
		return http.StatusNotFound
	case method == "server/discover" || fault.Code == codeParams || fault.Code <= codeHeaders && fault.Code >= codeVersion:
		return http.StatusBadRequest
	}
	return http.StatusOK
}

// notice answers what belongs to no session and is no request: no process is there for it. A request is cancelled by closing its response, which has
// been done when a client says so, too.
func notice(w http.ResponseWriter, m message) {
	if m.Method == "notifications/cancelled" {
		w.WriteHeader(http.StatusAccepted)
		return
	}
	say(w, http.StatusBadRequest, nil, codeInvalid, "it belongs to no session, so no process takes it: without a session, what a server asks is answered by calling again (inputResponses)")
}
