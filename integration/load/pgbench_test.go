//go:build bench

package load_test

import (
	"bytes"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/deputymesh/deputy/internal/testmesh"
	"github.com/deputymesh/deputy/internal/testpg"
)

// workload is a script of pgbench.
type workload struct {
	name string
	args []string
}

var (
	selectOnly = workload{"select-only", []string{"-S"}}
	tpcB       = workload{"TPC-B", nil}
)

// maskedSelect returns a column that a rule masks.
func (b *bench) maskedSelect() workload {
	path := b.file("masked.sql", "\\set aid random(1, 100000 * "+strconv.Itoa(scale)+")\nSELECT abalance, filler FROM pgbench_accounts WHERE aid = :aid;\n")
	return workload{"select masked", []string{"-f", path}}
}

var tps = regexp.MustCompile(`tps = ([0-9.]+) \(without`)

// pgbench runs one measurement and returns transactions per second.
func (b *bench) pgbench(pg *testpg.Server, r route, w workload, mode string, clients int) float64 {
	b.t.Helper()
	args := []string{pg.Bin("pgbench"), "-n", "-M", mode, "-c", strconv.Itoa(clients), "-j", "1", "-T", strconv.Itoa(int(b.seconds / time.Second))}
	args = append(args, w.args...)
	var c testmesh.Command
	if r.inside != nil {
		c = r.inside(args...)
	} else {
		c = testmesh.Command{Args: args, Env: r.env()}
	}
	c.Within = b.seconds + 2*time.Minute
	var got testmesh.Result
	for range 5 {
		// A machine that is busy with something else may need longer to connect than the measurement lasts.
		if got = testmesh.Exec(b.t, c); !strings.Contains(got.Stdout, "transactions actually processed: 0\n") {
			break
		}
		b.note("%s: no transaction in %s; once more", r.name, b.seconds)
	}
	m := tps.FindStringSubmatch(got.Stdout)
	if got.Code != 0 || m == nil || !strings.Contains(got.Stdout, "number of failed transactions: 0 ") {
		b.t.Fatalf("pgbench through %s: %s", r.name, got)
	}
	v, err := strconv.ParseFloat(m[1], 64)
	if err != nil {
		b.t.Fatal(err)
	}
	return v
}

var clientCounts = []int{1, 8, 32}

// Names of the subjects.
const (
	onDisk     = "Deputy"
	onMemory   = "Deputy, log on tmpfs"
	onListener = "Deputy, through the run's listener"
)

// servers are what pgbench is measured against.
type servers struct {
	pg       *testpg.Server
	routes   []route
	listener route // to the first one's log on disk
}

// beside is what is measured beside the routes: what an unmodified client in `deputy run` gets, at one place only.
func (s servers) beside(w workload, mode string, clients int) []route {
	if w.name == selectOnly.name && mode == "prepared" && clients == 8 {
		return []route{s.listener}
	}
	return nil
}

// servers starts them all, once.
func (b *bench) servers() servers {
	b.t.Helper()
	if b.world.pg == nil {
		pg := b.postgres()
		disk, memory := b.mesh(pg, ""), b.mesh(pg, b.onTmpfs())
		ben := disk.Login(b.t, "ben")
		b.world = servers{pg, []route{
			b.holder(disk, ben, depth3).route(onDisk),
			b.holder(memory, memory.Login(b.t, "ben"), depth3).route(onMemory),
			b.pgbouncer(pg), b.haproxy(pg), direct(pg),
		}, b.listener(ben, depth3)}
	}
	return b.world
}

var protocols = []string{"simple", "prepared"}

func measurePgbench(b *bench) {
	servers := b.servers()
	for _, w := range []workload{selectOnly, b.maskedSelect(), tpcB} {
		for _, mode := range protocols {
			for _, clients := range clientCounts {
				if !b.wants("pgbench", w.name, mode, strconv.Itoa(clients)) {
					continue
				}
				if w.name == selectOnly.name && b.wants("ladder", mode, strconv.Itoa(clients)) {
					continue // the ladder's top
				}
				routes := slices.Concat(servers.routes, servers.beside(w, mode, clients))
				b.comparePgbench(b.transactions(servers.pg, routes, w, mode, clients), w, mode, clients)
			}
		}
		b.write()
	}
}

// transactions measures a workload on all routes side by side: throughput, and the processor time that the process in between
// takes for one transaction, which a busy machine changes less.
func (b *bench) transactions(pg *testpg.Server, routes []route, w workload, mode string, clients int) map[string][]float64 {
	b.t.Helper()
	var subjects []subject
	spent := map[string][]float64{}
	for _, r := range routes {
		subjects = append(subjects, subject{r.name, func() float64 {
			defer b.profiled(r, fmt.Sprintf("%s-%s-%d-%s", w.name, mode, clients, r.name))()
			b.alive(r)
			before := b.processorTime(r.pid)
			v := b.pgbench(pg, r, w, mode, clients)
			b.alive(r)
			took := b.processorTime(r.pid) - before
			spent[r.name] = append(spent[r.name], float64(took.Microseconds())/(v*b.seconds.Seconds()))
			return v
		}})
	}
	got := b.sideBySide(fmt.Sprintf("%s, %s, %d clients", w.name, mode, clients), subjects)
	for _, r := range routes {
		if r.pid != 0 && r.name != "PgBouncer" {
			line := result{Name: "processor time, " + w.name, Unit: "µs/transaction"}
			line.Params = map[string]string{"protocol": mode, "clients": strconv.Itoa(clients), "step": r.name}
			b.compare(line, spent, r.name, "PgBouncer")
		}
	}
	return got
}

// alive fails the run with what a process said before it died.
func (b *bench) alive(r route) {
	b.t.Helper()
	if r.pid == 0 {
		return
	}
	if _, err := os.Stat(fmt.Sprintf("/proc/%d/stat", r.pid)); err == nil {
		return
	}
	said := ""
	if r.log != nil {
		said = r.log()
	}
	b.t.Fatalf("%s (pid %d) has ended:\n%s", r.name, r.pid, said[max(0, len(said)-4000):])
}

// processorTime of a process so far, without its children; 0 without one.
func (b *bench) processorTime(pid int) time.Duration {
	if pid == 0 {
		return 0
	}
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		b.t.Fatal(err)
	}
	f := strings.Fields(string(raw[bytes.LastIndexByte(raw, ')')+1:]))
	var ticks int64
	for _, i := range []int{11, 12} { // utime and stime
		n, err := strconv.ParseInt(f[i], 10, 64)
		if err != nil {
			b.t.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * time.Second / 100
}

func (b *bench) comparePgbench(got map[string][]float64, w workload, mode string, clients int) {
	line := result{Name: "pgbench " + w.name, Unit: "tps"}
	line.Params = map[string]string{"protocol": mode, "clients": strconv.Itoa(clients), "log": "disk"}
	line.aim = "≥ 0.60"
	if clients == 32 {
		line.aim = "≥ 0.75"
	}
	b.compare(line, got, onDisk, "PgBouncer")
	line.aim = ""
	b.compare(line, got, onDisk, "HAProxy", "direct")
	line.Params = map[string]string{"protocol": mode, "clients": strconv.Itoa(clients), "log": "tmpfs"}
	line.aim = "≥ 0.85"
	b.compare(line, got, onMemory, "PgBouncer")
	if got[onListener] != nil {
		line.Params = map[string]string{"protocol": mode, "clients": strconv.Itoa(clients), "log": "disk", "through": "the run's listener"}
		line.aim = ""
		b.compare(line, got, onListener, onDisk, "PgBouncer")
	}
}
