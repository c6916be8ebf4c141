package integration_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/internal/testmesh"
)

// An agent that asks for everything at once gets what one may have. Others are served meanwhile, what it costs is bounded, and
// when it is over nothing is left of it.
func TestFloodsStayBounded(t *testing.T) {
	m := testmesh.Shared(t)
	alice := m.Login(t, "alice")
	probe := testmesh.Program(t, "agentprobe")
	if r := alice.SQL(t, testmesh.Nested, "SELECT 1"); r.Code != 0 {
		t.Fatal(r)
	}
	before := costOf(t, m.Issuer.Pid())
	l := testmesh.Begin(t, alice.Agents(t, []string{"planner"}, "sh", "-c", attackAll(t, m, alice)+"exec "+probe+" flood"))
	l.Await("held\n", 1)
	said := l.Output()
	t.Logf("%s", said)

	var got, joined, limited, other int
	for _, line := range testmesh.Lines(said) {
		if _, err := fmt.Sscanf(line, "spawns got %d joined %d limited %d other %d", &got, &joined, &limited, &other); err == nil {
			break
		}
	}
	if got == 0 || got > 64 || other != 0 || got+joined+limited != 300 {
		t.Errorf("of 300 children at once %d and %d were made, %d met a limit, %d failed otherwise", got, joined, limited, other)
	}
	for _, line := range []string{"agent message ResourceExhausted", "issuer message ResourceExhausted"} {
		if !strings.Contains(said, line+"\n") {
			t.Errorf("it didn't say %q", line)
		}
	}
	if strings.Contains(said, "header OK") {
		t.Error("a header of a mebibyte was taken")
	}
	during := costOf(t, m.Issuer.Pid())
	t.Logf("the issuer: %+v before, %+v during", before, during)
	if grown := during.memory - before.memory; grown > 300<<20 {
		t.Errorf("the issuer grew by %d MiB", grown>>20)
	}
	if during.files > before.files+2*700 {
		t.Errorf("the issuer holds %d files, %d before", during.files, before.files)
	}
	// Under a uid of its own it takes nothing from others; they share the issuer's patience with it otherwise.
	if testmesh.Isolated() {
		if r := alice.SQL(t, testmesh.Nested, "SELECT 1"); r.Code != 0 {
			t.Errorf("another agent meanwhile: %s", r)
		}
	}
	l.Type("\n")
	r := l.Wait(patience)
	if r.Code != 0 || !strings.Contains(r.Stdout, "served spiffe://") {
		t.Errorf("the agent itself, afterwards: %s", r)
	}
	var after cost
	for limit := time.Now().Add(patience / 3); ; time.Sleep(50 * time.Millisecond) {
		if after = costOf(t, m.Issuer.Pid()); after.files <= before.files {
			break
		}
		if time.Now().After(limit) {
			t.Fatalf("the issuer holds %d files, %d before", after.files, before.files)
		}
	}
	if r := alice.SQL(t, testmesh.Nested, "SELECT 1"); r.Code != 0 {
		t.Errorf("another agent afterwards: %s", r)
	}
	// Every child of the flood has ended, with its parent at the latest.
	alive := map[string]bool{}
	for _, rec := range m.Records(t, "issuer") {
		switch e := rec.Event.(type) {
		case *audit.Spawn:
			if e.Result == audit.Accepted {
				alive[e.Agent] = true
			}
		case *audit.AgentEnded:
			for id := range alive {
				if id == e.Agent || strings.HasPrefix(id, e.Agent+"/") {
					delete(alive, id)
				}
			}
		}
	}
	for id := range alive {
		if strings.Contains(id, "/flood/") {
			t.Errorf("%s lives", id)
		}
	}
}

// cost is what a process holds.
type cost struct {
	memory int // resident bytes
	files  int // sockets and processes; a database opens others as it likes
}

func costOf(t *testing.T, pid int) (c cost) {
	t.Helper()
	proc := filepath.Join("/proc", strconv.Itoa(pid))
	links, err := filepath.Glob(filepath.Join(proc, "fd", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if to, err := os.Readlink(l); err == nil && (strings.HasPrefix(to, "socket:") || to == "anon_inode:[pidfd]") {
			c.files++
		}
	}
	raw, err := os.ReadFile(filepath.Join(proc, "status"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(raw)) {
		if _, err := fmt.Sscanf(line, "VmRSS: %d kB", &c.memory); err == nil {
			c.memory <<= 10
			return c
		}
	}
	t.Fatal("no resident size")
	return c
}
