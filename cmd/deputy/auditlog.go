package main

import (
	"crypto/hkdf"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"os"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/deputymesh/deputy/audit"
)

// A segment must hold a few of the largest records, and be quick to make.
const (
	minSegmentBytes = 1 << 20
	maxSegmentBytes = 1 << 30
	segmentStep     = 4096
)

// auditConfig is the `audit` section of a role's configuration.
type auditConfig struct {
	Dir string `yaml:"dir"`
	// Key is a file with the log's private key, PRIVATE+KEY+…, mode 0600.
	Key string `yaml:"key"`
	// OldKeys are earlier public keys of the log.
	OldKeys []string `yaml:"old_keys,omitempty"`
	// SegmentBytes is the size of one file of the log, taken from the disk when it is made; 16 MiB if empty.
	SegmentBytes int64 `yaml:"segment_bytes,omitempty"`
}

func (c auditConfig) check() error {
	if c.Dir == "" {
		return fieldError("$.audit.dir", "the folder of the role's log is expected")
	}
	if c.Key == "" {
		return fieldError("$.audit.key", "the file of the log's key is expected; `deputy init` writes one")
	}
	if c.SegmentBytes != 0 && (c.SegmentBytes < minSegmentBytes || c.SegmentBytes > maxSegmentBytes || c.SegmentBytes%segmentStep != 0) {
		return fieldError("$.audit.segment_bytes", "a multiple of %d from %d to %d is expected, such as 16777216", segmentStep, minSegmentBytes, maxSegmentBytes)
	}
	return nil
}

// openAudit opens the log of a role. The key that hashes scrubbed statements is derived from the log's
// own key, so that there is one secret to keep, and it never stands in the log.
func openAudit(c auditConfig, config string, role spiffeid.ID, dev bool) (*audit.Log, error) {
	path := beside(config, c.Key)
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("reading the log key: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("log key %s may be read by others (mode %04o); run: chmod 600 %s", path, info.Mode().Perm(), path)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading the log key: %w", err)
	}
	key, err := audit.ParseKey(string(raw))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	hashKey, err := hkdf.Key(sha256.New, []byte(key.Private()), nil, "deputy audit text hash v1", sha256.Size)
	if err != nil {
		return nil, err
	}
	log, err := audit.Open(audit.Config{
		Dir: beside(config, c.Dir), Source: role.String(), Dev: dev, Key: key, OldKeys: c.OldKeys,
		HashKey: hashKey, Logger: slog.Default(), SegmentSize: c.SegmentBytes,
	})
	if err != nil {
		return nil, fmt.Errorf("opening the audit log: %w", err)
	}
	return log, nil
}
