package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/deputymesh/deputy/client"
	agentv1 "github.com/deputymesh/deputy/proto/deputy/agent/v1"
	spawnv1 "github.com/deputymesh/deputy/proto/deputy/spawn/v1"
)

// flood asks for more than anybody may have: children that never attach, connections that say nothing, calls whose message
// never comes and messages that are too large, at its own agent's socket (A_AGENT) and the issuer's (A_ISSUER). It prints what it
// got, holds all that until its input ends, and then asks as an honest agent would.
func flood(ctx context.Context, _ []string) error {
	agent, issuer := os.Getenv("A_AGENT"), "unix://"+os.Getenv("A_ISSUER")
	held, drop := context.WithCancel(ctx)
	defer drop()
	floodSpawns(held, agent)
	for _, at := range []struct{ name, socket string }{{"agent", agent}, {"issuer", issuer}} {
		floodSizes(held, at.name, at.socket)
		floodCalls(held, at.name, at.socket)
		floodConnections(held, at.name, strings.TrimPrefix(at.socket, "unix://"))
	}
	fmt.Println("held")
	_, _ = os.Stdin.Read(make([]byte, 1))
	drop()
	for limit := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		a, err := client.FromEnvironment(ctx)
		if err == nil {
			var d client.Description
			if d, err = a.Describe(ctx); err == nil {
				fmt.Println("served", d.ID)
				return a.Close()
			}
			_ = a.Close()
		}
		if time.Now().After(limit) {
			return err
		}
	}
}

// floodSpawns asks for 300 children at once, and for sub-agents of this process.
func floodSpawns(ctx context.Context, socket string) {
	conn := dialSocket(socket)
	context.AfterFunc(ctx, func() { conn.Close() })
	rpc := agentv1.NewAgentClient(conn)
	var got, joined, limited, other atomic.Int64
	count := func(err error) {
		switch {
		case err == nil:
			got.Add(1)
		case status.Code(err) == codes.ResourceExhausted:
			limited.Add(1)
		default:
			if other.Add(1) == 1 {
				fmt.Println("spawn:", err)
			}
		}
	}
	var all sync.WaitGroup
	for i := range 300 {
		all.Go(func() {
			if i%3 == 0 {
				stream, err := rpc.Join(ctx)
				if err == nil {
					_ = stream.Send(&agentv1.JoinRequest{Name: "flood", Delegation: &agentv1.Delegation{Left: -1}, Csr: []byte("none")})
					_, err = stream.Recv()
				}
				if status.Code(err) == codes.InvalidArgument {
					joined.Add(1) // it was registered, and then failed by its request
					return
				}
				count(err)
				return
			}
			stream, err := rpc.Spawn(ctx)
			if err == nil {
				_ = stream.Send(&agentv1.SpawnRequest{Message: &agentv1.SpawnRequest_Start{Start: &agentv1.SpawnStart{
					Name: "flood", Delegation: &agentv1.Delegation{Left: -1}, Isolation: agentv1.Isolation_ISOLATION_NONE,
				}}})
				_, err = stream.Recv()
			}
			count(err)
		})
	}
	all.Wait()
	fmt.Printf("spawns got %d joined %d limited %d other %d\n", got.Load(), joined.Load(), limited.Load(), other.Load())
}

// floodConnections opens 700 connections and says nothing.
func floodConnections(ctx context.Context, name, path string) {
	opened := 0
	for range 700 {
		conn, err := net.DialTimeout("unix", path, 2*time.Second)
		if err != nil {
			continue
		}
		context.AfterFunc(ctx, func() { conn.Close() })
		opened++
	}
	fmt.Println(name, "connections", opened)
}

// floodCalls opens calls on 40 connections, and sends no message.
func floodCalls(ctx context.Context, name, socket string) {
	ctx = metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", "true")
	var opened atomic.Int64
	var all sync.WaitGroup
	for range 40 {
		all.Go(func() {
			conn := dialSocket(socket)
			context.AfterFunc(ctx, func() { conn.Close() })
			for range 100 {
				_, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, "/deputy.spawn.v1.Spawn/Register")
				if err != nil {
					return
				}
				opened.Add(1)
			}
		})
	}
	all.Wait()
	fmt.Println(name, "calls", opened.Load())
}

// floodSizes sends messages that no honest caller sends.
func floodSizes(ctx context.Context, name, socket string) {
	conn := dialSocket(socket)
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	huge := strings.Repeat("x", 8<<20)
	_, err := spawnv1.NewSpawnClient(conn).Register(ctx, &spawnv1.RegisterRequest{Name: huge})
	if name == "agent" {
		_, err = agentv1.NewAgentClient(conn).Credential(ctx, &agentv1.CredentialRequest{Target: huge})
	}
	if err == nil {
		err = errors.New("SERVED")
	}
	fmt.Println(name, "message", status.Code(err))
	_, err = workload.NewSpiffeWorkloadAPIClient(conn).FetchX509Bundles(metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", huge[:1<<20]), &workload.X509BundlesRequest{})
	fmt.Println(name, "header", status.Code(err))
}
