//go:build bench

package load_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// profileVariable names the folder with the sockets on which what is measured shows its profiles.
const profileVariable = "DEPUTY_BENCH_PROFILE"

// profiled collects profiles of a process while something is measured, if PROFILE asks for them; the function that it returns
// waits for them.
func (b *bench) profiled(r route, name string) func() {
	if b.profile == "" || !r.ours {
		return func() {}
	}
	pid := r.pid
	name = strings.NewReplacer(" ", "-", ",", "").Replace(name)
	var wg sync.WaitGroup
	wg.Go(func() {
		seconds := max(int(b.seconds/time.Second)-1, 1)
		b.fetch(pid, fmt.Sprintf("profile?seconds=%d", seconds), name+".cpu")
		for _, kind := range []string{"heap", "allocs", "mutex", "block"} {
			b.fetch(pid, kind, name+"."+kind)
		}
	})
	return wg.Wait
}

// profileNow collects profiles of a process as it is, if PROFILE asks for them.
func (b *bench) profileNow(pid int, name string, kinds ...string) {
	if b.profile == "" {
		return
	}
	for _, kind := range kinds {
		b.fetch(pid, kind, name+"."+kind)
	}
}

func (b *bench) fetch(pid int, what, name string) {
	socket := filepath.Join(os.Getenv(profileVariable), fmt.Sprintf("%d.sock", pid))
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
	defer client.CloseIdleConnections()
	resp, err := client.Get("http://profile/debug/pprof/" + what)
	if err != nil {
		b.t.Errorf("profiling: %v", err)
		return
	}
	defer resp.Body.Close()
	f, err := os.Create(filepath.Join(b.profile, name+".pb.gz"))
	if err != nil {
		b.t.Errorf("profiling: %v", err)
		return
	}
	_, err = io.Copy(f, resp.Body)
	if err := f.Close(); err != nil {
		b.t.Errorf("profiling: %v", err)
	}
	if err != nil {
		b.t.Errorf("profiling: %v", err)
	}
}
