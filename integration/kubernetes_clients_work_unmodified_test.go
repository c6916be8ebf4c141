package integration_test

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/deputymesh/deputy/internal/testmesh"
)

// Clients of other languages than the cluster's own do what they do, and hear what they may not.
func TestKubernetesClientsWorkUnmodified(t *testing.T) {
	m, c, _ := decidedCluster(t)
	c.Pod("shop", "web", "sh", "-c", "echo last; exec cat")
	c.Apply(`{"apiVersion":"v1","kind":"Secret","metadata":{"name":"db","namespace":"shop"},"stringData":{"password":"correct-horse"}}`)
	alice := m.Login(t, "alice")
	t.Run("Python", func(t *testing.T) {
		m.Share(t, filepath.Join("testdata", "clients", "kubernetes_client.py"))
		r := alice.Run(t, inCluster, "timeout", "60", "/usr/bin/python3", filepath.Join(m.Root, "kubernetes_client.py"))
		said := map[string]string{}
		for _, line := range testmesh.Lines(r.Stdout) {
			name, what, _ := strings.Cut(line, ": ")
			said[name] += what + ";"
		}
		for name, want := range map[string]string{
			"version": "1;", "groups": "True;", "list": "['web'];", "get": "{'color': 'blue'};", "patch": "{'color': 'red', 'size': '1'};", "watch": "ADDED py;DELETED py;", "generated": "True;",
			"delete all": "ConfigMapList;", "secret": "masked by deputy;", "written back": "403 Forbidden True;", "logs": "last;", "exec": "from inside;", "elsewhere": "403 Forbidden True;", "a token": "403 Forbidden True;",
			"port-forward": "Handshake status 400 Bad Request;", // it offers none of the protocols that are carried
		} {
			if said[name] != want {
				t.Errorf("%s: %q, want %q", name, said[name], want)
			}
		}
		if strings.Contains(said["a shell"], "uid=") || said["a shell"] == "" {
			t.Errorf("a shell: %q", said["a shell"])
		}
		if t.Failed() {
			t.Logf("%s", r)
		}
	})
	t.Run("a page in a browser", func(t *testing.T) {
		upgrade := `curl -sS --http1.1 --max-time 20 -w '\n%{http_code}' -H 'Connection: Upgrade' -H 'Upgrade: websocket' -H 'Sec-WebSocket-Version: 13' -H 'Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==' ` +
			`-H 'Sec-WebSocket-Protocol: v5.channel.k8s.io' "$DEPUTY_URL_PROD/api/v1/namespaces/shop/pods/web/exec?command=ls&stdout=true" `
		for header, status := range map[string]string{"Origin: http://evil.example": "400", "Sec-Fetch-Site: cross-site": "403", "Host: evil.example": "421"} {
			if r := alice.Run(t, inCluster, "sh", "-c", upgrade+"-H '"+header+"'"); !strings.HasSuffix(r.Stdout, "\n"+status) {
				t.Errorf("%s: %s", header, r)
			}
		}
	})
}
