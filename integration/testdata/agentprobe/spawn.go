package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"time"

	"github.com/deputymesh/deputy/client"
)

// spawnMany starts sub-agents in this process, one after the other, and prints how many milliseconds each took to get its SVID.
func spawnMany(ctx context.Context, args []string) error {
	agent, err := client.FromEnvironment(ctx)
	if err != nil {
		return err
	}
	defer agent.Close()
	return many(args[0], func() (end func() error, err error) {
		sub, err := agent.Spawn(ctx, "sub", client.Delegation{})
		if err != nil {
			return nil, err
		}
		return sub.Close, nil
	})
}

// runMany runs a program again and again and prints how many milliseconds each run took.
func runMany(ctx context.Context, args []string) error {
	return many(args[0], func() (func() error, error) {
		cmd := exec.CommandContext(ctx, args[1], args[2:]...)
		cmd.Stderr = os.Stderr
		return nil, cmd.Run()
	})
}

func many(n string, act func() (end func() error, err error)) error {
	times, err := strconv.Atoi(n)
	if err != nil || times < 1 {
		return errors.Join(err, fmt.Errorf("%q times", n))
	}
	var ms []float64
	for range times {
		start := time.Now()
		end, err := act()
		if err != nil {
			return err
		}
		ms = append(ms, float64(time.Since(start).Microseconds())/1000)
		if end != nil {
			if err := end(); err != nil {
				return err
			}
		}
	}
	return json.NewEncoder(os.Stdout).Encode(ms)
}
