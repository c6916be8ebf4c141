// Package sqlite keeps the issuer's agents in an embedded database.
package sqlite

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/internal/sqlite"
	"github.com/deputymesh/deputy/issuer/spawn"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Store implements spawn.Store.
type Store struct {
	db *sql.DB
}

var _ spawn.Store = (*Store)(nil)

// Open opens or makes the database; the caller closes it.
func Open(path string) (*Store, error) {
	sub, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return nil, err
	}
	db, err := sqlite.Open(path, sub)
	if err != nil {
		return nil, err
	}
	return &Store{db}, nil
}

// Close closes the database.
func (s *Store) Close() error { return s.db.Close() }

const columns = `spiffe_id, ended, registered, isolate, claimed, uid, registrant, launcher_cgroup, attached, relayed, boot_id, pid, start, proc_uid, cgroup, grade, key`

// Create keeps a new agent.
func (s *Store) Create(ctx context.Context, r spawn.Record) error {
	res, err := s.db.ExecContext(ctx, `INSERT INTO agents (instance, `+columns+`)
		VALUES (?, ?, 0, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING`,
		append([]any{instance(r.ID), r.ID.String()}, values(r)...)...)
	if err != nil {
		return fmt.Errorf("keeping agent %s: %w", r.ID, err)
	}
	if n, err := res.RowsAffected(); err != nil {
		return fmt.Errorf("keeping agent %s: %w", r.ID, err)
	} else if n == 0 {
		return fmt.Errorf("keeping agent %s: %w", r.ID, spawn.ErrExists)
	}
	return nil
}

// Save replaces what is known of a live agent.
func (s *Store) Save(ctx context.Context, r spawn.Record) error {
	res, err := s.db.ExecContext(ctx, `UPDATE agents SET registered = ?, isolate = ?, claimed = ?, uid = ?, registrant = ?, launcher_cgroup = ?, attached = ?, relayed = ?,
		boot_id = ?, pid = ?, start = ?, proc_uid = ?, cgroup = ?, grade = ?, key = ? WHERE spiffe_id = ? AND ended = 0`,
		append(values(r), r.ID.String())...)
	if err != nil {
		return fmt.Errorf("saving agent %s: %w", r.ID, err)
	}
	if n, err := res.RowsAffected(); err != nil {
		return fmt.Errorf("saving agent %s: %w", r.ID, err)
	} else if n == 0 {
		return fmt.Errorf("saving agent %s: it has ended or was never made", r.ID)
	}
	return nil
}

func values(r spawn.Record) []any {
	key := r.Key
	if key == nil {
		key = []byte{}
	}
	return []any{
		r.Registered.UnixNano(), r.Isolate, r.Claimed, int64(r.UID), int64(r.Registrant), r.LauncherCgroup, r.Attached, r.Relayed,
		r.BootID, int64(r.PID), int64(r.Start), int64(r.ProcUID), r.Cgroup, string(r.Grade), key,
	}
}

// End ends agents in one transaction.
func (s *Store) End(ctx context.Context, ids []actor.AgentID, reason string, at time.Time) (out []spawn.Ended, err error) {
	tx, err := s.db.BeginTx(ctx, nil)
	if err != nil {
		return nil, fmt.Errorf("ending agents: %w", err)
	}
	defer func() {
		if err != nil {
			out, err = nil, fmt.Errorf("ending agents: %w", errors.Join(err, tx.Rollback()))
		}
	}()
	for i, id := range ids {
		why := reason
		if i > 0 {
			why = spawn.ReasonAncestor
		}
		res, err := tx.ExecContext(ctx, `UPDATE agents SET ended = 1, forgotten = 1 - attached WHERE spiffe_id = ? AND ended = 0`, id.String())
		if err != nil {
			return nil, err
		}
		if n, err := res.RowsAffected(); err != nil {
			return nil, err
		} else if n == 0 {
			continue
		}
		res, err = tx.ExecContext(ctx, `INSERT INTO ended_agents (spiffe_id, reason, ended_at) VALUES (?, ?, ?)`, id.String(), why, at.UnixNano())
		if err != nil {
			return nil, err
		}
		rev, err := res.LastInsertId()
		if err != nil {
			return nil, err
		}
		out = append(out, spawn.Ended{Revision: uint64(rev), ID: id, Reason: why, At: at})
	}
	return out, tx.Commit()
}

// Forget drops the process of an ended agent.
func (s *Store) Forget(ctx context.Context, id actor.AgentID) error {
	if _, err := s.db.ExecContext(ctx, `UPDATE agents SET forgotten = 1 WHERE spiffe_id = ? AND ended = 1`, id.String()); err != nil {
		return fmt.Errorf("forgetting agent %s: %w", id, err)
	}
	return nil
}

// Load returns the agents that still matter.
func (s *Store) Load(ctx context.Context) (out []spawn.Record, err error) {
	rows, err := s.db.QueryContext(ctx, `SELECT `+columns+` FROM agents WHERE ended = 0 OR forgotten = 0 ORDER BY length(spiffe_id), spiffe_id`)
	if err != nil {
		return nil, fmt.Errorf("loading agents: %w", err)
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		var r spawn.Record
		var id, grade string
		var registered, start int64
		if err := rows.Scan(&id, &r.Ended, &registered, &r.Isolate, &r.Claimed, &r.UID, &r.Registrant, &r.LauncherCgroup, &r.Attached, &r.Relayed,
			&r.BootID, &r.PID, &start, &r.ProcUID, &r.Cgroup, &grade, &r.Key); err != nil {
			return nil, fmt.Errorf("loading agents: %w", err)
		}
		if r.ID, err = actor.AgentIDFromString(id); err != nil {
			return nil, fmt.Errorf("loading agents: %w", err)
		}
		r.Registered, r.Start, r.Grade = time.Unix(0, registered), uint64(start), actor.Grade(grade)
		out = append(out, r)
	}
	return out, rows.Err()
}

// EndedAfter pages through the ended agents.
func (s *Store) EndedAfter(ctx context.Context, after uint64, limit int) (out []spawn.Ended, err error) {
	rows, err := s.db.QueryContext(ctx, `SELECT revision, spiffe_id, reason, ended_at FROM ended_agents WHERE revision > ? ORDER BY revision LIMIT ?`, int64(min(after, 1<<62)), limit)
	if err != nil {
		return nil, fmt.Errorf("reading ended agents: %w", err)
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		var e spawn.Ended
		var id string
		var at int64
		if err := rows.Scan(&e.Revision, &id, &e.Reason, &at); err != nil {
			return nil, fmt.Errorf("reading ended agents: %w", err)
		}
		if e.ID, err = actor.AgentIDFromString(id); err != nil {
			return nil, fmt.Errorf("reading ended agents: %w", err)
		}
		e.At = time.Unix(0, at)
		out = append(out, e)
	}
	return out, rows.Err()
}

// Revision is the newest revision.
func (s *Store) Revision(ctx context.Context) (uint64, error) {
	var n uint64
	if err := s.db.QueryRowContext(ctx, `SELECT coalesce(max(revision), 0) FROM ended_agents`).Scan(&n); err != nil {
		return 0, fmt.Errorf("reading the newest revision: %w", err)
	}
	return n, nil
}

func instance(id actor.AgentID) string {
	s := id.Segments()
	return s[len(s)-1].Instance
}
