package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/deputymesh/deputy/broker/claims"
	"github.com/deputymesh/deputy/internal/idp"
	"github.com/deputymesh/deputy/issuer/spawn"
	"github.com/deputymesh/deputy/policy"
)

// plainWord is what may stand in a configuration without quotes, whatever YAML makes of other characters.
var plainWord = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._:/@-]*[A-Za-z0-9_/-])?$`)

// check finds what each flag's value gets wrong by itself, and what the flags get wrong together.
func (o *initOptions) check(p *meshPlan) error {
	if err := (idp.Provider{Issuer: o.identityProvider, ClientID: o.clientID, Algorithms: o.algorithms}).Check(); err != nil {
		return fmt.Errorf("--identity-provider, --client-id, --algorithm: %w", err)
	}
	for _, w := range []struct{ flag, value string }{
		{"--identity-provider", o.identityProvider}, {"--client-id", o.clientID}, {"--roles-claim", o.rolesClaim}, {"--mesh", p.Mesh},
	} {
		if !plainWord.MatchString(w.value) {
			return fmt.Errorf("%s %q: letters, digits and ._:/@- are expected", w.flag, w.value)
		}
	}
	for flag, path := range map[string]string{"--identity-provider-ca": o.providerCA, "--postgres-ca": o.postgresCA} {
		if path == "" {
			continue
		}
		if _, err := readPool(path); err != nil {
			return fmt.Errorf("%s: %w", flag, err)
		}
	}
	for _, name := range o.agents {
		if err := spawn.CheckName(name); err != nil {
			return fmt.Errorf("--agent %q: a name such as planner is expected: a lower-case letter, then up to 31 lower-case letters, digits and dashes", name)
		}
	}
	return errors.Join(p.checkRoles(), p.checkTargets(), p.checkPlaces())
}

// checkRoles holds the roles of users, of operators and of accounts against each other.
func (p *meshPlan) checkRoles() error {
	for _, r := range p.OperatorRoles {
		if _, err := claims.ParseOperator(r.Role); err != nil {
			return fmt.Errorf("--operator %s=%s: %w", r.Claim, r.Role, err)
		}
	}
	for flag, roles := range map[string][]claimRole{"--role": p.Roles, "--operator": p.OperatorRoles} {
		seen := make(map[string]bool)
		for _, r := range roles {
			if seen[r.Claim] {
				return fmt.Errorf("%s: the group %s is there twice; a group gives one role", flag, r.Claim)
			}
			seen[r.Claim] = true
		}
	}
	for _, a := range p.Targets[0].Accounts {
		if !slices.ContainsFunc(p.Roles, func(r claimRole) bool { return r.Role == a.Role }) {
			return fmt.Errorf("--account %s=%s: no --role gives a user the role %s, so nobody could ever use this account; add --role GROUP=%s", a.Role, a.Name, a.Role, a.Role)
		}
	}
	return nil
}

func (p *meshPlan) checkTargets() error {
	seen := make(map[string]bool)
	for _, t := range p.Targets {
		if seen[t.Name] {
			return fmt.Errorf("--postgres: the target %s is there twice", t.Name)
		}
		seen[t.Name] = true
		if _, port, err := net.SplitHostPort(t.Address); err != nil || !isPort(port) {
			return fmt.Errorf("--postgres %s: %s has no port between 1 and 65535", t.Name, t.Address)
		}
		for _, w := range []string{t.Address, t.Database} {
			if !plainWord.MatchString(w) {
				return fmt.Errorf("--postgres %s: %q: letters, digits and ._:/@- are expected", t.Name, w)
			}
		}
		for _, a := range t.Accounts {
			if !plainWord.MatchString(a.Name) || !plainWord.MatchString(a.Role) {
				return fmt.Errorf("--account %s=%s: letters, digits and ._:/@- are expected", a.Role, a.Name)
			}
			if _, err := readSecret(a.source); err != nil {
				return fmt.Errorf("--account %s=%s: %w", a.Role, a.Name, err)
			}
		}
	}
	return p.checkPolicy()
}

func isPort(s string) bool {
	n, err := strconv.Atoi(s)
	return err == nil && n > 0 && n < 1<<16
}

// checkPolicy demands a set that is sound and speaks about every target: about others it can allow nothing.
func (p *meshPlan) checkPolicy() error {
	if p.Policy == "" {
		return errors.New("--policy: a folder with a policy set is expected: without one nothing is allowed. examples/policy is one to start from")
	}
	source, err := readPolicyFolder(p.Policy)
	if err != nil {
		return fmt.Errorf("--policy: %w", err)
	}
	if err := policy.Check(source); err != nil {
		return fmt.Errorf("--policy %s: %w", p.Policy, err)
	}
	for _, t := range p.Targets {
		if _, ok := source.Targets[t.Name]; !ok {
			return fmt.Errorf("--policy %s: its policy.yaml doesn't name the target %s, so nothing would be allowed there; add it under `targets:`", p.Policy, t.Name)
		}
	}
	return nil
}

// checkPlaces demands that the roles' uids can reach their program and their folders.
func (p *meshPlan) checkPlaces() error {
	if strings.ContainsAny(p.Dir, "#:,{}[]\"'\\\t\n") {
		return fmt.Errorf("%s: a folder without quotes, commas, colons, brackets and # in its path is expected", p.Dir)
	}
	me := os.Getuid()
	if me != 0 || p.IssuerUID == me && p.BrokerUID == me && p.ProxyUID == me {
		return nil
	}
	if dir := closedFolder(p.Binary); dir != "" {
		return fmt.Errorf("the roles' uids can't run %s, since %s is closed to them; install deputy where everybody can run it, such as /usr/local/bin, and run init from there", p.Binary, dir)
	}
	if dir := closedFolder(p.Dir); dir != "" {
		return fmt.Errorf("the roles' uids can't reach %s, since %s is closed to them; choose another folder, or run: chmod o+x %s", p.Dir, dir, dir)
	}
	return nil
}

// closedFolder is the first folder above path that others can't pass.
func closedFolder(path string) string {
	for dir := filepath.Dir(path); ; dir = filepath.Dir(dir) {
		if info, err := os.Stat(dir); err == nil && info.Mode().Perm()&0o001 == 0 {
			return dir
		}
		if dir == filepath.Dir(dir) {
			return ""
		}
	}
}

// readBack reads every configuration as its role will, so that what init wrote can be started from.
func (p *meshPlan) readBack() error {
	read := []func() error{
		func() error {
			return readable(p.path("issuer", "issuer.yaml"), func(c *issuerConfig) error { return errors.Join(c.check(p.unsafeDev), c.checkAccounts()) })
		},
		func() error {
			return readable(p.path("broker", "broker.yaml"), func(c *brokerConfig) error { return c.check(p.unsafeDev) })
		},
		func() error {
			return readable(p.path("proxy", "proxy.yaml"), func(c *proxyConfig) error { return c.check(p.unsafeDev) })
		},
		func() error { return readable(p.path("agent", "agent.yaml"), (*agentConfig).check) },
	}
	if p.ProviderCA == sampleCA {
		read = append(read, func() error {
			return readable(p.path("sample-signin", "sample-signin.yaml"), (*sampleSignInConfig).check)
		})
	}
	return firstOf(read...)
}

func readable[T any](path string, check func(*T) error) error {
	if _, err := loadConfig(path, check); err != nil {
		return fmt.Errorf("a role would refuse what these flags give: %w", err)
	}
	return nil
}
