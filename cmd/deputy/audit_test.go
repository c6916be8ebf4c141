package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/audit"
)

// auditLogFixture writes a log and its list of keys.
func auditLogFixture(t *testing.T) (dir, keys string, decision audit.Receipt) {
	t.Helper()
	root := t.TempDir()
	dir, keys = filepath.Join(root, "log"), filepath.Join(root, "audit-keys.json")
	key, err := audit.GenerateKey(rand.Reader, "test.invalid/proxy/orders")
	if err != nil {
		t.Fatal(err)
	}
	l, err := audit.Open(audit.Config{Dir: dir, Source: "spiffe://test.invalid/deputy/proxy/orders", Key: key, SegmentSize: 1 << 20, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	user := actor.SubjectID{Issuer: "https://idp.test.invalid", Subject: "alice"}
	chain := &audit.Chain{Txn: "7a11", User: user, RootEvidence: actor.RootVerified, Hops: []actor.Hop{
		{Kind: actor.HopUser, ID: user.String(), Grade: actor.Attested},
		{Kind: actor.HopAgent, ID: "spiffe://test.invalid/agent/planner/0123456789abcdef0123456789abcdef", Grade: actor.Asserted},
	}}
	decision, err = l.Append(context.Background(), audit.Record{Chain: chain, Event: &audit.Decision{
		Effect: audit.Refuse, Target: "spiffe://test.invalid/target/orders-db", Action: "postgres:ddl", Class: "policy", Policies: []string{"no-ddl"}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal(&audit.Keys{Mesh: "https://b.test.invalid", TrustDomain: "test.invalid", Logs: []string{key.Public()}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(keys, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir, keys, decision
}

func runAudit(args ...string) (string, error) {
	cmd := newAuditCommand()
	cmd.SilenceUsage, cmd.SilenceErrors = true, true
	var out bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	cmd.SetArgs(args)
	err := cmd.ExecuteContext(context.Background())
	return out.String(), err
}

func TestAuditCommands(t *testing.T) {
	dir, keys, decision := auditLogFixture(t)
	save := filepath.Join(t.TempDir(), "seen")
	for name, c := range map[string]struct {
		args []string
		want []string
	}{
		"tail":           {[]string{"tail", dir}, []string{"log_opened", "refuse postgres:ddl on orders-db (policy) by no-ddl", "alice > planner?", string(decision.RecordID)}},
		"tail of one":    {[]string{"tail", "-n", "1", dir}, []string{"log_closed"}},
		"tail as JSON":   {[]string{"tail", "--json", dir}, []string{`{"seq":2,"v":2,"id":"` + string(decision.RecordID)}},
		"show a task":    {[]string{"show", "--log", dir, "7a11"}, []string{"Task 7a11", "└─ planner", "refused (policy) by no-ddl", "1 command, 0 allowed, 1 refused"}},
		"show a record":  {[]string{"show", "--log", dir, string(decision.RecordID)}, []string{"Task 7a11"}},
		"show as JSON":   {[]string{"show", "--json", "--log", dir, "7a11"}, []string{`"txn": "7a11"`}},
		"verify":         {[]string{"verify", "--keys", keys, "--save", save, dir}, []string{"VERIFIED", "closed cleanly", "test.invalid/proxy/orders"}},
		"prove a record": {[]string{"verify", "--keys", keys, "--record", string(decision.RecordID), dir}, []string{"is number 2"}},
		"verify as JSON": {[]string{"verify", "--keys", keys, "--json", dir}, []string{`"dir": "`, `"records": 4`}},
	} {
		t.Run(name, func(t *testing.T) {
			out, err := runAudit(c.args...)
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			for _, want := range c.want {
				if !strings.Contains(out, want) {
					t.Errorf("output lacks %q:\n%s", want, out)
				}
			}
		})
	}
	if out, err := runAudit("verify", "--keys", keys, "--save", save, dir); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	seen := filepath.Join(save, "test.invalid_proxy_orders.checkpoint")
	if out, err := runAudit("verify", "--keys", keys, "--seen", seen, dir); err != nil {
		t.Errorf("with the checkpoint that was kept: %v\n%s", err, out)
	}

	segment := filepath.Join(dir, "0000000000000000.segment")
	whole, err := os.ReadFile(segment)
	if err != nil {
		t.Fatal(err)
	}
	rewrite := func(change func([]byte)) {
		t.Helper()
		data := bytes.Clone(whole)
		change(data)
		if err := os.WriteFile(segment, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	last := bytes.LastIndex(whole, []byte("DPTYFRM1"))

	rewrite(func(b []byte) { clear(b[last:]) }) // cut back to a frame: only the kept checkpoint shows it
	if out, err := runAudit("verify", "--keys", keys, dir); err != nil {
		t.Errorf("cut back, nothing kept: %v\n%s", err, out)
	}
	out, err := runAudit("verify", "--keys", keys, "--seen", seen, dir)
	if !errors.Is(err, exitEvidence) || !strings.Contains(out, "DOES NOT HOLD") || !strings.Contains(out, "rolled_back") {
		t.Errorf("cut back: %v\n%s", err, out)
	}
	rewrite(func(b []byte) { clear(b[last+100:]) })
	if out, err := runAudit("verify", "--keys", keys, dir); !errors.Is(err, exitTorn) || !strings.Contains(out, "torn tail") {
		t.Errorf("torn: %v\n%s", err, out)
	}
	rewrite(func(b []byte) { b[bytes.Index(b, []byte("alice"))] = 'A' })
	if out, err := runAudit("verify", "--keys", keys, dir); !errors.Is(err, exitEvidence) {
		t.Errorf("changed: %v\n%s", err, out)
	}
}

func TestAuditCommandsSayWhatIsWrong(t *testing.T) {
	dir, keys, _ := auditLogFixture(t)
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"no folder":       {[]string{"tail", filepath.Join(dir, "nothing")}, "no such file"},
		"no log":          {[]string{"tail", filepath.Dir(dir)}, "no segments there"},
		"no task":         {[]string{"show", "--log", dir, "feed"}, `task "feed": not found`},
		"no record":       {[]string{"show", "--log", dir, "01927f3c-8a6e-7c3b-9d52-1f0e6b7a8c9d"}, "not found"},
		"no --log":        {[]string{"show", "feed"}, `required flag(s) "log" not set`},
		"no --keys":       {[]string{"verify", dir}, `required flag(s) "keys" not set`},
		"keys aren't":     {[]string{"verify", "--keys", filepath.Join(dir, "0000000000000000.segment"), dir}, "list of keys"},
		"record isn't id": {[]string{"verify", "--keys", keys, "--record", "x", dir}, "want a UUIDv7"},
		"seen isn't":      {[]string{"verify", "--keys", keys, "--seen", keys, dir}, "not a checkpoint"},
		"negative count":  {[]string{"tail", "-n", "-1", dir}, "isn't negative"},
	} {
		t.Run(name, func(t *testing.T) {
			out, err := runAudit(c.args...)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one that says %q\n%s", err, c.want, out)
			}
		})
	}
}

// A byte changed in the middle must not look like the end of the log.
func TestAuditReadersSayThatALogGoesOnBehindDamage(t *testing.T) {
	for name, offset := range map[string]int64{"header": 100, "first frame": 4096 + 200, "second frame": 8192 + 200} {
		dir, _, _ := auditLogFixture(t)
		f, err := os.OpenFile(filepath.Join(dir, "0000000000000000.segment"), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		var b [1]byte
		if _, err := f.ReadAt(b[:], offset); err != nil {
			t.Fatal(err)
		}
		b[0] ^= 1
		if _, err := f.WriteAt(b[:], offset); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		for _, args := range [][]string{{"tail", dir}, {"show", "--log", dir, "7a11"}} {
			out, err := runAudit(args...)
			if err == nil || !strings.Contains(err.Error(), "deputy audit verify") || !errors.Is(err, audit.ErrCorrupt) {
				t.Errorf("%s, %s: %v\n%s", name, args[0], err, out)
			}
		}
	}
}
