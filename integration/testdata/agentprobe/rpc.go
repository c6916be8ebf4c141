package main

import (
	"context"
	"fmt"
	"os"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
)

// rpc URL|env:VARIABLE METHOD calls a gRPC health service by the run's listener: check once, list (which the tests' policy refuses), or watch until the
// stream ends.
func rpc(ctx context.Context, args []string) error {
	url := args[0]
	if name, ok := strings.CutPrefix(url, "env:"); ok {
		url = os.Getenv(name)
	}
	conn, err := grpc.NewClient("passthrough:///"+strings.TrimPrefix(url, "http://"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	health := healthv1.NewHealthClient(conn)
	switch args[1] {
	case "check":
		a, err := health.Check(ctx, &healthv1.HealthCheckRequest{})
		if err != nil {
			return err
		}
		fmt.Println(a.GetStatus())
		return nil
	case "list":
		_, err := health.List(ctx, &healthv1.HealthListRequest{})
		return err
	}
	w, err := health.Watch(ctx, &healthv1.HealthCheckRequest{})
	for err == nil {
		var a *healthv1.HealthCheckResponse
		if a, err = w.Recv(); err == nil {
			fmt.Println(a.GetStatus())
		}
	}
	return err
}
