//go:build bench

package load_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/deputymesh/deputy/client"
	"github.com/deputymesh/deputy/internal/testmesh"
	spawnv1 "github.com/deputymesh/deputy/proto/deputy/spawn/v1"
)

// spawnsPerRound of each kind.
const spawnsPerRound = 120

// measureSpawn is how long an agent waits for a sub-agent: the issuer alone, then with the supervisor in between, then with a
// process and a supervisor of its own.
func measureSpawn(b *bench) {
	pg := testmesh.Shop(b.t)
	m := b.mesh(pg, "", testmesh.Edit("issuer", func(c string) string {
		// The bench starts more agents than any team does, and is itself the supervisor of one. A mesh takes one edit per role.
		return usualLimits(c) + "  - name: bench\n    unix: {uid: " + fmt.Sprint(os.Geteuid()) + "}\nlimits: {spawn_rate: 100000, spawn_burst: 100000}\n"
	}))
	raw, err := os.ReadFile(m.Config("issuer"))
	b.try(err)
	socket := regexp.MustCompile(`(?m)^socket: (.+)$`).FindSubmatch(raw)
	if socket == nil {
		b.t.Fatal("the issuer's configuration names no socket")
	}
	self, err := os.Executable()
	b.try(err)
	ben := m.Login(b.t, "ben")
	probe, deputy := testmesh.Program(b.t, "agentprobe"), testmesh.Deputy(b.t)
	took := map[string][]float64{}
	kinds := []subject{
		{"the issuer alone", func() float64 {
			return keepDurations(b, took, "the issuer alone", b.runForOutput(exec.Command(self, spawnArg, string(socket[1]))))
		}},
		{"in the agent's process", func() float64 {
			r := ben.Run(b.t, []string{"planner"}, probe, "spawn", fmt.Sprint(spawnsPerRound))
			return keepDurations(b, took, "in the agent's process", r.Stdout)
		}},
		{"a process of its own", func() float64 {
			r := ben.Run(b.t, []string{"planner"}, probe, "runs", fmt.Sprint(spawnsPerRound/6), deputy, "run", "--as", "worker", "--", "true")
			return keepDurations(b, took, "a process of its own", r.Stdout)
		}},
	}
	b.sideBySide("spawn, p50 in ms", kinds)
	for _, k := range kinds {
		all := took[k.name]
		slices.Sort(all)
		for _, p := range []struct {
			name string
			at   int
			aim  string
		}{{"p50", len(all) / 2, "≤ 5 ms"}, {"p99", len(all) * 99 / 100, "≤ 25 ms"}} {
			line := result{Name: "spawn", Unit: "ms", Params: map[string]string{"kind": k.name, "at": p.name, "spawns": fmt.Sprint(len(all))}, Value: all[p.at]}
			if k.name != "a process of its own" {
				line.aim = p.aim
			}
			b.add(line)
		}
	}
}

// keepDurations reads what a program measured: a list of milliseconds as JSON on its last line.
func keepDurations(b *bench, took map[string][]float64, name, output string) float64 {
	b.t.Helper()
	lines := testmesh.Lines(output)
	var ms []float64
	if len(lines) == 0 || json.Unmarshal([]byte(lines[len(lines)-1]), &ms) != nil || len(ms) == 0 {
		b.t.Fatalf("%s: no measurements in %q", name, output)
	}
	took[name] = append(took[name], ms...)
	return median(ms)
}

func (b *bench) runForOutput(cmd *exec.Cmd) string {
	b.t.Helper()
	var errors bytes.Buffer
	cmd.Stderr = &errors
	out, err := cmd.Output()
	if err != nil {
		b.t.Fatalf("%v: %v\n%s", cmd.Args, err, &errors)
	}
	return string(out)
}

// spawnArg makes this binary a supervisor that has the issuer add one in-process sub-agent after the other, and measures from the
// Register call to the SVID on the Attach stream.
const spawnArg = "spawn"

func spawnMain() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	conn, err := grpc.NewClient("unix://"+strings.TrimSpace(os.Args[2]), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	issuer := spawnv1.NewSpawnClient(conn)
	if _, err := attach(ctx, issuer, "bench", false); err != nil {
		return err
	}
	var ms []float64
	for range spawnsPerRound {
		start := time.Now()
		stream, err := attach(ctx, issuer, "sub", true)
		if err != nil {
			return err
		}
		ms = append(ms, float64(time.Since(start).Microseconds())/1000)
		if err := stream.CloseSend(); err != nil {
			return err
		}
	}
	return json.NewEncoder(os.Stdout).Encode(ms)
}

func attach(ctx context.Context, issuer spawnv1.SpawnClient, name string, relayed bool) (spawnv1.Spawn_AttachClient, error) {
	_, csr, err := client.NewRequest()
	if err != nil {
		return nil, err
	}
	r, err := issuer.Register(ctx, &spawnv1.RegisterRequest{Name: name})
	if err != nil {
		return nil, err
	}
	stream, err := issuer.Attach(ctx)
	if err != nil {
		return nil, err
	}
	if err := stream.Send(&spawnv1.AttachRequest{Ticket: r.GetTicket(), Csr: csr, Relayed: relayed}); err != nil {
		return nil, err
	}
	_, err = stream.Recv()
	return stream, err
}
