package kube

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/deputymesh/deputy/policy"
	"github.com/deputymesh/deputy/proxy"
	"github.com/deputymesh/deputy/proxy/internal/hop"
	"github.com/deputymesh/deputy/proxy/internal/recording"
	"github.com/deputymesh/deputy/proxy/kube/streams"
)

// bridge carries a request that leaves HTTP: exec, attach or port-forward.
func (x *exchange) bridge(ctx context.Context, r *http.Request) error {
	// Where it is ended from here, the agent hears why: over SPDY kubectl takes an end that nobody explains for a success.
	ctx, end := context.WithCancelCause(ctx)
	over := make(chan struct{})
	stop := x.e.hop.Parting(r, func(why error) {
		end(why)
		<-over
	})
	defer func() {
		stop()
		close(over)
		end(nil)
	}()
	q, err := x.outgoing(ctx, r)
	if err != nil {
		return err
	}
	cfg := streams.Config{Request: q, RoundTrip: x.account.Leave}
	if x.cmd.Kind == "portforward" {
		cfg.Kind, cfg.AllowPort = streams.PortForward, x.allowPort
	} else if x.pass.Obligations().Record == policy.RecordFull {
		cfg.Recorder = x.recorder(ctx)
	}
	// The outcome, before the agent's connection is closed and its session with it.
	cfg.Ended = func(result streams.Result, err error) {
		x.took(result, err)
		_ = x.complete(ctx, x.outcome(err))
	}
	x.pass.Forwarded(0)
	result, err := streams.Bridge(x.w, r.WithContext(ctx), cfg)
	x.took(result, err)
	if no := (*streams.NotBegun)(nil); errors.As(err, &no) {
		if ctx.Err() == nil {
			x.e.cfg.Logger.InfoContext(ctx, "a stream didn't begin", "target", x.e.hop.Name(), "error", no)
		}
		class := hop.ClassMalformed
		if no.Status >= 500 {
			class = "target"
		}
		x.begun = true
		writeStatus(x.w, no.Status, &proxy.Refusal{Class: class, Reason: no.Reason, RecordID: x.pass.RecordID()})
		return err
	}
	x.begun = true // nothing more can be said in HTTP
	return err
}

// took notes what became of a stream. A command whose end nobody told is cut.
func (x *exchange) took(result streams.Result, err error) {
	x.status, x.bytes = result.Status, result.Received
	x.sent.Store(result.Sent)
	if result.Exit != nil {
		x.exit, x.failed = "exit "+strconv.Itoa(result.Exit.Code), result.Exit.Code != 0
	}
	x.whole = err == nil && (result.Exit != nil || x.cmd.Kind != "exec" || result.Status != http.StatusSwitchingProtocols)
}

// recorder keeps what passes of a command as the command's own evidence.
func (x *exchange) recorder(ctx context.Context) *recording.Recorder {
	title := x.user + "@" + x.e.hop.Name() + ": " + hop.Clip(x.cmd.Scrubbed, 256)
	return recording.New(recording.Terminal{Width: 80, Height: 24, Title: title}, time.Now, func(piece []byte) error { return x.pass.Keep(ctx, piece) })
}

// allowPort decides on one forwarded connection, and puts it on record.
func (x *exchange) allowPort(ctx context.Context, port uint16) (func(sent, received int64), error) {
	o := x.cmd.Ops[0].Resource.Kube
	o.Port = port
	text := fmt.Sprintf("portforward %s/%s port %d", o.Namespace, o.Name, port)
	cmd := proxy.Command{Kind: "portforward", Text: text, Scrubbed: text, Account: x.account.Name, Ops: []proxy.Op{x.e.op("portforward", o)}, Check: x.cmd.Check}
	pass, err := x.core.Authorize(ctx, cmd)
	if err != nil {
		return nil, err
	}
	if err := pass.Use(); err != nil {
		_ = pass.Completed(ctx, proxy.Outcome{Status: "not_sent"})
		return nil, err
	}
	pass.Forwarded(0)
	return func(sent, received int64) {
		status := "ok"
		if x.core.Context().Err() != nil || x.e.hop.Ending() {
			status = "cut"
		}
		if err := pass.Completed(context.WithoutCancel(ctx), proxy.Outcome{Status: status, Sent: sent, Bytes: received}); err != nil {
			x.e.cfg.Logger.ErrorContext(ctx, "an outcome couldn't be recorded", "error", err)
		}
	}, nil
}
