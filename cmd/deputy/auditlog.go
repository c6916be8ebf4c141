package main

import (
	"crypto/hkdf"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"os"
	"strings"

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
	// MinFreeBytes of the log's disk stay free for others; a twentieth of the disk, at most 1 GiB, if empty.
	MinFreeBytes int64 `yaml:"min_free_bytes,omitempty"`
	// Quota bounds what one task may write; what is left out has its default.
	Quota *auditQuotaConfig `yaml:"quota,omitempty"`
	// Seen is a file with a checkpoint that the log must still contain, such as `deputy audit verify --save` writes:
	// a log that was put back to an earlier state doesn't start.
	Seen string `yaml:"seen,omitempty"`
}

// auditQuotaConfig holds rates; a burst may be ten times a second's worth.
type auditQuotaConfig struct {
	RecordsPerSecond int `yaml:"records_per_second,omitempty"`
	BytesPerSecond   int `yaml:"bytes_per_second,omitempty"`
	// DiskPercent of the room left on the log's disk is what one user may fill in a day; 12 if empty.
	DiskPercent int `yaml:"disk_percent,omitempty"`
}

const (
	quotaBurst = 10
	// minQuotaBytes lets the largest record through.
	minQuotaBytes = 1 << 20
)

// budget is the quota with its defaults filled in.
func (q *auditQuotaConfig) budget() *audit.QuotaConfig {
	if q == nil {
		return nil
	}
	b := audit.DefaultQuota()
	if q.RecordsPerSecond > 0 {
		b.RecordsPerSecond, b.RecordBurst = float64(q.RecordsPerSecond), quotaBurst*q.RecordsPerSecond
	}
	if q.BytesPerSecond > 0 {
		b.BytesPerSecond, b.ByteBurst = float64(q.BytesPerSecond), quotaBurst*q.BytesPerSecond
	}
	if q.DiskPercent > 0 {
		b.DiskShare = float64(q.DiskPercent) / 100
	}
	return &b
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
	if c.MinFreeBytes < 0 {
		return fieldError("$.audit.min_free_bytes", "a number of bytes above 0 is expected, such as 1073741824")
	}
	if q := c.Quota; q != nil && (q.DiskPercent < 0 || q.DiskPercent > 100) {
		return fieldError("$.audit.quota.disk_percent", "a number from 1 to 100 is expected")
	}
	if q := c.Quota; q != nil && (q.RecordsPerSecond < 0 || q.BytesPerSecond < 0 || q.BytesPerSecond > 0 && q.BytesPerSecond < minQuotaBytes) {
		return fieldError("$.audit.quota", "records_per_second above 0 and bytes_per_second of at least %d are expected", minQuotaBytes)
	}
	return nil
}

// logName is the name of a role's log: the trust domain, and the role's path without /deputy.
func logName(role spiffeid.ID) string {
	return role.TrustDomain().Name() + strings.TrimPrefix(role.Path(), "/deputy")
}

// openAudit opens the log of a role. The key that hashes scrubbed statements is derived from the log's
// own key, so that there is one secret to keep, and it never stands in the log.
func openAudit(c auditConfig, config string, role spiffeid.ID, dev bool) (*audit.Log, error) {
	path := beside(config, c.Key)
	if err := checkPrivate(path); err != nil {
		return nil, fmt.Errorf("reading the log key: %w", err)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading the log key: %w", err)
	}
	key, err := audit.ParseKey(string(raw))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	// Otherwise two roles could sign with one key, and nobody could tell their logs apart.
	if want := logName(role); key.Origin() != want {
		return nil, fmt.Errorf("log key %s is the key of %q; this role's log is %q. Give each role its own key", path, key.Origin(), want)
	}
	hashKey, err := hkdf.Key(sha256.New, []byte(key.Private()), nil, "deputy audit text hash v1", sha256.Size)
	if err != nil {
		return nil, err
	}
	var seen []byte
	if c.Seen != "" {
		if seen, err = os.ReadFile(beside(config, c.Seen)); err != nil {
			return nil, fmt.Errorf("reading the checkpoint that the log must contain: %w", err)
		}
	}
	log, err := audit.Open(audit.Config{
		Dir: beside(config, c.Dir), Source: role.String(), Dev: dev, Key: key, OldKeys: c.OldKeys,
		HashKey: hashKey, Logger: slog.Default(), SegmentSize: c.SegmentBytes, MinFree: c.MinFreeBytes, Quota: c.Quota.budget(), Seen: seen,
	})
	if err != nil {
		return nil, err
	}
	return log, nil
}
