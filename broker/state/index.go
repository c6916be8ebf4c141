package state

import (
	"fmt"
	"strings"

	"github.com/hashicorp/go-memdb"

	"github.com/deputymesh/deputy/internal/feed"
)

const (
	tableSessions    = "sessions"
	tableRevocations = "revocations"
	tableEnded       = "ended"

	byID    = "id"
	bySID   = "sid"
	byUser  = "user"
	byAgent = "agent"
	byMatch = "match"
)

// key is a memdb index over the string that it makes of a row; arguments are the parts of that string.
type key func(row any) string

func (k key) FromObject(row any) (bool, []byte, error) {
	s := k(row)
	return s != "", []byte(s + "\x00"), nil
}

func (k key) FromArgs(args ...any) ([]byte, error) {
	if len(args) != 1 {
		return nil, fmt.Errorf("%d arguments, want 1", len(args))
	}
	s, ok := args[0].(string)
	if !ok {
		return nil, fmt.Errorf("argument is %T, want string", args[0])
	}
	return []byte(s + "\x00"), nil
}

// join makes a key of parts that can't run into each other.
func join(parts ...string) string {
	var b strings.Builder
	for _, p := range parts {
		fmt.Fprintf(&b, "%d:%s", len(p), p)
	}
	return b.String()
}

func matchKey(m feed.Match) string { return join(string(m.Kind), m.Issuer, m.Value, m.Delegate) }

func index(name string, unique bool, k key) *memdb.IndexSchema {
	return &memdb.IndexSchema{Name: name, Unique: unique, AllowMissing: !unique, Indexer: k}
}

func schema() *memdb.DBSchema {
	return &memdb.DBSchema{Tables: map[string]*memdb.TableSchema{
		tableSessions: {Name: tableSessions, Indexes: map[string]*memdb.IndexSchema{
			byID:    index(byID, true, func(r any) string { return r.(*Session).Txn }),
			bySID:   index(bySID, false, func(r any) string { return r.(*Session).SID }),
			byUser:  index(byUser, false, func(r any) string { s := r.(*Session); return join(s.User.Issuer, s.User.Subject) }),
			byAgent: index(byAgent, false, func(r any) string { return r.(*Session).FirstAgent.String() }),
		}},
		tableRevocations: {Name: tableRevocations, Indexes: map[string]*memdb.IndexSchema{
			byID:    index(byID, true, func(r any) string { return r.(*Revocation).ID }),
			byMatch: index(byMatch, false, func(r any) string { return matchKey(r.(*Revocation).Of) }),
		}},
		tableEnded: {Name: tableEnded, Indexes: map[string]*memdb.IndexSchema{
			byID: index(byID, true, func(r any) string { return r.(*EndedAgent).ID }),
		}},
	}}
}
