package mcpd

import (
	"context"
	"errors"
	"maps"
	"net/http"

	"github.com/deputymesh/deputy/proxy"
	"github.com/deputymesh/deputy/proxy/internal/hop"
)

// refuse records why a request isn't even decided, and says so.
func (x *exchange) refuse(ctx context.Context, scrubbed string, text []byte, f *fault) {
	cmd := proxy.Command{Kind: "message", Text: string(text), Scrubbed: hop.Clip(hop.Printable(scrubbed), 2048), Account: x.account.Name}
	x.sayMore(f.status, f.code, x.core.Refuse(ctx, cmd, proxy.Objection{Class: f.class, Reason: f.reason}), f.data)
}

// deny says what was decided. A decision is an answer to its request, not a failure of HTTP: clients would take that for the end of their
// session. Refused credentials are HTTP's.
func (x *exchange) deny(r *http.Request, err error) {
	if x.streaming {
		panic(http.ErrAbortHandler) // a stream that is cut must not look like one that has ended
	}
	var no *proxy.Refusal
	if !errors.As(err, &no) || x.m.kind != isRequest || x.m.id == nil {
		x.e.hop.Refuse(x.w, r, err)
		return
	}
	switch no.Class {
	case proxy.ClassPolicy, proxy.ClassCapability, proxy.ClassUndecided, hop.ClassUnsupported:
		x.say(http.StatusOK, codeRefused, no)
	default:
		x.e.hop.Refuse(x.w, r, err)
	}
}

// say answers with JSON-RPC's error, as long as there is no answer yet. The reason and the record are in its data.
func (x *exchange) say(status, code int, no *proxy.Refusal) { x.sayMore(status, code, no, nil) }

// sayMore says it with more in the error's data.
func (x *exchange) sayMore(status, code int, no *proxy.Refusal, more map[string]any) {
	x.denied = true
	data := map[string]any{"reason": no.Reason, "class": no.Class, "record": no.RecordID.String()}
	maps.Copy(data, more)
	text := errorMessage(x.m.id, code, no.Error(), data)
	if x.streaming {
		x.writeEvent(text)
		return
	}
	h := x.w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	h.Set("Deputy-Record", no.RecordID.String())
	x.w.WriteHeader(status)
	x.write(text)
}

func refusalMessage(id []byte, code int, no *proxy.Refusal) []byte {
	return errorMessage(id, code, no.Error(), map[string]any{"reason": no.Reason, "class": no.Class, "record": no.RecordID.String()})
}

func (x *exchange) write(b []byte) {
	n, _ := x.w.Write(b) // an agent that is gone hears nothing
	x.bytes += int64(n)
}
