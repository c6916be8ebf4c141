package proxy

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	"github.com/hashicorp/go-memdb"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/internal/feed"
)

// sessions is the table of live sessions, indexed by everything that a revocation can name: user, sid,
// txn, agents and those above them, edges, statements and target.
type sessions struct{ db *memdb.MemDB }

// liveSession is one row. It is never changed, only replaced.
type liveSession struct {
	ID      string
	Matches []string
	session *Session
}

const sessionTable = "sessions"

func newSessions() (*sessions, error) {
	db, err := memdb.NewMemDB(&memdb.DBSchema{Tables: map[string]*memdb.TableSchema{
		sessionTable: {
			Name: sessionTable,
			Indexes: map[string]*memdb.IndexSchema{
				"id":    {Name: "id", Unique: true, Indexer: &memdb.StringFieldIndex{Field: "ID"}},
				"match": {Name: "match", Indexer: &memdb.StringSliceFieldIndex{Field: "Matches"}},
			},
		},
	}})
	if err != nil {
		return nil, fmt.Errorf("making the table of sessions: %w", err)
	}
	return &sessions{db}, nil
}

// put adds a session under the names that it can be revoked by, or replaces them.
func (t *sessions) put(s *Session, keys []actor.RevocationKey) error {
	row := &liveSession{ID: s.id, session: s}
	for _, k := range keys {
		row.Matches = append(row.Matches, matchKey(feed.MatchOf(k)))
	}
	txn := t.db.Txn(true)
	defer txn.Abort()
	if err := txn.Insert(sessionTable, row); err != nil {
		return fmt.Errorf("keeping the session: %w", err)
	}
	txn.Commit()
	return nil
}

func (t *sessions) remove(id string) {
	txn := t.db.Txn(true)
	defer txn.Abort()
	if _, err := txn.DeleteAll(sessionTable, "id", id); err == nil {
		txn.Commit()
	}
}

func (t *sessions) get(id string) *Session {
	row, err := t.db.Txn(false).First(sessionTable, "id", id)
	if err != nil || row == nil {
		return nil
	}
	return row.(*liveSession).session
}

// matching are the sessions that m ends.
func (t *sessions) matching(m feed.Match) []*Session { return t.list("match", matchKey(m)) }

func (t *sessions) all() []*Session { return t.list("id") }

func (t *sessions) list(index string, args ...any) []*Session {
	it, err := t.db.Txn(false).Get(sessionTable, index, args...)
	if err != nil {
		// Only a wrong schema can cause it; the table is made above and tested.
		panic(err)
	}
	var out []*Session
	for row := it.Next(); row != nil; row = it.Next() {
		out = append(out, row.(*liveSession).session)
	}
	return out
}

// matchKey names a match. The table keeps each name three times for each session, so it is a hash and not the text, which
// holds whole paths of agents.
func matchKey(m feed.Match) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %q %q %q", m.Kind, m.Issuer, m.Value, m.Delegate))
	return hex.EncodeToString(sum[:16])
}
