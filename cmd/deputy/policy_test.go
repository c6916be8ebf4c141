package main

import (
	"bytes"
	"crypto/ecdsa"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/deputymesh/deputy/policy"
)

const examplePolicies = "../../examples/policy"

func runPolicy(t *testing.T, stdin string, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	cmd := newPolicyCommand()
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	var out, errs bytes.Buffer
	cmd.SetIn(strings.NewReader(stdin))
	cmd.SetOut(&out)
	cmd.SetErr(&errs)
	cmd.SetArgs(args)
	err = cmd.Execute()
	return out.String(), errs.String(), err
}

// badPolicies is a copy of the example set with one more file.
func badPolicies(t *testing.T, text string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(examplePolicies)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "bad.cedar"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestPolicyCheckNamesFileLineAndColumn(t *testing.T) {
	out, _, err := runPolicy(t, "", "check", examplePolicies)
	if err != nil || !strings.Contains(out, "no problems") {
		t.Errorf("the example set: %q, %v", out, err)
	}
	dir := badPolicies(t, "\n @id(\"a\") @approve(\"dba:1\") permit (principal, action, resource);\n@id(\"b\") @mask(\"x\") permit (principal, action, resource);")
	_, stderr, err := runPolicy(t, "", "check", dir)
	var code exitCode
	if !errors.As(err, &code) {
		t.Fatalf("error %v, want an exit code", err)
	}
	for _, want := range []string{
		filepath.Join(dir, "bad.cedar") + `:2:2: policy "a": @approve("dba:1"): approvals aren't there yet`,
		filepath.Join(dir, "bad.cedar") + `:3:1: policy "b": @mask("x")`,
	} {
		if !strings.Contains(stderr, want) {
			t.Errorf("stderr %q lacks %q", stderr, want)
		}
	}
}

func TestPolicySignMakesASetThatOpens(t *testing.T) {
	key, err := newKey()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	keyFile, out := filepath.Join(dir, "policy-key.pem"), filepath.Join(dir, "set.jws")
	if err := writePrivateKey(keyFile, key); err != nil {
		t.Fatal(err)
	}
	if _, _, err := runPolicy(t, "", "sign", "--key", keyFile, "--out", out, examplePolicies); err != nil {
		t.Fatal(err)
	}
	signed, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	set, err := policy.Open(strings.TrimSpace(string(signed)), []*ecdsa.PublicKey{&key.PublicKey}, 1)
	if err != nil {
		t.Fatal(err)
	}
	if set.Version() != 1 {
		t.Errorf("version %d", set.Version())
	}
	if _, _, err := runPolicy(t, "", "sign", "--key", keyFile, badPolicies(t, "permit();")); err == nil {
		t.Error("a set with a fault was signed")
	}
}

func TestPolicyExplainSaysWhy(t *testing.T) {
	out, _, err := runPolicy(t, exampleQuestion, "explain", examplePolicies)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"allowed by analyst-reads-shop", "mask customers.email=email", "limit rows=1000", "no-ddl-by-agents", "orders.cedar:"} {
		if !strings.Contains(out, want) {
			t.Errorf("explanation lacks %q:\n%s", want, out)
		}
	}
	out, _, err = runPolicy(t, strings.Replace(exampleQuestion, "postgres:select", "postgres:ddl", 1), "explain", examplePolicies)
	if code := exitCode(0); !errors.As(err, &code) || code != 3 {
		t.Errorf("a refused request ends with %v, want status 3", err)
	}
	if !strings.Contains(out, `refused: policy "no-ddl-by-agents" forbids postgres:ddl`) {
		t.Errorf("explanation:\n%s", out)
	}
	if _, _, err := runPolicy(t, `{"action":"x"}`, "explain", examplePolicies); err == nil {
		t.Error("a question with members missing was answered")
	}
}
