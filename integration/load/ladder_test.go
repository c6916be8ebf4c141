//go:build bench

package load_test

import (
	"bytes"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/deputymesh/deputy/internal/testca"
	"github.com/deputymesh/deputy/internal/testmesh"
	"github.com/deputymesh/deputy/internal/testpg"
)

// rung starts a rung of the ladder in a process of its own.
func (b *bench) rung(name string, pg *testpg.Server, ca *testca.CA) route {
	b.t.Helper()
	port := testmesh.FreePorts(b.t, 1)
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	svid := ca.SVID(ca.ID("/deputy/proxy/bench"), testca.Hosts("127.0.0.1"))
	agent := ca.SVID(ca.ID("/agent/planner/0123456789abcdef0123456789abcdef"))
	c := rungConfig{Rung: name, Listen: address, Upstream: pg.Address(),
		CAFile: pg.CAFile, Policies: filepath.Join(root(b.t), "integration", "load", "testdata", "policy")}
	var err error
	if c.SVID, c.Key, err = svid.Marshal(); err != nil {
		b.t.Fatal(err)
	}
	if c.Bundle, err = ca.Bundle().Marshal(); err != nil {
		b.t.Fatal(err)
	}
	config, err := json.Marshal(c)
	if err != nil {
		b.t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		b.t.Fatal(err)
	}
	pid := b.serveAs(nil, bytes.NewReader(config), address, self, rungArg)

	dir, err := os.MkdirTemp(b.dir, "rung-")
	if err != nil {
		b.t.Fatal(err)
	}
	certs, key, err := agent.Marshal()
	if err != nil {
		b.t.Fatal(err)
	}
	for name, text := range map[string][]byte{"svid.pem": certs, "svid.key": key, "bundle.pem": c.Bundle} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			b.t.Fatal(err)
		}
	}
	in := func(name string) string { return filepath.Join(dir, name) }
	env := append(libpq(port), "PGSSLMODE=verify-full", "PGSSLCERT="+in("svid.pem"), "PGSSLKEY="+in("svid.key"),
		"PGSSLROOTCERT="+in("bundle.pem"), "PGPASSWORD=any")
	return route{name: name, pid: pid, ours: true, env: func() []string { return env }}
}

// measureLadder is select-only through the same engine with more and more above it, up to the whole.
func measureLadder(b *bench) {
	w := b.servers()
	ca := testca.New(b.t, "bench.example")
	var routes []route
	for _, name := range rungs {
		routes = append(routes, b.rung(name, w.pg, ca))
	}
	routes = append(routes, w.routes...)
	for _, mode := range protocols {
		for _, clients := range clientCounts {
			if !b.wants("ladder", mode, strconv.Itoa(clients)) {
				continue
			}
			got := b.transactions(w.pg, slices.Concat(routes, w.beside(selectOnly, mode, clients)), selectOnly, mode, clients)
			line := result{Name: "ladder", Unit: "tps"}
			for _, step := range append(rungs, onMemory, onDisk) {
				line.Params = map[string]string{"protocol": mode, "clients": strconv.Itoa(clients), "step": step}
				line.aim = ""
				if step == rungRelay && mode == "prepared" {
					line.aim = "≥ 0.95"
				}
				b.compare(line, got, step, "HAProxy")
			}
			b.comparePgbench(got, selectOnly, mode, clients)
		}
	}
}
