//go:build linux

package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/client"
)

var hosts = []client.Target{{Name: "orders-db", Kind: "postgres"}, {Name: "web", Kind: "ssh"}}

func TestAllowIsReadAsACapability(t *testing.T) {
	td := spiffeid.RequireTrustDomainFromString("corp.example")
	const loc = `"type":"deputy_postgres","locations":["spiffe://corp.example/target/orders-db"],`
	for in, want := range map[string]string{
		"orders-db:select":                          `{` + loc + `"actions":["select"]}`,
		"orders-db:select,insert:shop":              `{` + loc + `"actions":["select","insert"],"databases":["shop"]}`,
		"orders-db:select:*:public.*,sales.orders":  `{` + loc + `"actions":["select"],"tables":["public.*","sales.orders"]}`,
		"orders-db:select:shop,archive:public.shop": `{` + loc + `"actions":["select"],"databases":["shop","archive"],"tables":["public.shop"]}`,
	} {
		d, err := parseAllow(in, td, hosts)
		if err != nil {
			t.Errorf("%s: %v", in, err)
			continue
		}
		if got, _ := json.Marshal(d); string(got) != want {
			t.Errorf("%s:\ngot  %s\nwant %s", in, got, want)
		}
	}
	const host = `"type":"deputy_ssh","locations":["spiffe://corp.example/target/web"],`
	for in, want := range map[string]string{
		"web:exec":                   `{` + host + `"actions":["exec"]}`,
		"web:sftp-read,exec:deploy":  `{` + host + `"actions":["sftp-read","exec"],"accounts":["deploy"]}`,
		"web:sftp-read:deploy,admin": `{` + host + `"actions":["sftp-read"],"accounts":["deploy","admin"]}`,
	} {
		d, err := parseAllow(in, td, hosts)
		if got, _ := json.Marshal(d); err != nil || string(got) != want {
			t.Errorf("%s: %v\ngot  %s\nwant %s", in, err, got, want)
		}
	}
	for in, want := range map[string]string{
		"web": "is expected", "web:exec:deploy:uptime": "--cap", "web:select": `unknown action "select"`, "web:exec:": "account", "orders-db:exec": "unknown action",
		"orders-db": "is expected", "": "is expected", "a:b:c:d:e": "is expected", "Orders:select": "Orders", "orders-db:fly": `unknown action "fly"`,
		"orders-db:select:shop:orders": "not schema.table", "orders-db:select:": "identifier", "orders-db::shop": "unknown action",
	} {
		if d, err := parseAllow(in, td, hosts); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, %v; want %q", in, d, err, want)
		}
	}
}

func TestCapabilitiesForOtherTargetsAreRefused(t *testing.T) {
	td := spiffeid.RequireTrustDomainFromString("corp.example")
	orders, err := parseAllow("orders-db:select", td, hosts)
	if err != nil {
		t.Fatal(err)
	}
	known := []string{"orders-db", "crm-db"}
	for name, tt := range map[string]struct {
		targets []string
		cap     actor.Details
		want    string
	}{
		"all targets":     {nil, actor.Details{orders}, ""},
		"this target":     {[]string{"orders-db"}, actor.Details{orders}, ""},
		"nothing said":    {nil, nil, ""},
		"misspelt target": {[]string{"order-db"}, nil, "no such target here; there is orders-db, crm-db"},
		"for another":     {[]string{"crm-db"}, actor.Details{orders}, "this run reaches crm-db"},
	} {
		err := checkReach(tt.targets, known, tt.cap)
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
	}
	if err := checkReach(nil, known[1:], actor.Details{orders}); err == nil {
		t.Error("a capability for a target that isn't there was taken")
	}
}

func TestCapabilityFile(t *testing.T) {
	td := spiffeid.RequireTrustDomainFromString("corp.example")
	path := filepath.Join(t.TempDir(), "cap.json")
	write := func(s string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(`[{"type":"deputy_postgres","locations":["spiffe://corp.example/target/orders-db"],"actions":["select"]}]`)
	d, err := capabilities(runOptions{capFile: path}, td, nil)
	if err != nil || len(d) != 1 {
		t.Errorf("got %v, %v", d, err)
	}
	for _, bad := range []string{"", "[]", "{}", `[{"type":"root"}]`, `[{"type":"deputy_postgres","type":"deputy_postgres"}]`} {
		write(bad)
		if _, err := capabilities(runOptions{capFile: path}, td, nil); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
	if d, err := capabilities(runOptions{}, td, nil); d != nil || err != nil {
		t.Errorf("nothing said: %v, %v", d, err)
	}
}

func TestRevokeWantsOneThingAndAReason(t *testing.T) {
	for name, args := range map[string][]string{
		"nothing":   {"--reason", "x"},
		"two":       {"--reason", "x", "--user", "a#b", "--task", "c"},
		"no reason": {"--task", "c"},
		"no issuer": {"--reason", "x", "--user", "alice"},
		"no name":   {"--reason", "x", "--grant", "spiffe://a/b#"},
		"no task":   {"--reason", "x", "--task", "zzz"},
		"no agent":  {"--reason", "x", "--agent", "planner"},
		"empty":     {"--reason", "x", "--session", ""},
		"blank":     {"--reason", " ", "--task", "00112233445566778899aabbccddeeff"},
		"backwards": {"--reason", "x", "--task", "00112233445566778899aabbccddeeff", "--for", "-5s"},
	} {
		cmd := newRevokeCommand()
		cmd.SetArgs(append(args, "--config", "/does/not/exist"))
		cmd.SilenceUsage, cmd.SilenceErrors = true, true
		if err := cmd.Execute(); err == nil || strings.Contains(err.Error(), "/does/not/exist") {
			t.Errorf("%s was taken: %v", name, err)
		}
	}
	iss, sub, err := splitIssuer("--user", "https://idp.example/#realm#alice")
	if err != nil || iss != "https://idp.example/#realm" || sub != "alice" {
		t.Errorf("got %q, %q, %v", iss, sub, err)
	}
}
