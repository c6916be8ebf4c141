package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/deputymesh/deputy/proxy/mcpd"
)

// What review prints is what a proxy reads.
func TestReviewedToolsAreWhatAProxyReads(t *testing.T) {
	file := filepath.Join(t.TempDir(), "tools.json")
	if err := os.WriteFile(file, []byte(`{"jsonrpc":"2.0","id":1,"result":{"tools":[{"name":"add","inputSchema":{}},{"name":"sub two","inputSchema":{}}]}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := newMCPCommand()
	var out bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetArgs([]string{"review", file})
	if err := cmd.Execute(); err != nil {
		t.Fatal(err)
	}
	reviewed, err := mcpd.ParseReviewed(strings.NewReader(out.String()))
	if err != nil || len(reviewed) != 2 || reviewed["sub two"] == "" {
		t.Errorf("%v %v from %q", reviewed, err, out.String())
	}
}
