package soak_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/deputymesh/deputy/internal/testmesh"
	"github.com/deputymesh/deputy/internal/testpg"
)

// era is one mesh from its start to its end.
type era struct {
	t      *testing.T
	p      *progress
	random *rand.Rand
	m      *testmesh.Mesh
	roles  map[string]*testmesh.Process
	crew   *crew
	ledger *ledger
	before remains
	stalls stalls
	doing  []string // the last rounds, for whoever looks at a violation
}

func newEra(t *testing.T, p *progress, random *rand.Rand) *era {
	m := testmesh.Start(t)
	m.PG.Exec("set role "+testpg.App, "create table effects (token text not null, at timestamptz not null default clock_timestamp())")
	e := &era{t: t, p: p, random: random, m: m,
		roles: map[string]*testmesh.Process{"issuer": m.Issuer, "broker": m.Broker, "proxy": m.Proxy}}
	e.stalls.watch(t)
	e.ledger = newLedger(e)
	e.crew = newCrew(e)
	return e
}

func (e *era) run(rounds int) {
	e.crew.man()
	e.crew.awaitService("the start", time.Now())
	e.before = e.remains()
	e.p.begin()
	for n := 1; n <= rounds && !e.p.over(); n++ {
		e.round(n)
		e.p.rounds++
		e.p.tick()
		e.stopAtViolation()
	}
	e.end()
	e.stopAtViolation()
}

// round kills something under load, begins it again and looks at what came of it.
func (e *era) round(n int) {
	victims := e.choose()
	how := "and wait"
	switch e.random.IntN(10) {
	case 0, 1:
		how = "again while it starts"
	case 2:
		how = "and go on at once"
	}
	e.note("round %d: kill %s %s", n, strings.Join(victims, " and "), how)
	e.crew.revokeSomebody(n)
	time.Sleep(time.Duration(e.random.IntN(60)) * time.Millisecond)
	killed := time.Now()
	for _, v := range victims {
		e.kill(v)
	}
	time.Sleep(time.Duration(e.random.IntN(30)) * time.Millisecond)
	if how == "again while it starts" && e.roles[victims[0]] != nil {
		role := e.roles[victims[0]]
		role.Resume()
		time.Sleep(time.Duration(e.random.IntN(250)) * time.Millisecond)
		e.kill(victims[0])
	}
	// In any order: each role finds the others when they come.
	e.random.Shuffle(len(victims), func(i, j int) { victims[i], victims[j] = victims[j], victims[i] })
	for _, v := range victims {
		if role := e.roles[v]; role != nil {
			role.Resume()
		}
	}
	for _, v := range victims {
		if role := e.roles[v]; role != nil {
			role.AwaitReady()
		} else {
			e.m.PG.Begin()
		}
	}
	e.crew.man()
	if how != "and go on at once" {
		e.crew.awaitService(strings.Join(victims, " and "), killed)
	}
	if n%5 == 0 {
		e.ledger.balance()
	}
}

// choose picks what is killed: mostly one, sometimes more at once.
func (e *era) choose() []string {
	all := []string{"proxy", "proxy", "broker", "issuer", "target"}
	first := all[e.random.IntN(len(all))]
	victims := []string{first}
	if e.random.IntN(10) == 0 {
		for _, v := range all[1:] {
			if v != first && e.random.IntN(2) == 0 {
				victims = append(victims, v)
			}
		}
	}
	return victims
}

// kill ends one with SIGKILL. One that ended by itself, or that panicked or raced before, is a violation.
func (e *era) kill(name string) {
	e.p.kills[name]++
	role := e.roles[name]
	if role == nil {
		e.ledger.killed("target")
		e.m.PG.Kill()
		return
	}
	if role.Ended() {
		e.ledger.violation("the %s ended by itself:\n%s", name, role.Log())
	}
	below := childrenOf(role.Pid())
	e.ledger.killed(name)
	role.Kill()
	for _, word := range []string{"WARNING: DATA RACE", "panic:", "fatal error:", "goroutine 1 ["} {
		if text := role.Log(); strings.Contains(text, word) {
			e.ledger.violation("the %s said %q:\n%s", name, word, text)
		}
	}
	awaitGone(e, name, below)
}

// end stops the load and looks at everything once more, when nothing is under way.
func (e *era) end() {
	e.crew.awaitService("the end", time.Now())
	after := e.remains()
	e.before.compare(e, after)
	e.crew.dismiss()
	e.m.SettledRecords(e.t, "proxy")
	e.ledger.balance()
	e.ledger.close()
	e.verify()
}

// verify proves the logs of all roles offline. They are long, and the machine may have other things to do.
func (e *era) verify() {
	args := []string{testmesh.Deputy(e.t), "audit", "verify", "--keys", e.m.KeysFile()}
	for role := range e.roles {
		args = append(args, e.m.LogDir(role))
	}
	if r := testmesh.Exec(e.t, testmesh.Command{Args: args, Within: 30 * time.Minute}); r.Code != 0 {
		e.ledger.violation("the logs don't hold: %s", r)
	}
}

func (e *era) note(format string, args ...any) {
	e.doing = append(e.doing, time.Now().Format("15:04:05.000 ")+fmt.Sprintf(format, args...))
	if len(e.doing) > 200 {
		e.doing = e.doing[100:]
	}
}

// stopAtViolation keeps what is needed to look at the first violation, and ends the test.
func (e *era) stopAtViolation() {
	found := e.ledger.violations()
	if len(found) == 0 && !e.t.Failed() {
		return
	}
	dir := *keep
	if dir == "" {
		var err error
		if dir, err = os.MkdirTemp("", "deputy-soak-"); err != nil {
			e.t.Fatal(err)
		}
	}
	text := fmt.Sprintf("seed %d, round %d\n\n%s\n\nlast rounds:\n%s\n\nlast attempts:\n%s", *seed, e.p.rounds,
		strings.Join(found, "\n"), strings.Join(e.doing, "\n"), strings.Join(e.crew.last(), "\n"))
	for name, role := range e.roles {
		_ = os.WriteFile(filepath.Join(dir, name+".log"), []byte(role.Log()), 0o600)
	}
	_ = os.WriteFile(filepath.Join(dir, "violation"), []byte(text), 0o600)
	// Keys of a mesh that ends now are worth nothing, and the logs can't be verified without the public ones.
	if out, err := exec.Command("cp", "-a", e.m.Dir, dir).CombinedOutput(); err != nil {
		e.t.Logf("keeping the mesh's folder: %v: %s", err, out)
	}
	e.t.Fatalf("round %d: %s\nkept: %s", e.p.rounds, strings.Join(found, "\n"), dir)
}

// effects takes the rows that are at the target now.
func (e *era) effects() map[string][]time.Time {
	ctx := context.Background()
	conn, err := e.m.PG.Connect(ctx, testpg.Admin, testpg.AdminPassword, testpg.Database)
	if err != nil {
		e.t.Fatalf("the target itself: %v", err)
	}
	defer conn.Close(ctx)
	r := conn.ExecParams(ctx, "delete from effects returning token, (extract(epoch from at) * 1000000)::bigint", nil, nil, nil, nil).Read()
	if r.Err != nil {
		e.t.Fatalf("the target itself: %v", r.Err)
	}
	out := map[string][]time.Time{}
	for _, row := range r.Rows {
		var us int64
		if _, err := fmt.Sscan(string(row[1]), &us); err != nil {
			e.t.Fatal(err)
		}
		out[string(row[0])] = append(out[string(row[0])], time.UnixMicro(us))
	}
	return out
}
