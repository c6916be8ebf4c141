package sqlite_test

import (
	"path/filepath"
	"testing"

	"github.com/deputymesh/deputy/broker/sqlite"
	"github.com/deputymesh/deputy/broker/state"
	"github.com/deputymesh/deputy/broker/storetest"
)

func TestStore(t *testing.T) {
	dir := t.TempDir()
	storetest.Run(t, func(t *testing.T, name string) (state.Store, func()) {
		t.Helper()
		s, err := sqlite.Open(filepath.Join(dir, name+".db"))
		if err != nil {
			t.Fatal(err)
		}
		return s, func() {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		}
	})
}
