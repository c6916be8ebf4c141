package mcpd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/internal/eventstream"
	"github.com/deputymesh/deputy/proxy"
)

func refusalOf(err error) *proxy.Refusal {
	if err == nil {
		return nil
	}
	var no *proxy.Refusal
	if !errors.As(err, &no) {
		no = &proxy.Refusal{Class: proxy.ClassUndecided, Reason: err.Error(), Err: err}
	}
	return no
}

// stream passes an event stream on, message by message. Only messages of the protocol go through: names, ids and times of events don't, since
// no stream is resumed here.
func (x *exchange) stream(ctx context.Context, a *http.Response) error {
	if x.m.method == "initialize" {
		// The session's id is in the header, which goes first; its version comes in the stream.
		if err := x.begin(a, message{}); err != nil {
			return err
		}
		defer func() {
			if x.session != nil && (!x.whole || x.denied) {
				x.e.endSession(x.session) // it hasn't begun
			}
		}()
	}
	h := x.w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store")
	x.w.WriteHeader(http.StatusOK)
	x.streaming = true
	flush := http.NewResponseController(x.w).Flush
	if flush() != nil {
		return errGone
	}
	events := eventstream.New(a.Body, maxAnswer, x.holdEvent)
	for {
		data, err := events.Next()
		if errors.Is(err, io.EOF) {
			// A stream of a session's own ends when it likes; one of a request ends with the response.
			if x.m.id != nil {
				return errBroken
			}
			x.whole = true
			return nil
		}
		if errors.Is(err, eventstream.ErrRefused) {
			return fmt.Errorf("%w: %w", errUnclear, err)
		}
		if err != nil {
			return err
		}
		out, last := []byte(nil), false
		if data != nil {
			var m message
			if m, data, err = x.parseAnswer(data); err != nil {
				return fmt.Errorf("%w: %w", errUnclear, err)
			}
			if out, last, err = x.fromServer(ctx, m, data); err != nil {
				return err
			}
			if out == nil {
				x.leaveEvent()
				continue
			}
		}
		x.writeEvent(out)
		if flush() != nil {
			return errGone
		}
		x.leaveEvent()
		if last {
			x.whole = true
			return nil
		}
	}
}

// fromServer decides about one message of a stream: what the agent gets of it, if anything, and whether it was the last.
func (x *exchange) fromServer(ctx context.Context, m message, raw []byte) ([]byte, bool, error) {
	switch m.kind {
	case isNotification:
		if !slices.Contains(notices, m.method) || m.method == "notifications/resources/updated" && !x.mayHear(m) {
			return nil, false, nil
		}
		if masks := x.beside(); masks != nil {
			return masks.notice(m, raw, x.progressToken()), false, nil
		}
		return raw, false, nil
	case isRequest:
		place := x.session != nil && x.session.ask(m.key, m.method)
		no := x.question(ctx, m.method, raw, place)
		if no != nil {
			if place {
				x.session.answer(m.key)
			}
			if x.refusals++; x.refusals > maxRefusals {
				return nil, false, fmt.Errorf("%w: it asks again and again for what it may not", errUnclear)
			}
			if !x.modern {
				x.tellServer(ctx, m, no)
			}
			return nil, false, nil
		}
		if masks := x.beside(); masks != nil {
			if raw = masks.asked(raw); raw == nil {
				return nil, false, fmt.Errorf("%w: no mask can be put on what it asks", errUnclear)
			}
		}
		return raw, false, nil
	}
	if x.m.id == nil || m.key != x.m.key {
		return nil, false, nil // nobody asked on this stream
	}
	x.settled = true
	if x.m.method == "initialize" && m.result != nil && x.session != nil {
		result, err := parseObject(m.result)
		if err != nil {
			return nil, false, fmt.Errorf("%w: %w", errUnclear, err)
		}
		version, err := result.text("protocolVersion")
		if err != nil || !slices.Contains(withSessions, version) {
			return nil, false, fmt.Errorf("%w: it speaks version %.32q", errUnclear, version)
		}
		x.session.speak(version)
	}
	out, err := x.final(ctx, m, raw)
	return out, true, err
}

// progressToken is that of the request; nil without.
func (x *exchange) progressToken() []byte {
	meta, err := x.m.params.object("_meta")
	if err != nil {
		return nil
	}
	return meta["progressToken"]
}

// mayHear says whether the agent may hear of a resource.
func (x *exchange) mayHear(m message) bool {
	uri, err := m.params.text("uri")
	if err != nil || checkURI(uri) != nil {
		return false
	}
	return x.core.Would(proxy.Command{Kind: m.method, Account: x.account.Name, Ops: []proxy.Op{x.e.op("subscribe", actor.MCPResource, uri, "", false)}})
}

// writeEvent writes one message, or a comment that keeps connections alive.
func (x *exchange) writeEvent(data []byte) {
	if data == nil {
		x.write([]byte(":\n\n"))
		return
	}
	var b bytes.Buffer
	b.WriteString("event: message\n")
	for line := range bytes.SplitSeq(data, []byte("\n")) {
		b.WriteString("data: ")
		b.Write(bytes.TrimRight(line, "\r"))
		b.WriteByte('\n')
	}
	b.WriteByte('\n')
	x.write(b.Bytes())
}
