// Package soak_test kills roles under load, round after round, and holds the promises against what is left. `make test`
// runs a small share of it, `make soak` as much as is asked for.
package soak_test

import (
	"flag"
	"testing"
	"time"

	"github.com/deputymesh/deputy/internal/testmesh"
)

var (
	rounds  = flag.Int("rounds", 40, "how often something is killed")
	seconds = flag.Int("seconds", 45, "stop after so many seconds, whatever was done; 0 is no limit")
	seed    = flag.Uint64("seed", 0, "what is killed, and when; 0 picks one and prints it")
	pause   = flag.Duration("pause", 100*time.Millisecond, "between two statements of one connection")
	keep    = flag.String("keep", "", "folder for what a violation leaves to look at; a temporary one if empty")
)

// patience is for what takes well under a second on a machine that has time.
const patience = 90 * time.Second

func TestMain(m *testing.M) { testmesh.Main(m) }
