package supervise

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/deputymesh/deputy/client"
	"github.com/deputymesh/deputy/internal/supervise/kernel"
)

const (
	controlFD = 3
	linkFD    = 4
	// startTimeout is how long a new supervisor waits for its orders and grants.
	startTimeout = 20 * time.Second
)

// passedOn are the signals that a run passes on to its program.
var passedOn = []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2}

// RunIsolated is the supervisor process that a launcher started: it takes its orders from the inherited
// socket pairs and returns the program's exit code.
func RunIsolated(ctx context.Context, log *slog.Logger) (int, error) {
	if err := kernel.Guard(); err != nil {
		return exitFailed, err
	}
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, passedOn...)
	defer signal.Stop(signals)
	control, err := inherited(controlFD)
	if err != nil {
		return exitFailed, fmt.Errorf("this subcommand is for `deputy run` alone: %w", err)
	}
	defer control.Close()
	link, err := inherited(linkFD)
	if err != nil {
		return exitFailed, fmt.Errorf("this subcommand is for `deputy run` alone: %w", err)
	}
	defer link.Close()
	var start supervisorStart
	var chain client.Chain
	for _, r := range []struct {
		from *wire
		into any
	}{{control, &start}, {link, &chain}} {
		_ = r.from.conn.SetReadDeadline(time.Now().Add(startTimeout))
		if _, err := r.from.read(r.into, 0); err != nil {
			return exitFailed, fmt.Errorf("waiting for the launcher: %w", err)
		}
		_ = r.from.conn.SetReadDeadline(time.Time{})
	}
	launcher := newLauncherLink(control)
	s, err := Start(ctx, Config{
		Mesh: start.Mesh, Ticket: start.Ticket, Chain: chain, Upstream: linkUpstream(link),
		Dir: start.Dir, launcher: launcher, Log: log,
	})
	if err != nil {
		return exitFailed, err
	}
	go func() {
		_ = launcher.serve()
		s.end(errNoLauncher)
	}()
	env := s.Environment(start.Env)
	env = homeFor(env, start.Dir)
	cwd := start.Cwd
	if err := unix.Access(cwd, unix.X_OK); err != nil || os.Chdir(cwd) != nil {
		cwd = start.Dir
		fmt.Fprintf(os.Stderr, "deputy: %s runs under uid %d, which can't enter %s; it starts in %s instead.\n"+
			"deputy: hand the folder over, for example: setfacl -m u:%d:rwx %s (and x on the folders above), or use --no-isolate\n",
			s.ID().Name(), os.Getuid(), start.Cwd, cwd, os.Getuid(), start.Cwd)
	}
	code, err := s.Run(ctx, Command{
		Argv: start.Argv, Env: env, Dir: cwd, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Terminal: start.Terminal,
	}, signals)
	return code, errors.Join(err, s.Close())
}

func inherited(fd int) (*wire, error) {
	unix.CloseOnExec(fd)
	c, err := connFromFile(os.NewFile(uintptr(fd), "inherited"))
	if err != nil {
		return nil, err
	}
	return newWire(c), nil
}

// linkUpstream takes grants from the parent's end of the link.
func linkUpstream(link *wire) Upstream {
	return func(ctx context.Context, set func(client.Chain)) error {
		stop := context.AfterFunc(ctx, func() { link.Close() })
		defer stop()
		for {
			var c client.Chain
			if _, err := link.read(&c, 0); err != nil {
				return err
			}
			set(c)
		}
	}
}

// homeFor gives a program whose uid can't use the user's home folder one of its own.
func homeFor(env []string, dir string) []string {
	for _, e := range env {
		if home, ok := strings.CutPrefix(e, "HOME="); ok && unix.Access(home, unix.R_OK|unix.X_OK) == nil {
			return env
		}
	}
	home := filepath.Join(dir, "home")
	if err := os.Mkdir(home, 0o700); err != nil {
		return env
	}
	out := make([]string, 0, len(env)+1)
	for _, e := range env {
		if !strings.HasPrefix(e, "HOME=") {
			out = append(out, e)
		}
	}
	return append(out, "HOME="+home)
}
