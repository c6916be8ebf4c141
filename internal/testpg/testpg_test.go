package testpg_test

import (
	"testing"

	"github.com/deputymesh/deputy/internal/testpg"
)

func TestServerHasTheShop(t *testing.T) {
	s := testpg.Start(t)
	if got := s.Value("select count(*) from customers"); got != "3" {
		t.Errorf("customers: %q, want 3", got)
	}
}
