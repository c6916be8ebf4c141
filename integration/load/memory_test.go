//go:build bench

package load_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/deputymesh/deputy/internal/testmesh"
	"github.com/deputymesh/deputy/internal/testpg"
)

const (
	idleSessions = 500
	perTask      = 250 // one task may hold 256
	// settle is how long memory that was needed for a moment may take to go back.
	settle = 20 * time.Second
)

// measureMemory is what a role takes that has nothing to do, and what an open session takes at the proxy while nobody uses it.
func measureMemory(b *bench) {
	pg := testmesh.Shop(b.t, "max_connections = 800")
	m := b.mesh(pg, "")
	ben := m.Login(b.t, "ben")
	holders := []*holder{b.holder(m, ben, depth3), b.holder(m, ben, depth3)}
	b.note("memory: roles settle for %s", settle)
	time.Sleep(settle)
	for _, role := range []struct {
		name string
		pid  int
	}{{"issuer", m.Issuer.Pid()}, {"broker", m.Broker.Pid()}, {"proxy", m.Proxy.Pid()}, {"deputy run, three levels", holders[0].live.Pid()}} {
		line := result{Name: "memory, idle", Unit: "MB", Params: map[string]string{"role": role.name, "what": "resident"}, aim: "≤ 40 MB"}
		line.Value = b.resident(role.pid, "VmRSS") / 1024
		b.add(line)
		line.Params, line.aim = map[string]string{"role": role.name, "what": "of that, not the program's file"}, ""
		line.Value = b.resident(role.pid, "RssAnon") / 1024
		b.add(line)
	}
	before := b.resident(m.Proxy.Pid(), "VmRSS")
	for _, h := range holders {
		b.sit(h, m.Address("target"), m.Proxy.Pid())
	}
	b.note("memory: %d sessions settle for %s", idleSessions, settle)
	time.Sleep(settle)
	after := b.resident(m.Proxy.Pid(), "VmRSS")
	b.profileNow(m.Proxy.Pid(), "idle-sessions", "heap", "goroutine")
	b.add(result{Name: "memory, idle session at the proxy", Unit: "KB", Params: map[string]string{"sessions": fmt.Sprint(idleSessions)},
		Value: (after - before) / idleSessions, aim: "≤ 60 KB"})
}

// resident reads a line of /proc/PID/status, in KB.
func (b *bench) resident(pid int, what string) float64 {
	b.t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	b.try(err)
	m := regexp.MustCompile(what + `:\s+(\d+) kB`).FindSubmatch(raw)
	if m == nil {
		b.t.Fatalf("no %s of process %d", what, pid)
	}
	kb, err := strconv.Atoi(string(m[1]))
	b.try(err)
	return float64(kb)
}

// sit opens idle sessions from a process of their own, which holds them until the end.
func (b *bench) sit(h *holder, address string, proxy int) {
	b.t.Helper()
	config, err := json.Marshal(sitConfig{identity: h.identity(), Address: address, Sessions: perTask})
	b.try(err)
	self, err := os.Executable()
	b.try(err)
	cmd := exec.Command(self, sitArg)
	var complaint bytes.Buffer
	cmd.Stdin, cmd.Stderr = bytes.NewReader(config), &complaint
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	b.try(err)
	b.try(cmd.Start())
	b.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	word := make([]byte, 4)
	if _, err := io.ReadFull(out, word); err != nil {
		_ = cmd.Wait()
		b.t.Fatalf("opening idle sessions: %v\n%s", err, &complaint)
	}
}

// sitArg makes this binary a client that holds sessions.
const sitArg = "sit"

type sitConfig struct {
	identity
	Address  string
	Sessions int
}

func sitMain() error {
	var c sitConfig
	if err := json.NewDecoder(os.Stdin).Decode(&c); err != nil {
		return err
	}
	svid, err := x509svid.Parse([]byte(c.SVID), []byte(c.Key))
	if err != nil {
		return err
	}
	bundle, err := x509bundle.Parse(svid.ID.TrustDomain(), []byte(c.Bundle))
	if err != nil {
		return err
	}
	host, port, err := net.SplitHostPort(c.Address)
	if err != nil {
		return err
	}
	cfg, err := pgconn.ParseConfig(fmt.Sprintf("host=%s port=%s user=%s dbname=%s sslmode=require", host, port, testpg.App, testpg.Database))
	if err != nil {
		return err
	}
	cfg.TLSConfig, cfg.Password, cfg.Fallbacks = tlsconfig.MTLSClientConfig(svid, bundle, tlsconfig.AuthorizeAny()), c.Credential, nil
	cfg.TLSConfig.MinVersion = tls.VersionTLS13
	var held []*pgconn.PgConn
	for range c.Sessions {
		conn, err := pgconn.ConnectConfig(context.Background(), cfg)
		if err != nil {
			return err
		}
		// A session that did something, and now does nothing.
		_, err = conn.Exec(context.Background(), "SELECT 1").ReadAll()
		if err != nil {
			return err
		}
		held = append(held, conn)
	}
	fmt.Print("open")
	<-make(chan struct{})
	return errors.Join(held[0].Close(context.Background()))
}
