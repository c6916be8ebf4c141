// Package integration_test holds black-box tests of the built, race-enabled programs: each file's name is
// the claim that it proves.
package integration_test

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/deputymesh/deputy/internal/testmesh"
)

// patience is for what takes well under a second on a machine that has time.
const patience = time.Minute

func TestMain(m *testing.M) { testmesh.Main(m) }

func dirOf(path string) string { return filepath.Dir(path) }
