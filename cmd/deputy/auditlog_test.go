package main

import (
	"context"
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/deputymesh/deputy/audit"
)

// A log that was put back to an earlier state doesn't start where somebody kept a later checkpoint.
func TestALogThatWentBackDoesNotStart(t *testing.T) {
	dir := t.TempDir()
	key, err := audit.GenerateKey(rand.Reader, "corp.example/proxy/main")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "audit.key"), []byte(key.Private()), 0o600); err != nil {
		t.Fatal(err)
	}
	role := spiffeid.RequireFromString("spiffe://corp.example/deputy/proxy/main")
	config := filepath.Join(dir, "proxy.yaml")
	cfg := auditConfig{Dir: "audit", Key: "audit.key", SegmentBytes: minSegmentBytes}
	open := func() (*audit.Log, error) { return openAudit(cfg, config, role, false) }

	log, err := open()
	if err != nil {
		t.Fatal(err)
	}
	early := t.TempDir()
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(filepath.Join(early, "audit"), os.DirFS(filepath.Join(dir, "audit"))); err != nil {
		t.Fatal(err)
	}
	if log, err = open(); err != nil {
		t.Fatal(err)
	}
	if _, err := log.Append(context.Background(), audit.Record{Event: &audit.Revoked{Kind: "user", Issuer: "https://idp.example", Value: "u-1"}}); err != nil {
		t.Fatal(err)
	}
	seen := log.Checkpoint()
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "seen"), seen, 0o600); err != nil {
		t.Fatal(err)
	}
	cfg.Seen = "seen"
	if log, err = open(); err != nil {
		t.Fatalf("the log that holds the checkpoint: %v", err)
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	cfg.Dir = filepath.Join(early, "audit")
	if _, err := open(); !errors.Is(err, audit.ErrRolledBack) {
		t.Errorf("a log that went back: %v, want %v", err, audit.ErrRolledBack)
	}
}

func TestAKeyThatOthersMayReadIsRefused(t *testing.T) {
	dir := t.TempDir()
	key, err := audit.GenerateKey(rand.Reader, "corp.example/proxy/main")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "audit.key"), []byte(key.Private()), 0o644); err != nil {
		t.Fatal(err)
	}
	_, err = openAudit(auditConfig{Dir: "audit", Key: "audit.key"}, filepath.Join(dir, "proxy.yaml"), spiffeid.RequireFromString("spiffe://corp.example/deputy/proxy/main"), false)
	if err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("a key with mode 0644: %v", err)
	}
}

func TestAnotherRolesLogKeyIsRefused(t *testing.T) {
	dir := t.TempDir()
	key, err := audit.GenerateKey(rand.Reader, "corp.example/broker")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "audit.key"), []byte(key.Private()), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = openAudit(auditConfig{Dir: "audit", Key: "audit.key"}, filepath.Join(dir, "proxy.yaml"), spiffeid.RequireFromString("spiffe://corp.example/deputy/proxy/main"), false)
	if err == nil || !strings.Contains(err.Error(), `"corp.example/broker"`) {
		t.Errorf("the broker's log key at a proxy: %v", err)
	}
}

func TestQuotaIsChecked(t *testing.T) {
	good := auditConfig{Dir: "audit", Key: "k"}
	for _, q := range []auditQuotaConfig{{RecordsPerSecond: -1}, {BytesPerSecond: -1}, {BytesPerSecond: 10}} {
		c := good
		c.Quota = &q
		if err := c.check(); err == nil {
			t.Errorf("quota %+v was accepted", q)
		}
	}
	q := &auditQuotaConfig{RecordsPerSecond: 7}
	if b := q.budget(); b.RecordsPerSecond != 7 || b.RecordBurst != 70 || b.BytesPerSecond != audit.DefaultQuota().BytesPerSecond {
		t.Errorf("budget of %+v is %+v", *q, *b)
	}
}
