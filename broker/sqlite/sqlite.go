// Package sqlite keeps the broker's state in an embedded database. It implements state.Store.
package sqlite

import (
	"context"
	"database/sql"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/broker/state"
	"github.com/deputymesh/deputy/internal/feed"
	"github.com/deputymesh/deputy/internal/sqlite"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Store is an open database.
type Store struct{ db *sql.DB }

// Open opens or makes the database at path. The caller closes it.
func Open(path string) (*Store, error) {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return nil, err
	}
	db, err := sqlite.Open(path, files)
	if err != nil {
		return nil, err
	}
	return &Store{db}, nil
}

// Close closes the database.
func (s *Store) Close() error { return s.db.Close() }

// Load implements state.Store.
func (s *Store) Load(ctx context.Context) (state.Contents, error) {
	var c state.Contents
	tx, err := s.db.BeginTx(ctx, nil)
	if err != nil {
		return c, err
	}
	defer tx.Rollback() //nolint:errcheck // it only reads
	if err := tx.QueryRowContext(ctx, `SELECT revision, issuer_revision FROM meta`).Scan(&c.Revision, &c.IssuerRevision); err != nil {
		return c, fmt.Errorf("reading the revision: %w", err)
	}
	if err := loadSessions(ctx, tx, &c); err != nil {
		return c, fmt.Errorf("reading the sessions: %w", err)
	}
	if err := loadRevocations(ctx, tx, &c); err != nil {
		return c, fmt.Errorf("reading the revocations: %w", err)
	}
	if err := loadEnded(ctx, tx, &c); err != nil {
		return c, fmt.Errorf("reading the ended agents: %w", err)
	}
	var p state.Policy
	switch err := tx.QueryRowContext(ctx, `SELECT version, signed FROM policy`).Scan(&p.Version, &p.Signed); {
	case err == nil:
		c.Policy = &p
	case !errors.Is(err, sql.ErrNoRows):
		return c, fmt.Errorf("reading the policy set: %w", err)
	}
	return c, nil
}

func loadSessions(ctx context.Context, tx *sql.Tx, c *state.Contents) error {
	return each(ctx, tx, `SELECT txn, sid, root_hash, iss, sub, login_key, first_agent, cap, purpose, auth_time, acr, opened_at, ends_at, ended_at
		FROM sessions ORDER BY txn`, func(rows *sql.Rows) error {
		var v state.Session
		var agent, capability string
		var auth, opened, ends int64
		var ended sql.NullInt64
		if err := rows.Scan(&v.Txn, &v.SID, &v.RootHash, &v.User.Issuer, &v.User.Subject, &v.LoginKey, &agent, &capability,
			&v.Purpose, &auth, &v.ACR, &opened, &ends, &ended); err != nil {
			return err
		}
		var err error
		if v.FirstAgent, err = actor.AgentIDFromString(agent); err != nil {
			return err
		}
		if v.Cap, err = actor.ParseDetails([]byte(capability)); err != nil {
			return err
		}
		v.AuthTime, v.Opened, v.Ends = at(auth), at(opened), at(ends)
		if ended.Valid {
			v.EndedAt = at(ended.Int64)
		}
		c.Sessions = append(c.Sessions, v)
		return nil
	})
}

func loadRevocations(ctx context.Context, tx *sql.Tx, c *state.Contents) error {
	return each(ctx, tx, `SELECT id, revision, kind, iss, value, delegate, issued_at, expires_at, reason, asked_by
		FROM revocations ORDER BY revision`, func(rows *sql.Rows) error {
		var v state.Revocation
		var kind string
		var issued, expires int64
		if err := rows.Scan(&v.ID, &v.Revision, &kind, &v.Of.Issuer, &v.Of.Value, &v.Of.Delegate, &issued, &expires, &v.Reason, &v.By); err != nil {
			return err
		}
		v.Of.Kind, v.IssuedAt, v.ExpiresAt = feed.Kind(kind), at(issued), at(expires)
		if err := v.Of.Check(); err != nil {
			return err
		}
		c.Revocations = append(c.Revocations, v)
		return nil
	})
}

func loadEnded(ctx context.Context, tx *sql.Tx, c *state.Contents) error {
	return each(ctx, tx, `SELECT spiffe_id, revision, issuer_revision, ended_at, reason FROM ended_agents ORDER BY revision`, func(rows *sql.Rows) error {
		var v state.EndedAgent
		var ended int64
		if err := rows.Scan(&v.ID, &v.Revision, &v.IssuerRevision, &ended, &v.Reason); err != nil {
			return err
		}
		v.EndedAt = at(ended)
		c.Ended = append(c.Ended, v)
		return nil
	})
}

func each(ctx context.Context, tx *sql.Tx, query string, scan func(*sql.Rows) error) error {
	rows, err := tx.QueryContext(ctx, query)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := scan(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

// Commit implements state.Store.
func (s *Store) Commit(ctx context.Context, c state.Change) error {
	tx, err := s.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	if err := write(ctx, tx, c); err != nil {
		return errors.Join(err, tx.Rollback())
	}
	return tx.Commit()
}

func write(ctx context.Context, tx *sql.Tx, c state.Change) error {
	w := writer{ctx: ctx, tx: tx}
	if c.Revision != 0 && w.exec(`UPDATE meta SET revision = ?1 WHERE revision = ?1 - 1`, c.Revision) == 0 && w.err == nil {
		return fmt.Errorf("revision %d: %w", c.Revision, state.ErrConflict)
	}
	if c.ForgetIssuer {
		w.exec(`UPDATE meta SET issuer_revision = 0`)
	}
	if v := c.Open; v != nil {
		capability, err := json.Marshal(v.Cap)
		if err != nil {
			return fmt.Errorf("encoding a session's cap: %w", err)
		}
		var ended any
		if !v.EndedAt.IsZero() {
			ended = v.EndedAt.UnixMicro()
		}
		if w.exec(`INSERT INTO sessions (txn, sid, root_hash, iss, sub, login_key, first_agent, cap, purpose, auth_time, acr, opened_at, ends_at, ended_at)
			VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?) ON CONFLICT DO NOTHING`, v.Txn, v.SID, v.RootHash, v.User.Issuer, v.User.Subject, v.LoginKey,
			v.FirstAgent.String(), string(capability), v.Purpose, v.AuthTime.UnixMicro(), v.ACR, v.Opened.UnixMicro(), v.Ends.UnixMicro(), ended) == 0 && w.err == nil {
			return state.ErrExists
		}
	}
	for _, txn := range c.End {
		w.exec(`UPDATE sessions SET ended_at = ? WHERE txn = ? AND ended_at IS NULL`, c.EndAt.UnixMicro(), txn)
	}
	if v := c.Revocation; v != nil {
		w.exec(`INSERT INTO revocations (id, revision, kind, iss, value, delegate, issued_at, expires_at, reason, asked_by) VALUES (?,?,?,?,?,?,?,?,?,?)`,
			v.ID, v.Revision, string(v.Of.Kind), v.Of.Issuer, v.Of.Value, v.Of.Delegate, v.IssuedAt.UnixMicro(), v.ExpiresAt.UnixMicro(), v.Reason, v.By)
	}
	if v := c.Ended; v != nil {
		w.exec(`INSERT INTO ended_agents (spiffe_id, revision, issuer_revision, ended_at, reason) VALUES (?,?,?,?,?)`,
			v.ID, v.Revision, v.IssuerRevision, v.EndedAt.UnixMicro(), v.Reason)
		w.exec(`UPDATE meta SET issuer_revision = max(issuer_revision, ?)`, v.IssuerRevision)
	}
	if v := c.Policy; v != nil {
		w.exec(`INSERT INTO policy (one, version, signed) VALUES (1, ?1, ?2) ON CONFLICT (one) DO UPDATE SET version = ?1, signed = ?2`, v.Version, v.Signed)
	}
	if v := c.Proof; v != nil {
		if w.exec(`INSERT INTO proofs (iss, jti, expires_at) VALUES (?,?,?) ON CONFLICT DO NOTHING`, v.Issuer, v.ID, v.Expires.UnixMicro()) == 0 && w.err == nil {
			return state.ErrReplayed
		}
	}
	if !c.Forget.IsZero() {
		before := c.Forget.UnixMicro()
		w.exec(`DELETE FROM sessions WHERE ends_at < ?`, before)
		w.exec(`DELETE FROM revocations WHERE expires_at < ?`, before)
		w.exec(`DELETE FROM proofs WHERE expires_at < ?`, before)
		w.exec(`DELETE FROM ended_agents WHERE ended_at < ?`, c.ForgetEnded.UnixMicro())
	}
	return w.err
}

// writer runs statements until the first that fails.
type writer struct {
	ctx context.Context
	tx  *sql.Tx
	err error
}

func (w *writer) exec(query string, args ...any) int64 {
	if w.err != nil {
		return 0
	}
	res, err := w.tx.ExecContext(w.ctx, query, args...)
	if err != nil {
		w.err = err
		return 0
	}
	n, err := res.RowsAffected()
	w.err = err
	return n
}

func at(us int64) time.Time { return time.UnixMicro(us).UTC() }

var _ state.Store = (*Store)(nil)
