package policy_test

import (
	"strings"
	"testing"

	"github.com/deputymesh/deputy/policy"
)

const hostPolicies = `
@id("connect") permit (principal, action in [Deputy::Action::"ssh:connect", Deputy::Action::"ssh:sftp"], resource == Deputy::Account::"web/deploy");
@id("git") permit (principal, action == Deputy::Action::"ssh:exec", resource in Deputy::Account::"web/deploy") when { resource.program == "git" };
@id("df") permit (principal, action == Deputy::Action::"ssh:exec", resource == Deputy::Exec::"web/deploy/df -h %2Fsrv | head");
@id("files") permit (principal, action in Deputy::Action::"read", resource is Deputy::Path in Deputy::Account::"web/deploy") when { resource.name like "/srv/*" };
@id("no-git-gc") forbid (principal, action, resource is Deputy::Exec) when { resource.name like "git gc*" };
`

func hostSource(text string) policy.Source {
	return policy.Source{
		Version: 1, Schema: policy.SchemaID, IssuedAt: 1, Files: map[string]string{"host.cedar": text},
		Targets: map[string]policy.Target{"web": {Kind: "ssh"}, "orders-db": {Kind: "postgres"}},
	}
}

func TestHostsAreDecidedPerObject(t *testing.T) {
	set := load(t, hostSource(hostPolicies))
	for _, c := range []struct {
		action string
		on     policy.Resource
		by     string // "" for a refusal
	}{
		{"ssh:connect", policy.Account("web", "deploy"), "connect"},
		{"ssh:connect", policy.Account("web", "root"), ""},
		{"ssh:shell", policy.Account("web", "deploy"), ""},
		{"ssh:exec", policy.Exec("web", "deploy", "git log"), "git"},
		{"ssh:exec", policy.Exec("web", "deploy", "git gc"), ""},
		{"ssh:exec", policy.Exec("web", "deploy", "git log; id"), ""},
		{"ssh:exec", policy.Exec("web", "deploy", "git log\nid"), ""},
		{"ssh:exec", policy.Exec("web", "root", "git log"), ""},
		{"ssh:exec", policy.Exec("web", "deploy", "df -h /srv | head"), "df"},
		{"ssh:exec", policy.Exec("web", "deploy", "df -h /srv | head "), ""},
		{"ssh:sftp-read", policy.Path("web", "deploy", "/srv/a"), "files"},
		{"ssh:sftp-read", policy.Path("web", "deploy", "/etc/shadow"), ""},
		{"ssh:sftp-write", policy.Path("web", "deploy", "/srv/a"), ""},
		{"ssh:forward", policy.Forward("web", "deploy", "db:5432"), ""},
		{"ssh:subsystem", policy.Subsystem("web", "deploy", "netconf"), ""},
	} {
		r := policy.Request{Subject: subject(t, facts(nil, planner)), Now: now, Action: c.action, Resource: c.on, Command: policy.Command{Account: c.on.Account}}
		d := set.Decide(r)
		if d.Err != nil || d.Allow != (c.by != "") || d.Allow && strings.Join(d.Policies, ",") != c.by {
			t.Errorf("%s on %s: %+v, want %q", c.action, c.on, d, c.by)
		}
	}
}

func TestWhatIsNoObjectOfAHostIsUndecided(t *testing.T) {
	set := load(t, hostSource(hostPolicies))
	good := policy.Path("web", "deploy", "/srv/a")
	for name, change := range map[string]func(*policy.Resource, *policy.Command){
		"another account than the command's": func(_ *policy.Resource, c *policy.Command) { c.Account = "root" },
		"a database":                         func(r *policy.Resource, c *policy.Command) { r.Database, c.Database = "x", "x" },
		"out of the folder":                  func(r *policy.Resource, _ *policy.Command) { r.Name = "/srv/../etc/shadow" },
		"no path":                            func(r *policy.Resource, _ *policy.Command) { r.Name = "" },
		"a relative path":                    func(r *policy.Resource, _ *policy.Command) { r.Name = "srv/a" },
		"no account":                         func(r *policy.Resource, c *policy.Command) { r.Account, c.Account = "", "" },
		"another kind":                       func(r *policy.Resource, _ *policy.Command) { r.Kind = policy.KindExec },
		"a table in an account":              func(r *policy.Resource, _ *policy.Command) { r.Kind, r.Schema = policy.KindTable, "s" },
		"another target":                     func(r *policy.Resource, _ *policy.Command) { r.Target = "nowhere" },
	} {
		r := policy.Request{Subject: subject(t, facts(nil, planner)), Now: now, Action: "ssh:sftp-read", Resource: good, Command: policy.Command{Account: "deploy"}}
		change(&r.Resource, &r.Command)
		if d := set.Decide(r); d.Allow || d.Err == nil {
			t.Errorf("%s: %+v", name, d)
		}
	}
}

func TestAMisspeltHostObjectDoesNotLoad(t *testing.T) {
	for _, id := range []string{
		`Account::"web"`, `Account::"web/a/b"`, `Account::"web/-x"`, `Account::"other/deploy"`, `Exec::"web/uptime"`, `Exec::"web/deploy/"`,
		`Exec::"web/deploy/df /srv"`, `Path::"web/deploy/srv"`, `Path::"web/deploy/%2Fsrv%2F"`, `Path::"web/deploy/%2f"`, `Forward::"web/deploy/db"`,
		`Forward::"web/deploy/DB:1"`,
	} {
		action := map[byte]string{'A': "ssh:shell", 'E': "ssh:exec", 'P': "ssh:sftp-read", 'F': "ssh:forward"}[id[0]]
		text := `forbid (principal, action == Deputy::Action::"` + action + `", resource == Deputy::` + id + `);`
		if err := policy.Check(hostSource(text)); err == nil {
			t.Errorf("%s loads", id)
		}
	}
}
