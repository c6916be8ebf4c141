package main

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/deputymesh/deputy/issuer/attest"
	"github.com/deputymesh/deputy/issuer/ca"
	"github.com/deputymesh/deputy/issuer/spawn"
	"github.com/deputymesh/deputy/issuer/workloadapi"
)

// issuerConfig is issuer.yaml: who gets which identity, on whose word.
type issuerConfig struct {
	TrustDomain string `yaml:"trust_domain"`
	// Socket is where workloads and agents find the issuer; its folder belongs to the issuer alone.
	Socket  string         `yaml:"socket"`
	DataDir string         `yaml:"data_dir"`
	CA      issuerCAConfig `yaml:"ca"`
	// JWT is the key of JWT-SVIDs; without it there are none.
	JWT *issuerJWTConfig `yaml:"jwt,omitempty"`
	// SVIDTTL is how long an SVID lives; 1h if empty. It is renewed at half of that.
	SVIDTTL time.Duration `yaml:"svid_ttl,omitempty"`
	// AgentUIDs is the range of host uids for isolated agents. Without it no agent can be isolated.
	AgentUIDs *uidRangeConfig    `yaml:"agent_uids,omitempty"`
	Limits    *spawnLimitsConfig `yaml:"limits,omitempty"`
	Audit     auditConfig        `yaml:"audit"`
	// Entries are the roles and other workloads; Agents are the first-level agents, and who may start them.
	Entries []workloadEntryConfig `yaml:"entries"`
	Agents  []agentEntryConfig    `yaml:"agents"`
}

// issuerCAConfig names the CA's files. Cert holds the signing certificate first, then others that stay in the trust bundle
// (the one before, or the next one); it is read again on SIGHUP.
type issuerCAConfig struct {
	Cert string `yaml:"cert"`
	Key  string `yaml:"key"`
}

// issuerJWTConfig names the files of the JWT authority, whose key is no other authority's. Bundle holds its public key first, then
// others that stay in the JWT bundle (the one before, or the next one); it is read again on SIGHUP. Mesh is the broker's issuer
// URL, which no JWT-SVID may be for.
type issuerJWTConfig struct {
	Key    string `yaml:"key"`
	Bundle string `yaml:"bundle"`
	Mesh   string `yaml:"mesh"`
}

func (c *issuerJWTConfig) check() error {
	switch {
	case c == nil:
		return nil
	case c.Key == "":
		return fieldError("$.jwt.key", "the file of a P-256 key for JWT-SVIDs is expected; `deputy init` writes one")
	case c.Bundle == "":
		return fieldError("$.jwt.bundle", "the file of the public keys of the JWT bundle is expected; `deputy init` writes one")
	}
	return checkMeshAt("$.jwt.mesh", c.Mesh)
}

type uidRangeConfig struct {
	First uint32 `yaml:"first"`
	Last  uint32 `yaml:"last"`
}

// spawnLimitsConfig bounds what agents may start; what is left out has its default.
type spawnLimitsConfig struct {
	Depth      int     `yaml:"depth,omitempty"`
	Children   int     `yaml:"children,omitempty"`
	Subtree    int     `yaml:"subtree,omitempty"`
	FirstLevel int     `yaml:"first_level,omitempty"`
	SpawnRate  float64 `yaml:"spawn_rate,omitempty"`
	SpawnBurst int     `yaml:"spawn_burst,omitempty"`
}

// unixSelectorConfig says which processes an entry is for; all that is given must match.
type unixSelectorConfig struct {
	UID    *uint32 `yaml:"uid,omitempty"`
	GID    *uint32 `yaml:"gid,omitempty"`
	Path   string  `yaml:"path,omitempty"`
	SHA256 string  `yaml:"sha256,omitempty"`
}

type workloadEntryConfig struct {
	SPIFFEID string             `yaml:"spiffe_id"`
	Unix     unixSelectorConfig `yaml:"unix"`
	DNSNames []string           `yaml:"dns_names,omitempty"`
	IPs      []string           `yaml:"ips,omitempty"`
}

type agentEntryConfig struct {
	Name string             `yaml:"name"`
	Unix unixSelectorConfig `yaml:"unix"`
}

// Limits that no configuration may pass. The depth is what a credential of 32 KiB can carry.
const (
	maxSpawnDepth  = 8
	maxSpawnNumber = 100_000
	minSVIDTTL     = time.Minute
	// firstAgentUID keeps the range away from system accounts.
	firstAgentUID = 1000
)

func (c *issuerConfig) check(unsafeDev bool) error {
	td, err := parseTrustDomain(c.TrustDomain, unsafeDev)
	if err != nil {
		return err
	}
	for _, f := range []struct{ path, value, want string }{
		{"$.socket", c.Socket, "the path of a Unix socket is expected, such as /run/deputy/issuer/issuer.sock"},
		{"$.data_dir", c.DataDir, "a folder for the issuer's database is expected"},
		{"$.ca.cert", c.CA.Cert, "the file of the CA certificate is expected; `deputy init` writes one"},
		{"$.ca.key", c.CA.Key, "the file of the CA key is expected; `deputy init` writes one"},
	} {
		if f.value == "" {
			return fieldError(f.path, "%s", f.want)
		}
	}
	if err := c.JWT.check(); err != nil {
		return err
	}
	if c.SVIDTTL != 0 && (c.SVIDTTL < minSVIDTTL || c.SVIDTTL > ca.MaxTTL) {
		return fieldError("$.svid_ttl", "a duration from %s to %s is expected, such as 1h", minSVIDTTL, ca.MaxTTL)
	}
	if r := c.AgentUIDs; r != nil {
		if r.First < firstAgentUID {
			return fieldError("$.agent_uids.first", "a uid of at least %d is expected: smaller ones belong to the system's accounts", firstAgentUID)
		}
		if r.Last < r.First || r.Last >= 1<<32-2 {
			return fieldError("$.agent_uids.last", "a uid from %d to %d is expected", r.First, uint32(1<<32-3))
		}
	}
	if err := c.Limits.check(); err != nil {
		return err
	}
	for i, e := range c.Entries {
		if err := e.check(fmt.Sprintf("$.entries[%d]", i), td, c.uids()); err != nil {
			return err
		}
	}
	for i, e := range c.Agents {
		path := fmt.Sprintf("$.agents[%d]", i)
		if err := spawn.CheckName(e.Name); err != nil {
			return fieldError(path+".name", "a name such as planner is expected: a lower-case letter, then up to 31 lower-case letters, digits and dashes")
		}
		if err := e.Unix.check(path+".unix", c.uids()); err != nil {
			return err
		}
	}
	return c.Audit.check()
}

func (l *spawnLimitsConfig) check() error {
	if l == nil {
		return nil
	}
	if l.Depth < 0 || l.Depth > maxSpawnDepth {
		return fieldError("$.limits.depth", "1 to %d levels are expected", maxSpawnDepth)
	}
	for _, f := range []struct {
		name  string
		value int
	}{{"children", l.Children}, {"subtree", l.Subtree}, {"first_level", l.FirstLevel}, {"spawn_burst", l.SpawnBurst}} {
		if f.value < 0 || f.value > maxSpawnNumber {
			return fieldError("$.limits."+f.name, "1 to %d is expected", maxSpawnNumber)
		}
	}
	if l.SpawnRate < 0 || l.SpawnRate > maxSpawnNumber {
		return fieldError("$.limits.spawn_rate", "agents per second are expected, such as 10")
	}
	return nil
}

func (e workloadEntryConfig) check(path string, td spiffeid.TrustDomain, agents spawn.UIDRange) error {
	id, err := spiffeid.FromString(e.SPIFFEID)
	if err != nil {
		return fieldError(path+".spiffe_id", "a SPIFFE ID is expected, such as %s/deputy/broker", td.IDString())
	}
	if err := ca.CheckRoleID(id, td); err != nil {
		return fieldError(path+".spiffe_id", "%v; a SPIFFE ID such as %s/deputy/broker is expected", err, td.IDString())
	}
	for i, n := range e.DNSNames {
		if !isDNSName(n) {
			return fieldError(fmt.Sprintf("%s.dns_names[%d]", path, i), "a host name in lower case is expected, such as orders-db.corp.example")
		}
	}
	for i, ip := range e.IPs {
		if _, err := netip.ParseAddr(ip); err != nil {
			return fieldError(fmt.Sprintf("%s.ips[%d]", path, i), "an IP address is expected, such as 127.0.0.1")
		}
	}
	return e.Unix.check(path+".unix", agents)
}

func isDNSName(s string) bool {
	if s == "" || len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
	}
	return true
}

func (u unixSelectorConfig) selectors() attest.Selectors {
	return attest.Selectors{UID: u.UID, GID: u.GID, Path: u.Path, SHA256: u.SHA256}
}

func (u unixSelectorConfig) check(path string, agents spawn.UIDRange) error {
	if field, err := u.selectors().Check(); err != nil {
		if field != "" {
			path += "." + field
		}
		return fieldError(path, "%v", err)
	}
	if u.UID != nil && agents.Contains(*u.UID) {
		return fieldError(path+".uid", "a uid outside agent_uids (%d to %d) is expected: those belong to agents", agents.First, agents.Last)
	}
	return nil
}

func (c *issuerConfig) uids() spawn.UIDRange {
	if c.AgentUIDs == nil {
		return spawn.UIDRange{}
	}
	return spawn.UIDRange{First: c.AgentUIDs.First, Last: c.AgentUIDs.Last}
}

func (c *issuerConfig) limits() spawn.Limits {
	if c.Limits == nil {
		return spawn.Limits{}
	}
	return spawn.Limits(*c.Limits)
}

// roles and firstLevel convert what check has seen.
func (c *issuerConfig) roles() (out []workloadapi.Entry, err error) {
	for _, e := range c.Entries {
		id, err := spiffeid.FromString(e.SPIFFEID)
		if err != nil {
			return nil, err
		}
		entry := workloadapi.Entry{ID: id, Selectors: e.Unix.selectors(), DNSNames: e.DNSNames}
		for _, ip := range e.IPs {
			entry.IPs = append(entry.IPs, net.ParseIP(ip))
		}
		out = append(out, entry)
	}
	return out, nil
}

func (c *issuerConfig) firstLevel() (out []spawn.Entry) {
	for _, e := range c.Agents {
		out = append(out, spawn.Entry{Name: e.Name, Selectors: e.Unix.selectors()})
	}
	return out
}
