package main

import (
	"bytes"
	"embed"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"text/template"

	"github.com/spf13/cobra"

	"github.com/deputymesh/deputy/internal/target"
)

//go:embed templates/*.yaml
var templates embed.FS

// initOptions are the flags of `deputy init`.
type initOptions struct {
	trustDomain      string
	mesh             string
	basePort         int
	identityProvider string
	clientID         string
	algorithms       []string
	providerCA       string
	rolesClaim       string
	roles            []string
	operators        []string
	sampleUsers      []string
	postgres         []string
	postgresCA       string
	accounts         []string
	agents           []string
	policy           string
	uids             []string
	agentUIDs        string
	starterUIDs      []int
	unsafeDev        bool
}

// meshPlan is what the templates and the key maker work from.
type meshPlan struct {
	Dir, Binary            string
	TrustDomain, Mesh      string
	Socket, ProxyName      string
	WebListen, TokenListen string
	FeedListen             string
	RenewalListen          string
	SignInListen           string
	IdentityProvider       string
	ClientID, Algorithms   string
	ProviderCA             string // file to copy, or "sample"
	RolesClaim             string
	Roles, OperatorRoles   []claimRole
	Targets                []planTarget
	Agents                 []string
	SampleUsers            []planUser
	Policy                 string
	StarterUIDs            []int
	FirstAgentUID          int
	LastAgentUID           int
	IssuerUID, BrokerUID   int
	ProxyUID, SignInUID    int
	unsafeDev, uidsGiven   bool
}

type claimRole struct{ Claim, Role string }

type planTarget struct {
	Name, Listen, Address, Database, CA string
	Accounts                            []planAccount
}

type planAccount struct{ Role, Name, PasswordFile, source string }

type planUser struct{ Name, Subject, Group, Password string }

// sampleCA says that the identity provider is the sample sign-in server, whose CA init makes.
const sampleCA = "sample"

func newInitCommand() *cobra.Command {
	var o initOptions
	cmd := &cobra.Command{
		Use:   "init DIR",
		Short: "Make all that a mesh needs to start: keys, configuration, registration entries",
		Long: "Writes into DIR, which must not exist or be empty, a folder per role: its keys (0600), its first SVID and its\n" +
			"configuration. operator/ holds the keys that no role may have: keep it offline. Nothing is ever overwritten, and\n" +
			"what fails leaves nothing behind. Roles are known by their uid and by the path of the program that runs init: run it\n" +
			"from where the program will stay. All roles listen on loopback; other addresses are for you to set in their files.",
		Example: "  deputy init mesh --trust-domain corp.example --identity-provider https://login.corp.example \\\n" +
			"    --postgres orders-db=127.0.0.1:5432/shop --postgres-ca db-ca.pem --account analyst=shop_app:shop.password \\\n" +
			"    --role analysts=analyst --operator dbas=admin --agent planner --policy examples/policy \\\n" +
			"    --uid issuer=64001 --uid broker=64002 --uid proxy=64003 --starter-uid 1000",
		Args: oneArg("the folder to make"),
		RunE: func(cmd *cobra.Command, args []string) error {
			plan, err := o.plan(args[0])
			if err != nil {
				return err
			}
			if err := plan.write(); err != nil {
				return fmt.Errorf("making the mesh in %s: %w", args[0], err)
			}
			plan.explain(cmd.OutOrStdout())
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.trustDomain, "trust-domain", "", "SPIFFE trust domain, such as corp.example (required)")
	f.StringVar(&o.mesh, "mesh", "", "issuer URL of the broker; default https://127.0.0.1:<base port>")
	f.IntVar(&o.basePort, "base-port", 7400, "first of the loopback ports: web, token, feed, renewal, then one per target")
	f.StringVar(&o.identityProvider, "identity-provider", "", "issuer URL of the OpenID provider (required)")
	f.StringVar(&o.clientID, "client-id", "deputy-cli", "client id at the provider")
	f.StringSliceVar(&o.algorithms, "algorithm", []string{"RS256", "ES256"}, "algorithms that the provider signs ID tokens with")
	f.StringVar(&o.providerCA, "identity-provider-ca", "", "PEM `file` with the provider's CA, if it is no public one")
	f.StringVar(&o.rolesClaim, "roles-claim", "groups", "claim of the ID token that holds the user's groups")
	f.StringArrayVar(&o.roles, "role", nil, "GROUP=ROLE: a group of the provider and the role it gives (repeat)")
	f.StringArrayVar(&o.operators, "operator", nil, "GROUP=admin: a group of the provider whose users may revoke and publish policy (repeat)")
	f.StringArrayVar(&o.sampleUsers, "sample-user", nil, "NAME=GROUP:PASSWORDFILE: a user of the sample sign-in server (repeat; loopback provider only)")
	f.StringArrayVar(&o.postgres, "postgres", nil, "NAME=HOST:PORT/DATABASE: a PostgreSQL target (repeat; required)")
	f.StringVar(&o.postgresCA, "postgres-ca", "", "PEM `file` with the CA of the PostgreSQL servers' certificates (required)")
	f.StringArrayVar(&o.accounts, "account", nil, "ROLE=DBUSER:PASSWORDFILE: the account at the targets for a role (repeat; required)")
	f.StringArrayVar(&o.agents, "agent", nil, "name of an agent that users may start (repeat; required)")
	f.StringVar(&o.policy, "policy", "", "`folder` with the policy set to sign and start with; deputy policy check says whether it is sound (required)")
	f.StringArrayVar(&o.uids, "uid", nil, "issuer|broker|proxy|sample-signin=UID: who runs a role (as root; repeat; default: whoever runs init)")
	f.StringVar(&o.agentUIDs, "agent-uids", "70000-79999", "host uids for isolated agents; nothing else may use them, no second mesh either")
	f.IntSliceVar(&o.starterUIDs, "starter-uid", []int{os.Getuid()}, "uid of a user who may start first-level agents (repeat)")
	f.BoolVar(&o.unsafeDev, "unsafe-dev", false, "accept the trust domain of deputy dev")
	requireFlags(cmd, "trust-domain", "identity-provider")
	return cmd
}

// plan checks the flags and works out addresses, files and uids.
func (o *initOptions) plan(dir string) (*meshPlan, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	if exe, err = filepath.EvalSymlinks(exe); err != nil {
		return nil, err
	}
	if o.basePort < 1 || o.basePort > 65535-16 {
		return nil, fmt.Errorf("--base-port %d: a port between 1 and %d is expected", o.basePort, 65535-16)
	}
	at := func(n int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(o.basePort+n)) }
	p := &meshPlan{
		Dir: abs, Binary: exe, TrustDomain: o.trustDomain, Mesh: o.mesh, ProxyName: "main",
		Socket:    filepath.Join(abs, "run", "issuer.sock"),
		WebListen: at(0), TokenListen: at(1), FeedListen: at(2), RenewalListen: at(3),
		IdentityProvider: o.identityProvider, ClientID: o.clientID, Algorithms: strings.Join(o.algorithms, ", "),
		ProviderCA: o.providerCA, RolesClaim: o.rolesClaim, Agents: o.agents, Policy: o.policy, StarterUIDs: o.starterUIDs,
		unsafeDev: o.unsafeDev, uidsGiven: len(o.uids) > 0,
	}
	if p.Mesh == "" {
		p.Mesh = "https://" + p.WebListen
	}
	if _, err := parseTrustDomain(p.TrustDomain, o.unsafeDev); err != nil {
		return nil, flagError("--trust-domain", err)
	}
	if err := checkMesh(p.Mesh); err != nil {
		return nil, flagError("--mesh", err)
	}
	if len(p.Socket) > 100 {
		return nil, fmt.Errorf("%s is too long for a Unix socket; choose a folder with a shorter path", p.Socket)
	}
	if err := errors.Join(o.planUIDs(p), o.planRoles(p), o.planUsers(p), o.planTargets(p, at)); err != nil {
		return nil, err
	}
	return p, o.check(p)
}

// flagError names the flag instead of the YAML path.
func flagError(flag string, err error) error {
	var fe *fieldErr
	if errors.As(err, &fe) {
		return fmt.Errorf("%s: %s", flag, fe.want)
	}
	return fmt.Errorf("%s: %w", flag, err)
}

func (o *initOptions) planUIDs(p *meshPlan) error {
	me := os.Getuid()
	p.IssuerUID, p.BrokerUID, p.ProxyUID, p.SignInUID = me, me, me, me
	for _, s := range o.uids {
		name, text, _ := strings.Cut(s, "=")
		uid, err := strconv.Atoi(text)
		at := map[string]*int{"issuer": &p.IssuerUID, "broker": &p.BrokerUID, "proxy": &p.ProxyUID, "sample-signin": &p.SignInUID}[name]
		if err != nil || uid < 0 || at == nil {
			return fmt.Errorf("--uid %s: ROLE=UID is expected, such as broker=64002; roles are issuer, broker, proxy and sample-signin", s)
		}
		if me == 0 {
			*at = uid
		}
	}
	first, last, ok := strings.Cut(o.agentUIDs, "-")
	var err1, err2 error
	p.FirstAgentUID, err1 = strconv.Atoi(first)
	p.LastAgentUID, err2 = strconv.Atoi(last)
	if !ok || err1 != nil || err2 != nil || p.FirstAgentUID < 1000 || p.LastAgentUID < p.FirstAgentUID {
		return fmt.Errorf("--agent-uids %s: FIRST-LAST is expected, such as 70000-79999, from 1000 on", o.agentUIDs)
	}
	return nil
}

func (o *initOptions) planRoles(p *meshPlan) error {
	word := regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)
	for flag, in := range map[string][]string{"--role": o.roles, "--operator": o.operators} {
		for _, s := range in {
			claim, role, _ := strings.Cut(s, "=")
			if !word.MatchString(claim) || !word.MatchString(role) {
				return fmt.Errorf("%s %s: GROUP=ROLE is expected", flag, s)
			}
			if flag == "--role" {
				p.Roles = append(p.Roles, claimRole{claim, role})
			} else {
				p.OperatorRoles = append(p.OperatorRoles, claimRole{claim, role})
			}
		}
	}
	for _, uid := range o.starterUIDs {
		if uid < 0 {
			return fmt.Errorf("--starter-uid %d: a uid is expected", uid)
		}
	}
	if len(p.Agents) == 0 {
		return errors.New("--agent: at least one name is expected, of an agent that users may start")
	}
	return nil
}

func (o *initOptions) planUsers(p *meshPlan) error {
	if len(o.sampleUsers) == 0 {
		return nil
	}
	host, ok := strings.CutPrefix(o.identityProvider, "https://")
	name, _, err := net.SplitHostPort(host)
	if ip := net.ParseIP(name); !ok || err != nil || ip == nil || !ip.IsLoopback() {
		return errors.New("--sample-user: the sample sign-in server runs on loopback only; give --identity-provider https://127.0.0.1:PORT")
	}
	p.ProviderCA, p.SignInListen = sampleCA, host
	for _, s := range o.sampleUsers {
		user, rest, _ := strings.Cut(s, "=")
		group, file, _ := strings.Cut(rest, ":")
		if user == "" || group == "" || file == "" {
			return fmt.Errorf("--sample-user %s: NAME=GROUP:PASSWORDFILE is expected", s)
		}
		password, err := readSecret(file)
		if err != nil {
			return fmt.Errorf("--sample-user %s: %w", user, err)
		}
		if strings.ContainsAny(password, `"\`) || len(password) < 8 {
			return fmt.Errorf("--sample-user %s: the password has at least 8 characters and neither quotes nor backslashes", user)
		}
		p.SampleUsers = append(p.SampleUsers, planUser{Name: user, Subject: "sample-" + user, Group: group, Password: password})
	}
	return nil
}

func (o *initOptions) planTargets(p *meshPlan, at func(int) string) error {
	if len(o.postgres) == 0 {
		return errors.New("--postgres: at least one target is expected, such as orders-db=127.0.0.1:5432/shop")
	}
	if len(o.postgres) > 8 {
		return errors.New("--postgres: eight targets at most; more go into the configuration by hand")
	}
	if o.postgresCA == "" {
		return errors.New("--postgres-ca: the CA of the servers' certificates is expected; upstream connections are always verified")
	}
	if len(o.accounts) == 0 {
		return errors.New("--account: at least one account is expected, such as analyst=shop_app:shop.password")
	}
	for i, s := range o.postgres {
		name, rest, _ := strings.Cut(s, "=")
		address, database, _ := strings.Cut(rest, "/")
		if _, err := target.ParseName(name); err != nil || checkAddress("", address) != nil || database == "" {
			return fmt.Errorf("--postgres %s: NAME=HOST:PORT/DATABASE is expected, such as orders-db=127.0.0.1:5432/shop", s)
		}
		t := planTarget{Name: name, Listen: at(4 + i), Address: address, Database: database, CA: o.postgresCA}
		for _, a := range o.accounts {
			role, rest, _ := strings.Cut(a, "=")
			user, file, _ := strings.Cut(rest, ":")
			if role == "" || user == "" || file == "" {
				return fmt.Errorf("--account %s: ROLE=DBUSER:PASSWORDFILE is expected", a)
			}
			t.Accounts = append(t.Accounts, planAccount{Role: role, Name: user, PasswordFile: name + "-" + user + ".password", source: file})
		}
		p.Targets = append(p.Targets, t)
	}
	return nil
}

// render writes one configuration from its template.
func (p *meshPlan) render(name, path string) error {
	t, err := template.ParseFS(templates, "templates/"+name)
	if err != nil {
		return err
	}
	var out bytes.Buffer
	if err := t.Option("missingkey=error").Execute(&out, p); err != nil {
		return err
	}
	return writeNew(path, out.Bytes(), 0o600)
}

func (p *meshPlan) explain(w io.Writer) {
	fmt.Fprintf(w, "The mesh %s is ready to start in %s:\n", p.TrustDomain, p.Dir)
	for _, l := range [][2]string{
		{"issuer/", "CA key and registration entries; gives identities"},
		{"broker/", "token key; exchanges chains for tokens"},
		{"proxy/", "the targets' passwords; decides and records"},
		{"agent/agent.yaml", "for users: deputy login, deputy run (no secret in it)"},
		{"operator/", "certifying and policy keys: take them off this machine"},
		{"public/", "keys to verify logs with: deputy audit verify --keys"},
	} {
		fmt.Fprintf(w, "  %-18s %s\n", l[0], l[1])
	}
	fmt.Fprintf(w, "Start %s as:\n", p.Binary)
	for _, r := range []struct {
		name string
		uid  int
		note string
	}{{"issuer", p.IssuerUID, ", with CAP_SYS_PTRACE"}, {"broker", p.BrokerUID, ""}, {"proxy", p.ProxyUID, ""}} {
		if r.uid == 0 || os.Getuid() != 0 {
			r.note = ""
		}
		fmt.Fprintf(w, "  uid %-6d%s --config %s%s\n", r.uid, r.name, p.path(r.name, r.name+".yaml"), r.note)
	}
	fmt.Fprintf(w, "Agents (%s) are started by uid %s.\n", strings.Join(p.Agents, ", "), joinInts(p.StarterUIDs))
	switch me := os.Getuid(); {
	case me != 0 && p.uidsGiven:
		fmt.Fprintf(w, "--uid had no effect: only root can give folders to others, so all roles share uid %d.\n", me)
	case p.IssuerUID == p.BrokerUID || p.BrokerUID == p.ProxyUID || p.IssuerUID == p.ProxyUID:
		fmt.Fprintln(w, "Roles share a uid: whoever takes one has the keys of the other. As root, --uid gives each its own.")
	}
}

func joinInts(in []int) string {
	out := make([]string, len(in))
	for i, n := range in {
		out[i] = strconv.Itoa(n)
	}
	return strings.Join(out, ", ")
}
