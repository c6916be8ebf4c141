package client

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// renewal keeps the session of a relay alive.
type renewal struct {
	target     Target
	source     Source
	credential func(ctx context.Context) (Credential, error)
	log        *slog.Logger
}

// run presents a fresh credential for a live session at three quarters of the old one's life, until
// ctx is done or the old one ended; then the proxy cuts the session.
func (r *renewal) run(ctx context.Context, session string, expires time.Time) {
	log := r.log.With("target", r.target.Name)
	for {
		left := time.Until(expires)
		wait := left * 3 / 4
		for {
			if !sleep(ctx, wait) {
				return
			}
			next, err := r.once(ctx, session)
			if err == nil {
				expires = next
				break
			}
			if ctx.Err() != nil {
				return
			}
			left = time.Until(expires)
			if left <= 0 {
				log.WarnContext(ctx, "the session could not be renewed and ends", "error", err)
				return
			}
			wait = min(max(left/4, time.Second), 15*time.Second)
			log.WarnContext(ctx, "renewing the session failed; trying again", "in", wait, "error", err)
		}
	}
}

func (r *renewal) once(ctx context.Context, session string) (time.Time, error) {
	cred, err := r.credential(ctx)
	if err != nil {
		return time.Time{}, err
	}
	return cred.ExpiresAt, r.present(ctx, session, cred)
}

// present is POST /sessions/{id}/credential on the proxy's renewal listener.
func (r *renewal) present(ctx context.Context, session string, cred Credential) error {
	if len(session) > 128 {
		return fmt.Errorf("renewing: the proxy named a session of %d bytes", len(session))
	}
	svid, err := r.source.GetX509SVID()
	if err != nil {
		return fmt.Errorf("renewing: %w", err)
	}
	u := strings.TrimSuffix(r.target.RenewalURL, "/") + "/sessions/" + url.PathEscape(session) + "/credential"
	ctx, cancel := context.WithTimeout(ctx, exchangeTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u, strings.NewReader(cred.Reveal()))
	if err != nil {
		return fmt.Errorf("renewing: %w", err)
	}
	req.Header.Set("Content-Type", "text/plain")
	resp, err := meshHTTPClient(svid, r.source, r.target.Proxy).Do(req)
	if err != nil {
		return fmt.Errorf("renewing: %w", err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
	if err != nil {
		return fmt.Errorf("renewing: %w", err)
	}
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return fmt.Errorf("renewing: the proxy answered HTTP %d: %s", resp.StatusCode, printable(strings.TrimSpace(string(text))))
	}
	return nil
}

// sleep waits, and says whether ctx lasted.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(max(d, 0))
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
