package main

import (
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/internal/target"
)

// proxyConfig is proxy.yaml: everything that the proxy believes without being told.
type proxyConfig struct {
	TrustDomain string `yaml:"trust_domain"`
	// Name of this proxy: its identity is spiffe://<trust_domain>/deputy/proxy/<name>.
	Name        string        `yaml:"name"`
	Mesh        string        `yaml:"mesh"`
	WorkloadAPI string        `yaml:"workload_api"`
	First       identityFiles `yaml:"first_svid,omitempty"`
	DataDir     string        `yaml:"data_dir"`
	// Feed is where the broker's feed listens.
	Feed string `yaml:"feed"`
	// Staleness is how old the feed may be before everything is refused; 10s if empty.
	Staleness time.Duration `yaml:"staleness,omitempty"`
	// CertifyingKey is the public key that vouches for the broker's token keys; PolicyKeys sign policy sets.
	CertifyingKey string   `yaml:"certifying_key"`
	PolicyKeys    []string `yaml:"policy_keys"`

	IdentityProviders []identityProviderConfig `yaml:"identity_providers"`
	// RenewalListen takes fresh credentials of live sessions.
	RenewalListen string         `yaml:"renewal_listen"`
	Targets       []targetConfig `yaml:"targets"`
	Audit         auditConfig    `yaml:"audit"`
}

// identityProviderConfig is one identity provider whose sign-ins are believed.
type identityProviderConfig struct {
	Issuer     string   `yaml:"issuer"`
	ClientID   string   `yaml:"client_id"`
	Algorithms []string `yaml:"algorithms"`
	CAFile     string   `yaml:"ca_file,omitempty"`
}

type targetConfig struct {
	Name   string `yaml:"name"`
	Kind   string `yaml:"kind"`
	Listen string `yaml:"listen"`
	// Root is what is demanded of the sign-in: verified (default) or broker.
	Root        string             `yaml:"root,omitempty"`
	MaxActors   int                `yaml:"max_actors,omitempty"`
	Delegations []delegationConfig `yaml:"delegations,omitempty"`
	Postgres    *postgresConfig    `yaml:"postgres,omitempty"`
	SSH         *sshConfig         `yaml:"ssh,omitempty"`
	HTTP        *httpConfig        `yaml:"http,omitempty"`
	TCP         *tcpConfig         `yaml:"tcp,omitempty"`
	MCP         *mcpConfig         `yaml:"mcp,omitempty"`
	Kube        *kubeConfig        `yaml:"kube,omitempty"`
}

// delegationConfig allows grants to others than direct children, as path patterns such as /agent/planner/*.
type delegationConfig struct {
	From string `yaml:"from"`
	To   string `yaml:"to"`
}

type postgresConfig struct {
	Address         string          `yaml:"address"`
	ServerName      string          `yaml:"server_name,omitempty"`
	CAFile          string          `yaml:"ca_file"`
	Databases       []string        `yaml:"databases"`
	DefaultDatabase string          `yaml:"default_database,omitempty"`
	Schemas         []string        `yaml:"schemas,omitempty"`
	Accounts        []accountConfig `yaml:"accounts"`
	// NoChannelBinding allows SCRAM without channel binding, for poolers that can't bind.
	NoChannelBinding bool `yaml:"no_channel_binding,omitempty"`
	// PlainCancel accepts CancelRequests without TLS.
	PlainCancel bool `yaml:"plain_cancel,omitempty"`
}

// accountConfig is an account at the target and the roles of users that may use it. It has a password, a client certificate
// with its key, or both.
type accountConfig struct {
	Name            string   `yaml:"name"`
	PasswordFile    string   `yaml:"password_file,omitempty"`
	CertificateFile string   `yaml:"certificate_file,omitempty"`
	KeyFile         string   `yaml:"key_file,omitempty"`
	Roles           []string `yaml:"roles"`

	// What stands in the files, once read.
	password    string
	certificate *clientCertificate
}

func (a *accountConfig) check(path string) error {
	switch {
	case a.Name == "":
		return fieldError(path, "name is expected")
	case (a.CertificateFile == "") != (a.KeyFile == ""):
		return fieldError(path, "certificate_file and key_file go together")
	case a.PasswordFile == "" && a.CertificateFile == "":
		return fieldError(path, "password_file, or certificate_file and key_file, are expected")
	}
	return nil
}

func (c *proxyConfig) id(unsafeDev bool) (spiffeid.ID, error) {
	td, err := parseTrustDomain(c.TrustDomain, unsafeDev)
	if err != nil {
		return spiffeid.ID{}, err
	}
	if _, err := target.ParseName(c.Name); err != nil {
		return spiffeid.ID{}, fieldError("$.name", "a name such as orders is expected: lower-case letters, digits and dashes")
	}
	return spiffeid.FromSegments(td, "deputy", "proxy", c.Name)
}

func (c *proxyConfig) check(unsafeDev bool) error {
	if _, err := c.id(unsafeDev); err != nil {
		return err
	}
	if err := checkMesh(c.Mesh); err != nil {
		return err
	}
	for path, v := range map[string]string{"$.workload_api": c.WorkloadAPI, "$.data_dir": c.DataDir, "$.certifying_key": c.CertifyingKey} {
		if v == "" {
			return fieldError(path, "a path is expected")
		}
	}
	if err := checkAddress("$.feed", c.Feed); err != nil {
		return err
	}
	if err := checkAddress("$.renewal_listen", c.RenewalListen); err != nil {
		return err
	}
	if c.Staleness < 0 || c.Staleness > time.Minute {
		return fieldError("$.staleness", "a duration up to 1m is expected, such as 10s")
	}
	if len(c.PolicyKeys) == 0 {
		return fieldError("$.policy_keys", "at least one public key file is expected: without one no policy is believed")
	}
	if err := checkProviders(c.IdentityProviders); err != nil {
		return err
	}
	if len(c.Targets) == 0 {
		return fieldError("$.targets", "at least one target is expected")
	}
	for i := range c.Targets {
		if err := c.Targets[i].check(fmt.Sprintf("$.targets[%d]", i)); err != nil {
			return err
		}
	}
	return c.Audit.check()
}

func checkProviders(ps []identityProviderConfig) error {
	if len(ps) == 0 {
		return fieldError("$.identity_providers", "at least one provider is expected (issuer, client_id, algorithms)")
	}
	for i, p := range ps {
		if err := p.provider(nil).Check(); err != nil {
			return fieldError(fmt.Sprintf("$.identity_providers[%d]", i), "%v", err)
		}
	}
	return nil
}

func (t *targetConfig) check(path string) error {
	if _, err := target.ParseName(t.Name); err != nil {
		return fieldError(path+".name", "a name such as orders-db is expected: lower-case letters, digits and dashes")
	}
	if err := checkAddress(path+".listen", t.Listen); err != nil {
		return err
	}
	switch t.Root {
	case "", string(actor.RootVerified), string(actor.RootBroker):
	default:
		return fieldError(path+".root", "verified or broker is expected")
	}
	for i, d := range t.Delegations {
		at := fmt.Sprintf("%s.delegations[%d]", path, i)
		if _, err := d.pair(); err != nil {
			return fieldError(at, "%v", err)
		}
	}
	if _, err := target.ParseKind(t.Kind); err != nil {
		return fieldError(path+".kind", "postgres, ssh, kube, http, mcp or tcp is expected; this version has no engine for other kinds")
	}
	for kind, there := range map[string]bool{"postgres": t.Postgres != nil, "ssh": t.SSH != nil, "http": t.HTTP != nil, "tcp": t.TCP != nil, "mcp": t.MCP != nil, "kube": t.Kube != nil} {
		if there && kind != t.Kind {
			return fieldError(path+"."+kind, "this stands at a target of the kind %s only", kind)
		}
	}
	switch t.Kind {
	case "postgres":
		return t.Postgres.check(path + ".postgres")
	case "ssh":
		return t.SSH.check(path + ".ssh")
	case "http":
		return t.HTTP.check(path + ".http")
	case "tcp":
		return t.TCP.check(path + ".tcp")
	case "kube":
		return t.Kube.check(path + ".kube")
	default:
		return t.MCP.check(path + ".mcp")
	}
}

func (p *postgresConfig) check(path string) error {
	if p == nil {
		return fieldError(path, "address, ca_file, databases and accounts are expected")
	}
	if err := checkAddress(path+".address", p.Address); err != nil {
		return err
	}
	if p.CAFile == "" {
		return fieldError(path+".ca_file", "the CA of the server's certificate is expected: upstream connections are always verified")
	}
	if len(p.Databases) == 0 {
		return fieldError(path+".databases", "at least one database is expected")
	}
	if len(p.Accounts) == 0 {
		return fieldError(path+".accounts", "at least one account is expected (name, password_file, roles)")
	}
	for i, a := range p.Accounts {
		if err := a.check(fmt.Sprintf("%s.accounts[%d]", path, i)); err != nil {
			return err
		}
	}
	return nil
}

func (d delegationConfig) pair() (actor.DelegationPair, error) {
	from, err := actor.ParsePathPattern(d.From)
	if err != nil {
		return actor.DelegationPair{}, err
	}
	to, err := actor.ParsePathPattern(d.To)
	if err != nil {
		return actor.DelegationPair{}, err
	}
	return actor.DelegationPair{Delegator: from, Delegate: to}, nil
}
