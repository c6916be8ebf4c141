package testmesh

import (
	"crypto/rand"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/deputymesh/deputy/audit"
)

// secondProxy is the folder and the name of the proxy that SecondProxy starts.
const secondProxy = "second"

// TwoTargets lets the one proxy serve OtherTarget too: the same database under another name.
func TwoTargets() Option { return func(s *settings) { s.targets = []string{OtherTarget} } }

// SecondProxy lets a proxy of its own, with an identity, a uid and a log of its own, serve OtherTarget.
func SecondProxy() Option {
	return func(s *settings) {
		s.targets, s.second = []string{OtherTarget}, true
	}
}

// splitProxy moves OtherTarget from the proxy that `deputy init` made to a second one.
func (m *Mesh) splitProxy() {
	m.t.Helper()
	from, to := filepath.Join(m.Dir, "proxy"), filepath.Join(m.Dir, secondProxy)
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		m.t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(to, "proxy.yaml"), m.Config(secondProxy)); err != nil {
		m.t.Fatal(err)
	}
	m.EditConfig(m.t, "proxy", func(c string) string { _, first, _ := cutTargets(m, c); return first })
	m.EditConfig(m.t, secondProxy, func(c string) string {
		_, _, own := cutTargets(m, c)
		own = strings.Replace(own, "name: main", "name: "+secondProxy, 1)
		own = strings.Replace(own, "renewal_listen: "+m.Address("renewal"), "renewal_listen: "+m.Address("second-renewal"), 1)
		return dropLine(own, "first_svid:") // that one is the other proxy's
	})
	m.EditConfig(m.t, "broker", func(c string) string {
		other := strings.Index(c, "- name: "+OtherTarget)
		return c[:other] + strings.Replace(c[other:], "proxies: [main]", "proxies: ["+secondProxy+"]", 1)
	})
	m.EditConfig(m.t, "agent", func(c string) string {
		other := strings.Index(c, "- name: "+OtherTarget)
		rest := strings.Replace(c[other:], "/deputy/proxy/main", "/deputy/proxy/"+secondProxy, 1)
		return c[:other] + strings.Replace(rest, m.Address("renewal"), m.Address("second-renewal"), 1)
	})
	m.EditConfig(m.t, "issuer", func(c string) string {
		uid := os.Geteuid()
		if Isolated() {
			uid = secondUID
		}
		entry := fmt.Sprintf("  - spiffe_id: spiffe://%s/deputy/proxy/%s\n    unix: {uid: %d, path: %s}\n    dns_names: [localhost]\n    ips: [127.0.0.1]\n",
			TrustDomain, secondProxy, uid, Deputy(m.t))
		return strings.Replace(c, "# Agents of the first level", entry+"# Agents of the first level", 1)
	})
	m.secondLogKey(filepath.Join(to, "audit.key"))
	if Isolated() {
		err := filepath.WalkDir(to, func(path string, _ fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			return os.Lchown(path, secondUID, secondUID)
		})
		if err != nil {
			m.t.Fatal(err)
		}
	}
	m.privateFiles(to)
}

// cutTargets takes a proxy's configuration apart: everything, with the first target alone, with the second alone.
func cutTargets(m *Mesh, c string) (all, first, second string) {
	m.t.Helper()
	head, rest, ok := strings.Cut(c, "targets:\n")
	targets, tail, ok2 := strings.Cut(rest, "audit:\n")
	at := strings.Index(targets, "  - name: "+OtherTarget)
	if !ok || !ok2 || at < 0 {
		m.t.Fatalf("the proxy's configuration has no two targets:\n%s", c)
	}
	with := func(t string) string { return head + "targets:\n" + t + "audit:\n" + tail }
	return c, with(targets[:at]), with(targets[at:])
}

func dropLine(text, prefix string) string {
	var out []string
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, prefix) {
			out = append(out, line)
		}
	}
	return strings.Join(out, "")
}

// secondLogKey gives the second proxy a log key, and its public half to whoever verifies.
func (m *Mesh) secondLogKey(path string) {
	m.t.Helper()
	key, err := audit.GenerateKey(rand.Reader, TrustDomain+"/proxy/"+secondProxy)
	if err != nil {
		m.t.Fatal(err)
	}
	raw, err := os.ReadFile(m.KeysFile())
	if err != nil {
		m.t.Fatal(err)
	}
	keys, err := audit.ParseKeys(raw)
	if err != nil {
		m.t.Fatal(err)
	}
	keys.Logs = append(keys.Logs, key.Public())
	if raw, err = keys.MarshalJSON(); err != nil {
		m.t.Fatal(err)
	}
	for file, content := range map[string]string{path: key.Private() + "\n", m.KeysFile(): string(raw)} {
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			m.t.Fatal(err)
		}
	}
}

// privateFiles makes files with secrets their owner's alone again; copying a tree opens them.
func (m *Mesh) privateFiles(dir string) {
	m.t.Helper()
	for _, pattern := range []string{"*.key", "*.password"} {
		files, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			m.t.Fatal(err)
		}
		for _, f := range files {
			if err := os.Chmod(f, 0o600); err != nil {
				m.t.Fatal(err)
			}
		}
	}
}
