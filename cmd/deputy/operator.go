//go:build linux

package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/deputymesh/deputy/internal/login"
	sessionv1 "github.com/deputymesh/deputy/proto/deputy/session/v1"
)

const (
	maxOperatorAnswer = 1 << 20
	maxSignedPolicy   = 1 << 20
)

// operatorCall sends a signed-in operator's call to the broker's web listener: the ID token says who,
// the proof of the login key that it is really them.
func operatorCall(ctx context.Context, config, act, path, contentType string, body []byte, answer any) error {
	cfg, err := loadAgentConfig(config)
	if err != nil {
		return err
	}
	conn, session, err := dialSession(ctx, cfg)
	if err != nil {
		return err
	}
	defer conn.Close()
	sum := sha256.Sum256(body)
	signed, err := session.SignOperatorRequest(ctx, &sessionv1.SignOperatorRequestRequest{Act: act, BodySha256: sum[:]})
	if err != nil {
		return fmt.Errorf("signing the call: %w", err)
	}
	var ca []byte
	if cfg.Broker.WebCAFile != "" {
		if ca, err = os.ReadFile(cfg.Broker.WebCAFile); err != nil {
			return fmt.Errorf("reading the CA of the broker's web listener: %w", err)
		}
	}
	hc, err := login.HTTPClient(ca)
	if err != nil {
		return err
	}
	hc.Timeout = 30 * time.Second
	hc.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimSuffix(cfg.Broker.WebURL, "/")+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", contentType)
	req.Header.Set("Authorization", "Bearer "+signed.GetIdToken())
	req.Header.Set("Deputy-Operator-Proof", signed.GetProof())
	resp, err := hc.Do(req)
	if err != nil {
		return fmt.Errorf("calling the broker: %w", err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxOperatorAnswer))
	if err != nil {
		return fmt.Errorf("reading the broker's answer: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		var refusal struct {
			Error       string `json:"error"`
			Description string `json:"error_description"`
		}
		if json.Unmarshal(raw, &refusal) != nil || refusal.Error == "" {
			return fmt.Errorf("the broker's web listener at %s answered HTTP %d; is broker.web_url right in agent.yaml?", cfg.Broker.WebURL, resp.StatusCode)
		}
		return fmt.Errorf("the broker refused: %s: %s", printableText(refusal.Error), printableText(refusal.Description))
	}
	if err := json.Unmarshal(raw, answer); err != nil {
		return fmt.Errorf("the broker's answer: %w", err)
	}
	return nil
}

// appliedAnswer is what the broker says about what it sent to the proxies.
type appliedAnswer struct {
	ID       string    `json:"id"`
	Version  uint64    `json:"version"`
	Revision uint64    `json:"revision"`
	Expires  time.Time `json:"expires_at"`
	Applied  []struct {
		Proxy         string `json:"proxy"`
		SessionsEnded uint32 `json:"sessions_ended"`
	} `json:"applied"`
	Pending []string `json:"pending"`
}

// ended is how many live sessions it ended.
func (a appliedAnswer) ended() (n uint32) {
	for _, p := range a.Applied {
		n += p.SessionsEnded
	}
	return n
}

func (a appliedAnswer) print(w io.Writer, sessions bool) error {
	for _, p := range a.Applied {
		if sessions {
			fmt.Fprintf(w, "  %s: in force, %s ended\n", printableText(p.Proxy), counted(int(p.SessionsEnded), "live session"))
		} else {
			fmt.Fprintf(w, "  %s: in force\n", printableText(p.Proxy))
		}
	}
	for _, p := range a.Pending {
		fmt.Fprintf(w, "  %s: not confirmed; it refuses everything once its feed is stale\n", printableText(p))
	}
	if len(a.Pending) > 0 {
		return exitCode(3)
	}
	return nil
}
