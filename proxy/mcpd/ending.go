package mcpd

import (
	"context"
	"errors"
	"net"
	"net/http"
	"time"

	"github.com/deputymesh/deputy/proxy"
	"github.com/deputymesh/deputy/proxy/internal/hop"
)

// How long telling a server that a session is over may take, how long all of them at a shutdown, how many are told at once, and how often somebody
// looks for those that nobody uses.
const (
	endTime      = 10 * time.Second
	shutdownTime = 5 * time.Second
	maxEnding    = 32
	lookAfter    = time.Minute
)

// Serve accepts agents on l until ctx is done, then ends every connection and every session at the target, and waits for it. It closes l.
func (e *Engine) Serve(ctx context.Context, l net.Listener) error {
	look, stop := context.WithCancel(ctx)
	defer stop()
	looked := make(chan struct{})
	go func() {
		defer close(looked)
		tick := time.NewTicker(lookAfter)
		defer tick.Stop()
		for {
			select {
			case <-look.Done():
				return
			case <-tick.C:
				for _, s := range e.sessions.over(false) {
					e.endSession(s)
				}
			}
		}
	}()
	err := e.hop.Serve(ctx, l, e)
	stop()
	<-looked
	for _, s := range e.sessions.over(true) {
		e.endSession(s)
	}
	e.endMu.Lock()
	e.ended = true
	e.endMu.Unlock()
	late := time.AfterFunc(shutdownTime, e.endNow)
	e.ending.Wait()
	late.Stop()
	e.endNow()
	return err
}

// watch ends a session at the target with its chain: at a revocation at once, and at the end of its last credential.
func (e *Engine) watch(s *mcpSession, core Session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.chains[core.ID()] != nil || len(s.chains) >= maxChains {
		return
	}
	s.chains[core.ID()] = context.AfterFunc(core.Context(), func() {
		s.mu.Lock()
		delete(s.chains, core.ID())
		last := len(s.chains) == 0
		s.mu.Unlock()
		var why *proxy.Ended
		if errors.As(context.Cause(core.Context()), &why) && (why.Class == proxy.ClassRevoked || why.Class == proxy.ClassExpired && last) {
			e.endSession(s)
		}
	})
}

// endSession forgets a session and tells the target that it is over.
func (e *Engine) endSession(s *mcpSession) {
	// Under one lock: of a session that is forgotten already, Serve doesn't know at its end that the target must be told.
	e.endMu.Lock()
	defer e.endMu.Unlock()
	if e.sessions.forget(s) {
		e.tell(s)
	}
}

// endUnbegun tells the target that a session is over of which the agent has never heard.
func (e *Engine) endUnbegun(upstream string, account *hop.Account) {
	e.endMu.Lock()
	defer e.endMu.Unlock()
	e.tell(&mcpSession{upstream: upstream, account: account})
}

// tell tells the target, in the background, that a session is over. It is no act of an agent's. It needs endMu.
func (e *Engine) tell(s *mcpSession) {
	if e.ended {
		return
	}
	e.ending.Go(func() {
		select {
		case e.endSlots <- struct{}{}:
		case <-e.endLife.Done():
			return
		}
		defer func() { <-e.endSlots }()
		ctx, cancel := context.WithTimeout(e.endLife, endTime)
		defer cancel()
		header := http.Header{sessionHeader: {s.upstream}, "User-Agent": {"deputy"}}
		if version := s.speaks(); version != "" {
			header.Set(versionHeader, version)
		}
		a, err := e.send(ctx, s.account, http.MethodDelete, header, nil)
		if err != nil {
			e.cfg.Logger.WarnContext(ctx, "the target wasn't told that a session is over", "target", e.hop.Name(), "error", err)
			return
		}
		drain(a.Body)
		_ = a.Body.Close()
	})
}
