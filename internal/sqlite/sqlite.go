// Package sqlite opens a role's embedded database: one file (0600), WAL, synchronous=FULL, so that a
// committed transaction survives a power cut, and the role's own migrations applied before anybody reads.
//
// Times are stored as integers and booleans as 0/1; the driver's own conversions aren't used.
package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/pressly/goose/v3"
	_ "modernc.org/sqlite" // the driver's name is "sqlite"
)

// openTimeout bounds opening and migrating; a database locked for longer belongs to another process.
const openTimeout = 30 * time.Second

// Open opens or makes the database at path and applies migrations: goose SQL files such as
// 0001_first.sql at the root of the file system. Write transactions begin IMMEDIATE, so that two of them queue
// instead of failing half-way. The caller closes the database.
func Open(path string, migrations fs.FS) (*sql.DB, error) {
	if err := makeFile(path); err != nil {
		return nil, fmt.Errorf("opening the database %s: %w", path, err)
	}
	db, err := sql.Open("sqlite", dsn(path))
	if err != nil {
		return nil, fmt.Errorf("opening the database %s: %w", path, err)
	}
	db.SetMaxOpenConns(4)
	db.SetMaxIdleConns(4)
	ctx, cancel := context.WithTimeout(context.Background(), openTimeout)
	defer cancel()
	if err := prepare(ctx, db, migrations); err != nil {
		return nil, errors.Join(fmt.Errorf("opening the database %s: %w", path, err), db.Close())
	}
	return db, nil
}

// makeFile makes the file with mode 0600, which SQLite's -wal and -shm files inherit, and refuses one that
// others can read or write.
func makeFile(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() {
		return errors.New("it is no regular file")
	}
	if st.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("its mode is %#o, so other users can reach it; set it to 0600", st.Mode().Perm())
	}
	return nil
}

func dsn(path string) string {
	q := url.Values{"_txlock": {"immediate"}, "_pragma": {
		"busy_timeout(5000)", "journal_mode(WAL)", "synchronous(FULL)", "foreign_keys(1)", "trusted_schema(0)",
	}}
	abs, err := filepath.Abs(path)
	if err != nil {
		abs = path
	}
	return (&url.URL{Scheme: "file", Path: abs, RawQuery: q.Encode()}).String()
}

func prepare(ctx context.Context, db *sql.DB, migrations fs.FS) error {
	// A pragma that doesn't take is silent in SQLite; durability isn't left to hope.
	var mode string
	if err := db.QueryRowContext(ctx, "PRAGMA journal_mode").Scan(&mode); err != nil {
		return err
	}
	var sync int
	if err := db.QueryRowContext(ctx, "PRAGMA synchronous").Scan(&sync); err != nil {
		return err
	}
	if !strings.EqualFold(mode, "wal") || sync != 2 {
		return fmt.Errorf("journal_mode is %s and synchronous %d where wal and 2 (FULL) are needed; is the folder on a network file system?", mode, sync)
	}
	p, err := goose.NewProvider(goose.DialectSQLite3, db, migrations)
	if err != nil {
		return fmt.Errorf("reading the migrations: %w", err)
	}
	have, err := p.GetDBVersion(ctx)
	if err != nil {
		return fmt.Errorf("reading the schema's version: %w", err)
	}
	all := p.ListSources()
	if newest := all[len(all)-1].Version; have > newest {
		return fmt.Errorf("its schema is version %d and this build knows up to %d; use the newer build", have, newest)
	}
	if _, err := p.Up(ctx); err != nil {
		return fmt.Errorf("migrating: %w", err)
	}
	return nil
}
