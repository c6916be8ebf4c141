// Package integration_test holds black-box tests of the built, race-enabled programs: each file's name is
// the claim that it proves.
package integration_test

import (
	"testing"

	"github.com/deputymesh/deputy/internal/testmesh"
)

func TestMain(m *testing.M) { testmesh.Main(m) }
