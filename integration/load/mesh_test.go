//go:build bench

package load_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/deputymesh/deputy/internal/testmesh"
	"github.com/deputymesh/deputy/internal/testpg"
)

// depth3 is the attested chain that the measurements run under.
var depth3 = []string{"planner", "researcher", "worker"}

// tmpfs holds logs that no disk slows down.
const tmpfs = "/dev/shm"

// usualLimits gives a role the size of files that it has outside tests. What runs for minutes at full speed is more than one task may
// write for long, and one user, so these limits go.
func usualLimits(config string) string {
	const quota = "  quota: {records_per_second: 10000000, bytes_per_second: 200000000, disk_percent: 100}\n"
	return strings.Replace(config, "  segment_bytes: 1048576\n", quota, 1)
}

// mesh starts a mesh in front of pg with the policy of the measurements. The proxy's log lies in logs if that is not empty.
func (b *bench) mesh(pg *testpg.Server, logs string, more ...testmesh.Option) *testmesh.Mesh {
	b.t.Helper()
	options := []testmesh.Option{testmesh.Postgres(pg), testmesh.Policy(filepath.Join(root(b.t), "integration", "load", "testdata", "policy")),
		testmesh.Edit("issuer", usualLimits), testmesh.Edit("broker", usualLimits),
		testmesh.Edit("proxy", func(c string) string {
			if logs != "" {
				c = strings.Replace(c, "  dir: audit\n", "  dir: "+logs+"\n", 1)
			}
			return usualLimits(c)
		})}
	return testmesh.Start(b.t, append(options, more...)...)
}

// onTmpfs makes a folder for the proxy's log in memory.
func (b *bench) onTmpfs() string {
	b.t.Helper()
	dir, err := os.MkdirTemp(tmpfs, "deputy-bench-")
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o1777); err != nil { // the proxy makes its folder in it, under its own uid
		b.t.Fatal(err)
	}
	return filepath.Join(dir, "audit")
}

// holder is an agent that shows its identity, for clients that reach the proxy without the run's listener.
type holder struct {
	b    *bench
	m    *testmesh.Mesh
	live *testmesh.Live
	dir  string
	n    int
}

func (b *bench) holder(m *testmesh.Mesh, s *testmesh.Session, agents []string) *holder {
	b.t.Helper()
	dir, err := os.MkdirTemp(b.dir, "svid-")
	if err != nil {
		b.t.Fatal(err)
	}
	c := s.Agents(b.t, agents, testmesh.Program(b.t, "agentprobe"), "identity", testmesh.Target)
	return &holder{b: b, m: m, live: testmesh.Begin(b.t, c), dir: dir}
}

type identity struct{ SVID, Key, Bundle, Credential string }

// identity asks for the SVID and a credential with life left.
func (h *holder) identity() identity {
	h.b.t.Helper()
	h.n++
	h.live.Type("\n")
	h.live.Await("\n", h.n)
	lines := testmesh.Lines(h.live.Output())
	var id identity
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &id); err != nil {
		h.b.t.Fatal(err)
	}
	return id
}

// route is the straight way to the proxy with the agent's own files.
func (h *holder) route(name string) route {
	port := strings.TrimPrefix(h.m.Address("target"), "127.0.0.1:")
	n, err := strconv.Atoi(port)
	if err != nil {
		h.b.t.Fatal(err)
	}
	return route{name: name, ours: true, pid: h.m.Proxy.Pid(), log: h.m.Proxy.Log, env: func() []string {
		id := h.identity()
		files := map[string]string{"svid.pem": id.SVID, "svid.key": id.Key, "bundle.pem": id.Bundle, "pgpass": "*:*:*:*:" + id.Credential + "\n"}
		for name, text := range files {
			if err := os.WriteFile(filepath.Join(h.dir, name), []byte(text), 0o600); err != nil {
				h.b.t.Fatal(err)
			}
		}
		in := func(name string) string { return filepath.Join(h.dir, name) }
		return append(libpq(n), "PGSSLMODE=verify-full", "PGSSLCERT="+in("svid.pem"), "PGSSLKEY="+in("svid.key"),
			"PGSSLROOTCERT="+in("bundle.pem"), "PGPASSFILE="+in("pgpass"))
	}}
}

// listener is the way of a client that knows nothing of Deputy: it runs in the agents, and libpq finds the folder of their run's socket
// in PGHOST. What lies in between is two processes, the run's supervisor and the proxy, so no processor time is taken of it.
func (b *bench) listener(s *testmesh.Session, agents []string) route {
	return route{name: onListener, inside: func(argv ...string) testmesh.Command { return s.Agents(b.t, agents, argv...) }}
}
