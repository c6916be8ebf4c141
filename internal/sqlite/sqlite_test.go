package sqlite_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/deputymesh/deputy/internal/sqlite"
)

func migrations(bodies ...string) fstest.MapFS {
	m := fstest.MapFS{}
	names := []string{"0001_first.sql", "0002_second.sql"}
	for i, b := range bodies {
		m[names[i]] = &fstest.MapFile{Data: []byte("-- +goose Up\n" + b + "\n")}
	}
	return m
}

func TestOpenMigratesAndKeeps(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a ?#%.db")
	first := migrations("CREATE TABLE t (n INTEGER NOT NULL) STRICT;")
	db, err := sqlite.Open(path, first)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec("INSERT INTO t VALUES (7)"); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(path)
	if err != nil {
		t.Fatalf("the file isn't where it was asked for: %v", err)
	}
	if st.Mode().Perm() != 0o600 {
		t.Errorf("mode is %#o, want 0600", st.Mode().Perm())
	}

	second := migrations("CREATE TABLE t (n INTEGER NOT NULL) STRICT;", "ALTER TABLE t ADD COLUMN m INTEGER NOT NULL DEFAULT 1;")
	db, err = sqlite.Open(path, second)
	if err != nil {
		t.Fatal(err)
	}
	var n, m, sync int
	if err := db.QueryRow("SELECT n, m FROM t").Scan(&n, &m); err != nil || n != 7 || m != 1 {
		t.Errorf("after the second migration: %d %d %v", n, m, err)
	}
	if err := db.QueryRow("PRAGMA synchronous").Scan(&sync); err != nil || sync != 2 {
		t.Errorf("synchronous = %d %v, want 2", sync, err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := sqlite.Open(path, first); err == nil || !strings.Contains(err.Error(), "newer build") {
		t.Errorf("an older build opened a newer schema: %v", err)
	}
}

func TestOpenRefuses(t *testing.T) {
	good := migrations("CREATE TABLE t (n INTEGER) STRICT;")
	dir := t.TempDir()
	wide := filepath.Join(dir, "wide.db")
	if err := os.WriteFile(wide, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(wide, 0o644); err != nil {
		t.Fatal(err)
	}
	junk := filepath.Join(dir, "junk.db")
	if err := os.WriteFile(junk, []byte(strings.Repeat("not a database ", 100)), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		path string
		fs   fstest.MapFS
		want string
	}{
		"readable by others": {wide, good, "0600"},
		"not a database":     {junk, good, "not a database"},
		"no folder":          {filepath.Join(dir, "none", "x.db"), good, "no such file"},
		"bad migration":      {filepath.Join(dir, "bad.db"), migrations("CREATE GARBAGE;"), "migrating"},
		"no migrations":      {filepath.Join(dir, "none.db"), fstest.MapFS{}, "migrations"},
	} {
		t.Run(name, func(t *testing.T) {
			db, err := sqlite.Open(tc.path, tc.fs)
			if err == nil {
				db.Close()
				t.Fatal("it was opened")
			}
			if !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %q doesn't say %q", err, tc.want)
			}
		})
	}
}
