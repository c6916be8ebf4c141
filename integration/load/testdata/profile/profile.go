// This file is laid over cmd/deputy by `make bench PROFILE=dir` alone: roles then serve net/http/pprof on a Unix socket. What is
// shipped has no such listener.
package main

import (
	"fmt"
	"net"
	"net/http"
	_ "net/http/pprof"
	"os"
	"path/filepath"
	"runtime"
)

func init() {
	dir := os.Getenv("DEPUTY_BENCH_PROFILE")
	if dir == "" || len(os.Args) < 2 || (os.Args[1] != "proxy" && os.Args[1] != "broker" && os.Args[1] != "issuer") {
		return
	}
	l, err := net.Listen("unix", filepath.Join(dir, fmt.Sprintf("%d.sock", os.Getpid())))
	if err != nil {
		panic(err)
	}
	runtime.SetMutexProfileFraction(100)
	runtime.SetBlockProfileRate(100_000)
	go func() { _ = http.Serve(l, nil) }()
}
