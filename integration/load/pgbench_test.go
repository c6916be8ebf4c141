//go:build bench

package load_test

import (
	"fmt"
	"regexp"
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
func (b *bench) pgbench(pg *testpg.Server, r route, w workload, mode string, clients int, round string) float64 {
	b.t.Helper()
	args := []string{pg.Bin("pgbench"), "-n", "-M", mode, "-c", strconv.Itoa(clients), "-j", "1", "-T", strconv.Itoa(int(b.seconds / time.Second))}
	c := testmesh.Command{Args: append(args, w.args...), Env: r.env(), Within: b.seconds + time.Minute}
	got := testmesh.Exec(b.t, c)
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
	onDisk   = "Deputy"
	onMemory = "Deputy, log on tmpfs"
)

func measurePgbench(b *bench) {
	pg := b.postgres()
	disk := b.mesh(pg, "")
	memory := b.mesh(pg, b.onTmpfs())
	diskRoute := b.holder(disk, disk.Login(b.t, "ben"), depth3).route(onDisk)
	memoryRoute := b.holder(memory, memory.Login(b.t, "ben"), depth3).route(onMemory)
	routes := []route{diskRoute, memoryRoute, b.pgbouncer(pg), b.haproxy(pg), direct(pg)}
	pids := map[string]int{onDisk: disk.Proxy.Pid(), onMemory: memory.Proxy.Pid()}
	for _, w := range []workload{selectOnly, b.maskedSelect(), tpcB} {
		for _, mode := range []string{"simple", "prepared"} {
			for _, clients := range clientCounts {
				if !b.wants("pgbench", w.name, mode, strconv.Itoa(clients)) {
					continue
				}
				var subjects []subject
				for _, r := range routes {
					subjects = append(subjects, subject{r.name, func() float64 {
						name := fmt.Sprintf("%s-%s-%d-%s", w.name, mode, clients, r.name)
						defer b.profiled(pids[r.name], name)()
						return b.pgbench(pg, r, w, mode, clients, name)
					}})
				}
				got := b.sideBySide(fmt.Sprintf("pgbench %s, %s, %d clients", w.name, mode, clients), subjects)
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
			}
		}
		b.write()
	}
}
