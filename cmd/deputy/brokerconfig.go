package main

import (
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"time"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/broker/claims"
	"github.com/deputymesh/deputy/broker/session"
	"github.com/deputymesh/deputy/broker/tokenapi"
	"github.com/deputymesh/deputy/internal/target"
)

// brokerConfig is broker.yaml: whose sign-ins count, which targets there are, who serves them.
type brokerConfig struct {
	TrustDomain string        `yaml:"trust_domain"`
	Mesh        string        `yaml:"mesh"` // issuer URL: the web listener as clients see it
	WorkloadAPI string        `yaml:"workload_api"`
	First       identityFiles `yaml:"first_svid,omitempty"`
	// IssuerSocket is where the issuer says which agents ended; the same as WorkloadAPI if empty.
	IssuerSocket string `yaml:"issuer_socket,omitempty"`
	// Listen is the mesh listener, for agents; FeedListen is for proxies.
	Listen     string `yaml:"listen"`
	FeedListen string `yaml:"feed_listen"`
	// TokenURL is the mesh listener as agents see it, for metadata; https://<listen> if empty.
	TokenURL string          `yaml:"token_url,omitempty"`
	Web      brokerWebConfig `yaml:"web"`
	DataDir  string          `yaml:"data_dir"`
	// TokenKey signs delegated tokens; TokenKeyStatement is the certifying key's word for it.
	TokenKey          string `yaml:"token_key"`
	TokenKeyStatement string `yaml:"token_key_statement"`
	CertifyingKey     string `yaml:"certifying_key"` // the public half alone
	// Policy is a signed set for the first start; PolicyKeys are the public keys it must be signed by.
	Policy     string   `yaml:"policy,omitempty"`
	PolicyKeys []string `yaml:"policy_keys"`

	IdentityProviders []brokerProviderConfig `yaml:"identity_providers"`
	Targets           []brokerTargetConfig   `yaml:"targets"`
	Sessions          brokerSessionsConfig   `yaml:"sessions,omitempty"`
	MaxActors         int                    `yaml:"max_actors,omitempty"`
	Delegations       []delegationConfig     `yaml:"delegations,omitempty"`
	OpenSessions      []openSessionConfig    `yaml:"open_sessions,omitempty"`
	Audit             auditConfig            `yaml:"audit"`
}

type brokerWebConfig struct {
	Listen string `yaml:"listen"`
	Cert   string `yaml:"cert"`
	Key    string `yaml:"key"`
}

// brokerProviderConfig is an identity provider, and what its claims give: RoleMap from values of the claim
// to roles in the mesh, OperatorRoles to roles in operator calls. A value that isn't listed gives nothing.
type brokerProviderConfig struct {
	Issuer        string            `yaml:"issuer"`
	ClientID      string            `yaml:"client_id"`
	Algorithms    []string          `yaml:"algorithms"`
	CAFile        string            `yaml:"ca_file,omitempty"`
	RolesClaim    string            `yaml:"roles_claim,omitempty"`
	RoleMap       map[string]string `yaml:"role_map,omitempty"`
	OperatorRoles map[string]string `yaml:"operator_roles,omitempty"`
}

func (p brokerProviderConfig) common() identityProviderConfig {
	return identityProviderConfig{Issuer: p.Issuer, ClientID: p.ClientID, Algorithms: p.Algorithms, CAFile: p.CAFile}
}

type brokerTargetConfig struct {
	Name string `yaml:"name"`
	Kind string `yaml:"kind"`
	// Proxies that serve it: spiffe://<trust_domain>/deputy/proxy/<name>.
	Proxies []string `yaml:"proxies"`
	// Roles that may get tokens for it; every user if empty.
	Roles []string `yaml:"roles,omitempty"`
}

type brokerSessionsConfig struct {
	Max      time.Duration `yaml:"max,omitempty"`       // after the sign-in; 12h if empty
	TokenTTL time.Duration `yaml:"token_ttl,omitempty"` // 5m if empty
}

// openSessionConfig lets agents open sessions with an ID token alone, without a grant by the user's login
// key. Such sessions rest on the broker's word; proxies refuse them unless their target says root: broker.
type openSessionConfig struct {
	Agents   string   `yaml:"agents"` // pattern such as /agent/web/*
	Issuer   string   `yaml:"issuer"`
	Subjects []string `yaml:"subjects,omitempty"`
	Roles    []string `yaml:"roles,omitempty"`
	// AuthorizationDetails is the ceiling of such a session (RFC 9396).
	AuthorizationDetails []map[string]any `yaml:"authorization_details"`
}

func (c *brokerConfig) check(unsafeDev bool) error {
	if _, err := parseTrustDomain(c.TrustDomain, unsafeDev); err != nil {
		return err
	}
	if err := checkMesh(c.Mesh); err != nil {
		return err
	}
	for _, f := range []struct{ path, value, want string }{
		{"$.workload_api", c.WorkloadAPI, "the issuer's Unix socket is expected, such as /run/deputy/issuer/issuer.sock"},
		{"$.data_dir", c.DataDir, "a folder for the broker's database is expected"},
		{"$.web.cert", c.Web.Cert, "the file of the web listener's certificate is expected"},
		{"$.web.key", c.Web.Key, "the file of the web listener's key is expected"},
		{"$.token_key", c.TokenKey, "the file of the token key is expected; `deputy init` writes one"},
		{"$.token_key_statement", c.TokenKeyStatement, "the file of the certifying key's statement about the token key is expected; `deputy init` writes one"},
		{"$.certifying_key", c.CertifyingKey, "the file of the certifying key's public half is expected; the private one doesn't belong on this host"},
	} {
		if f.value == "" {
			return fieldError(f.path, "%s", f.want)
		}
	}
	for _, a := range []struct{ path, value string }{{"$.listen", c.Listen}, {"$.feed_listen", c.FeedListen}, {"$.web.listen", c.Web.Listen}} {
		if err := checkAddress(a.path, a.value); err != nil {
			return err
		}
	}
	if c.TokenURL != "" {
		if u, err := url.Parse(c.TokenURL); err != nil || u.Scheme != "https" || u.Host == "" || u.Path != "" || u.RawQuery != "" || u.Fragment != "" {
			return fieldError("$.token_url", "the mesh listener's URL is expected, such as https://broker.corp.example:7401, without a path")
		}
	}
	if len(c.PolicyKeys) == 0 {
		return fieldError("$.policy_keys", "at least one public key file is expected, to refuse a wrong set early")
	}
	if c.Sessions.Max < 0 || c.Sessions.Max > 7*24*time.Hour || c.Sessions.Max != 0 && c.Sessions.Max < time.Minute {
		return fieldError("$.sessions.max", "a duration from 1m to 168h is expected, such as 12h")
	}
	if c.Sessions.TokenTTL < 0 || c.Sessions.TokenTTL > actor.TokenLife || c.Sessions.TokenTTL != 0 && c.Sessions.TokenTTL < time.Minute {
		return fieldError("$.sessions.token_ttl", "a duration from 1m to %s is expected", actor.TokenLife)
	}
	if c.MaxActors < 0 || c.MaxActors > actor.HardMaxActors {
		return fieldError("$.max_actors", "a number from 1 to %d is expected", actor.HardMaxActors)
	}
	for i, d := range c.Delegations {
		if _, err := d.pair(); err != nil {
			return fieldError(fmt.Sprintf("$.delegations[%d]", i), "%v", err)
		}
	}
	if err := c.checkProviders(); err != nil {
		return err
	}
	if err := c.checkTargets(); err != nil {
		return err
	}
	for i, o := range c.OpenSessions {
		if err := c.checkOpen(fmt.Sprintf("$.open_sessions[%d]", i), o); err != nil {
			return err
		}
	}
	return c.Audit.check()
}

func (c *brokerConfig) checkProviders() error {
	var common []identityProviderConfig
	for _, p := range c.IdentityProviders {
		common = append(common, p.common())
	}
	if err := checkProviders(common); err != nil {
		return err
	}
	for i, p := range c.IdentityProviders {
		at := fmt.Sprintf("$.identity_providers[%d]", i)
		if slices.ContainsFunc(c.IdentityProviders[:i], func(q brokerProviderConfig) bool { return q.Issuer == p.Issuer }) {
			return fieldError(at+".issuer", "each provider stands here once; %s is there already", p.Issuer)
		}
		if p.RolesClaim == "" && len(p.RoleMap)+len(p.OperatorRoles) > 0 {
			return fieldError(at+".roles_claim", "the name of the ID token's member that role_map and operator_roles are about is expected, such as groups")
		}
		for value, role := range p.RoleMap {
			if value == "" || role == "" {
				return fieldError(at+".role_map", "pairs of a claim's value and a role are expected, such as dba-team: dba")
			}
		}
		for _, role := range p.OperatorRoles {
			if _, err := claims.ParseOperator(role); err != nil {
				return fieldError(at+".operator_roles", "%v", err)
			}
		}
	}
	return nil
}

func (c *brokerConfig) checkTargets() error {
	if len(c.Targets) == 0 {
		return fieldError("$.targets", "at least one target is expected (name, kind, proxies)")
	}
	for i, t := range c.Targets {
		at := fmt.Sprintf("$.targets[%d]", i)
		if _, err := target.ParseName(t.Name); err != nil {
			return fieldError(at+".name", "%v", err)
		}
		if slices.ContainsFunc(c.Targets[:i], func(o brokerTargetConfig) bool { return o.Name == t.Name }) {
			return fieldError(at+".name", "each target stands here once; %s is there already", t.Name)
		}
		if _, err := target.ParseKind(t.Kind); err != nil {
			return fieldError(at+".kind", "%v", err)
		}
		if len(t.Proxies) == 0 {
			return fieldError(at+".proxies", "at least one name of a proxy is expected: without one nobody serves the target")
		}
		for _, p := range t.Proxies {
			if _, err := target.ParseName(p); err != nil {
				return fieldError(at+".proxies", "%q is no proxy's name: want a lower-case letter, then letters, digits and hyphens", p)
			}
		}
	}
	return nil
}

func (c *brokerConfig) checkOpen(at string, o openSessionConfig) error {
	if !slices.ContainsFunc(c.IdentityProviders, func(p brokerProviderConfig) bool { return p.Issuer == o.Issuer }) {
		return fieldError(at+".issuer", "the issuer of one of identity_providers is expected")
	}
	if len(o.Subjects)+len(o.Roles) == 0 {
		return fieldError(at, "subjects or roles are expected: they say for which users")
	}
	if _, err := o.permission(); err != nil {
		return fieldError(at, "%v", err)
	}
	return nil
}

func (o openSessionConfig) permission() (session.Permission, error) {
	agents, err := actor.ParsePathPattern(o.Agents)
	if err != nil {
		return session.Permission{}, fmt.Errorf("agents: %w", err)
	}
	raw, err := json.Marshal(o.AuthorizationDetails)
	if err != nil {
		return session.Permission{}, fmt.Errorf("authorization_details: %w", err)
	}
	ceiling, err := actor.ParseDetails(raw)
	if err != nil {
		return session.Permission{}, fmt.Errorf("authorization_details: %w", err)
	}
	return session.Permission{Agents: agents, Issuer: o.Issuer, Subjects: o.Subjects, Roles: o.Roles, Cap: ceiling}, nil
}

// mappings are what the providers' claims give. The configuration was checked.
func (c *brokerConfig) mappings() claims.Mappings {
	out := make(claims.Mappings)
	for _, p := range c.IdentityProviders {
		m := claims.Mapping{Claim: p.RolesClaim, Roles: p.RoleMap, Operators: make(map[string]claims.Operator)}
		for value, role := range p.OperatorRoles {
			m.Operators[value] = claims.Operator(role)
		}
		out[p.Issuer] = m
	}
	return out
}

// meshTargets are the targets, and the targets of each proxy.
func (c *brokerConfig) meshTargets() (map[target.Name]tokenapi.Target, map[string][]target.Name, error) {
	targets, proxies := make(map[target.Name]tokenapi.Target), make(map[string][]target.Name)
	for _, t := range c.Targets {
		name, err := target.ParseName(t.Name)
		if err != nil {
			return nil, nil, err
		}
		kind, err := target.ParseKind(t.Kind)
		if err != nil {
			return nil, nil, err
		}
		targets[name] = tokenapi.Target{Kind: kind, Roles: t.Roles}
		for _, p := range t.Proxies {
			if !slices.Contains(proxies[p], name) {
				proxies[p] = append(proxies[p], name)
			}
		}
	}
	return targets, proxies, nil
}
