package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	agentv1 "github.com/deputymesh/deputy/proto/deputy/agent/v1"
	sessionv1 "github.com/deputymesh/deputy/proto/deputy/session/v1"
	spawnv1 "github.com/deputymesh/deputy/proto/deputy/spawn/v1"
)

// attack tries everything that another agent, the issuer and a user's sign-in would have to refuse, and prints one line per
// attempt: its name, and "refused: why" or "SERVED: what". What to attack stands in variables of its own, which
// `deputy run` leaves alone: A_DEPUTY (the program), A_AGENT (an agent's socket), A_PG (the folder of its database listener), A_PASS (its
// password file), A_ISSUER and A_SESSIONS (a folder of session helpers).
func attack(ctx context.Context, _ []string) error {
	if at := os.Getenv("A_AGENT"); at != "" {
		attackAgent(ctx, at)
	}
	if dir := os.Getenv("A_PG"); dir != "" {
		conn, err := net.Dial("unix", filepath.Join(dir, ".s.PGSQL.5432"))
		report("listener by path", func() (string, error) { return startSession(conn, err, "") })
	}
	if file := os.Getenv("A_PASS"); file != "" {
		report("listener by port and password", func() (string, error) {
			raw, err := os.ReadFile(file)
			if err != nil {
				return "", err
			}
			words := strings.Split(strings.TrimSpace(strings.SplitN(string(raw), "\n", 2)[0]), ":")
			if len(words) != 5 {
				return "", errors.New("what password file is this?")
			}
			conn, err := net.Dial("tcp", net.JoinHostPort(words[0], words[1]))
			return startSession(conn, err, words[4])
		})
	}
	if at := os.Getenv("A_ISSUER"); at != "" {
		attackIssuer(ctx, "unix://"+at)
	}
	if dir := os.Getenv("A_SESSIONS"); dir != "" {
		attackSessions(ctx, dir)
	}
	if deputy := os.Getenv("A_DEPUTY"); deputy != "" {
		report("a run of its own", func() (string, error) {
			cmd := exec.CommandContext(ctx, deputy, "run", "--as", "planner", "--no-isolate", "--", "echo", "in")
			for _, e := range os.Environ() {
				if !strings.HasPrefix(e, "DEPUTY_AGENT_SOCKET=") {
					cmd.Env = append(cmd.Env, e)
				}
			}
			out, err := cmd.CombinedOutput()
			if err != nil {
				return "", fmt.Errorf("%w: %s", err, out)
			}
			return string(out), nil
		})
	}
	fmt.Println("over")
	return nil
}

func report(name string, try func() (string, error)) {
	what, err := try()
	if err != nil {
		fmt.Printf("%s\trefused: %s\n", name, strings.ReplaceAll(status.Convert(err).Message(), "\n", " "))
		return
	}
	if len(what) > 150 {
		what = what[:150] + "…"
	}
	fmt.Printf("%s\tSERVED: %s\n", name, what)
}

func dialSocket(socket string) *grpc.ClientConn {
	conn, err := grpc.NewClient(socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		panic(err) // a malformed address: the test's own mistake
	}
	return conn
}

func attackAgent(ctx context.Context, socket string) {
	conn := dialSocket(socket)
	defer conn.Close()
	callAgent(ctx, conn)
}

func callAgent(ctx context.Context, conn *grpc.ClientConn) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	rpc := agentv1.NewAgentClient(conn)
	report("describe", func() (string, error) {
		r, err := rpc.Describe(ctx, &agentv1.DescribeRequest{})
		return r.GetSpiffeId(), err
	})
	report("credential", func() (string, error) {
		r, err := rpc.Credential(ctx, &agentv1.CredentialRequest{Target: "orders-db"})
		return fmt.Sprint(len(r.GetCredential()), " bytes"), err
	})
	report("spawn", func() (string, error) {
		stream, err := rpc.Spawn(ctx)
		if err != nil {
			return "", err
		}
		_ = stream.Send(&agentv1.SpawnRequest{Message: &agentv1.SpawnRequest_Start{Start: &agentv1.SpawnStart{
			Name: "thief", Delegation: &agentv1.Delegation{Left: -1}, Isolation: agentv1.Isolation_ISOLATION_NONE,
		}}})
		r, err := stream.Recv()
		return fmt.Sprint(r), err
	})
	report("svid", func() (string, error) {
		stream, err := workload.NewSpiffeWorkloadAPIClient(conn).FetchX509SVID(
			metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", "true"), &workload.X509SVIDRequest{})
		if err != nil {
			return "", err
		}
		r, err := stream.Recv()
		if err != nil {
			return "", err
		}
		return r.GetSvids()[0].GetSpiffeId(), nil
	})
}

func attackIssuer(ctx context.Context, socket string) {
	conn := dialSocket(socket)
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	rpc := spawnv1.NewSpawnClient(conn)
	report("register", func() (string, error) {
		r, err := rpc.Register(ctx, &spawnv1.RegisterRequest{Name: "planner"})
		return r.GetSpiffeId(), err
	})
	report("claim", func() (string, error) {
		r, err := rpc.Claim(ctx, &spawnv1.ClaimRequest{Ticket: make([]byte, 32)})
		return fmt.Sprint(r), err
	})
	report("ended", func() (string, error) {
		stream, err := rpc.Ended(ctx, &spawnv1.EndedRequest{})
		if err != nil {
			return "", err
		}
		r, err := stream.Recv()
		return fmt.Sprint(r), err
	})
	report("a role's svid", func() (string, error) {
		stream, err := workload.NewSpiffeWorkloadAPIClient(conn).FetchX509SVID(
			metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", "true"), &workload.X509SVIDRequest{})
		if err != nil {
			return "", err
		}
		r, err := stream.Recv()
		return fmt.Sprint(r), err
	})
}

func attackSessions(ctx context.Context, dir string) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	sockets, err := filepath.Glob(filepath.Join(dir, "*.sock"))
	if err != nil || len(sockets) == 0 {
		fmt.Printf("sign-in\trefused: no socket can be seen in %s\n", dir)
		return
	}
	for _, s := range sockets {
		conn := dialSocket("unix://" + s)
		rpc := sessionv1.NewSessionClient(conn)
		report("sign-in", func() (string, error) {
			r, err := rpc.Describe(ctx, &sessionv1.DescribeRequest{})
			return r.GetSubject(), err
		})
		report("user grant", func() (string, error) {
			r, err := rpc.SignUserGrant(ctx, &sessionv1.SignUserGrantRequest{
				Delegate: "spiffe://test.example/agent/planner/" + strings.Repeat("0", 32), Left: 3, Purpose: "none",
			})
			return fmt.Sprint(r), err
		})
		conn.Close()
	}
}

// startSession begins a PostgreSQL session on a run's local listener, and says whether it was let in.
func startSession(conn net.Conn, err error, password string) (string, error) {
	if err != nil {
		return "", err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	front := pgproto3.NewFrontend(conn, conn)
	front.Send(&pgproto3.StartupMessage{ProtocolVersion: pgproto3.ProtocolVersion30, Parameters: map[string]string{"user": "deputy", "database": "shop"}})
	if err := front.Flush(); err != nil {
		return "", err
	}
	for {
		msg, err := front.Receive()
		if err != nil {
			return "", err
		}
		switch msg := msg.(type) {
		case *pgproto3.AuthenticationCleartextPassword:
			front.Send(&pgproto3.PasswordMessage{Password: password})
			if err := front.Flush(); err != nil {
				return "", err
			}
		case *pgproto3.ErrorResponse:
			return "", errors.New(msg.Message)
		case *pgproto3.ReadyForQuery:
			return "let in", nil
		}
	}
}

// orphan is a daemon that an agent leaves behind: it waits until its supervisor (PID) is dead, killing it itself where told
// to, and attacks. What it says goes to FILE.
//
// Usage: orphan FILE PID kill|wait [FIFO], with FIFO for mask.
func orphan(ctx context.Context, args []string) error {
	out, err := os.OpenFile(args[0], os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o666)
	if err != nil {
		return err
	}
	os.Stdout = out
	var pid int
	if _, err := fmt.Sscan(args[1], &pid); err != nil {
		return err
	}
	fmt.Println("daemon", os.Getpid(), "of", os.Getppid())
	if args[2] == "kill" {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			fmt.Println("kill\trefused:", err)
		}
	}
	// Alive while it is a zombie too: its parent reaps it at once.
	for syscall.Kill(pid, 0) != syscall.ESRCH {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		time.Sleep(time.Millisecond)
	}
	fmt.Println("orphaned to", os.Getppid())
	if len(args) > 3 {
		return mask(ctx, args[3:])
	}
	return attack(ctx, nil)
}

// restrained puts a filter of system calls, which allows everything, on the program that it becomes.
func restrained(_ context.Context, args []string) error {
	runtime.LockOSThread()
	allow := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW}
	program := unix.SockFprog{Len: 1, Filter: &allow}
	if err := unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&program)), 0, 0); err != nil {
		return err
	}
	return syscall.Exec(args[0], args, os.Environ())
}

// sleep does nothing, for long; its argument tells it from others. Where that is a path, its process id stands there.
func sleep(ctx context.Context, args []string) error {
	if filepath.IsAbs(args[0]) {
		if err := os.WriteFile(args[0], fmt.Appendln(nil, os.Getpid()), 0o644); err != nil {
			return err
		}
	}
	<-ctx.Done()
	return ctx.Err()
}
