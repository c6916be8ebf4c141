//go:build linux

package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

func TestAllowIsReadAsACapability(t *testing.T) {
	td := spiffeid.RequireTrustDomainFromString("corp.example")
	const loc = `"type":"deputy_postgres","locations":["spiffe://corp.example/target/orders-db"],`
	for in, want := range map[string]string{
		"orders-db:select":                          `{` + loc + `"actions":["select"]}`,
		"orders-db:select,insert:shop":              `{` + loc + `"actions":["select","insert"],"databases":["shop"]}`,
		"orders-db:select:*:public.*,sales.orders":  `{` + loc + `"actions":["select"],"tables":["public.*","sales.orders"]}`,
		"orders-db:select:shop,archive:public.shop": `{` + loc + `"actions":["select"],"databases":["shop","archive"],"tables":["public.shop"]}`,
	} {
		d, err := parseAllow(in, td)
		if err != nil {
			t.Errorf("%s: %v", in, err)
			continue
		}
		if got, _ := json.Marshal(d); string(got) != want {
			t.Errorf("%s:\ngot  %s\nwant %s", in, got, want)
		}
	}
	for in, want := range map[string]string{
		"orders-db": "is expected", "": "is expected", "a:b:c:d:e": "is expected", "Orders:select": "Orders", "orders-db:fly": `unknown action "fly"`,
		"orders-db:select:shop:orders": "not schema.table", "orders-db:select:": "identifier", "orders-db::shop": "unknown action",
	} {
		if d, err := parseAllow(in, td); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, %v; want %q", in, d, err, want)
		}
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
	d, err := capabilities(runOptions{capFile: path}, td)
	if err != nil || len(d) != 1 {
		t.Errorf("got %v, %v", d, err)
	}
	for _, bad := range []string{"", "[]", "{}", `[{"type":"root"}]`, `[{"type":"deputy_postgres","type":"deputy_postgres"}]`} {
		write(bad)
		if _, err := capabilities(runOptions{capFile: path}, td); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
	if d, err := capabilities(runOptions{}, td); d != nil || err != nil {
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
	} {
		cmd := newRevokeCommand()
		cmd.SetArgs(args)
		cmd.SilenceUsage, cmd.SilenceErrors = true, true
		if err := cmd.Execute(); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
	iss, sub, err := splitIssuer("--user", "https://idp.example/#realm#alice")
	if err != nil || iss != "https://idp.example/#realm" || sub != "alice" {
		t.Errorf("got %q, %q, %v", iss, sub, err)
	}
}
