package integration_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/internal/testmesh"
	"github.com/deputymesh/deputy/internal/testpg"
)

// sqlAttacker holds good credentials at a target whose policy masks a table, forbids another, and otherwise lets definers do
// whatever a permit for the whole database allows.
type sqlAttacker struct {
	*forge
	agent *x509svid.SVID
	// credentials of a reader, and of one who reads, writes and defines.
	reader, definer string
}

func newSQLAttacker(t *testing.T, schema ...string) *sqlAttacker {
	t.Helper()
	pg := testmesh.Shop(t)
	pg.Exec(append([]string{"set role " + testpg.App}, schema...)...)
	f := newForge(t, testmesh.Postgres(pg), testmesh.Policy(filepath.Join("testdata", "hostile-sql")))
	a := &sqlAttacker{forge: f, agent: f.trees(t, 1)[0].planner}
	credential := func(groups ...string) string {
		l := f.idp.signIn(t, "dora-"+strings.Join(groups, "-"), func(c map[string]any) { c["groups"] = groups })
		all := func(g *actor.UserGrant) {
			g.Cap = reach("select", "insert", "update", "delete", "truncate", "ddl", "admin", "call", "set", "copy", "lock", "listen")
		}
		return f.flow(l, f.root(l, a.agent, all), testmesh.Target, a.agent).credential()
	}
	a.reader, a.definer = credential("analysts"), credential("analysts", "support")
	return a
}

// sqlSession is a connection that remembers the notices.
type sqlSession struct {
	*pgconn.PgConn
	notices []string
}

func dial(t *testing.T, cfg *pgconn.Config) *sqlSession {
	t.Helper()
	s := &sqlSession{}
	cfg.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) { s.notices = append(s.notices, tells((*pgconn.PgError)(n))) }
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn, err := pgconn.ConnectConfig(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	s.PgConn = conn
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return s
}

// through connects by the proxy.
func (a *sqlAttacker) through(t *testing.T, credential string) *sqlSession {
	t.Helper()
	return dial(t, a.pg(a.agent, a.Address("target"), credential))
}

// direct connects to the server itself, as the proxy's account.
func (a *sqlAttacker) direct(t *testing.T) *sqlSession {
	t.Helper()
	cfg, err := pgconn.ParseConfig(a.PG.DSN(testpg.App, testpg.AppPassword, testmesh.Database))
	if err != nil {
		t.Fatal(err)
	}
	return dial(t, cfg)
}

// run sends statements, each in a Query of its own, rolls back whatever is open after them, and gives all that was heard.
func (s *sqlSession) run(t *testing.T, statements ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var b strings.Builder
	s.notices = nil
	for _, sql := range statements {
		var results []*pgconn.Result
		var err error
		if strings.HasPrefix(sql, "COPY ") && strings.Contains(sql, " TO STDOUT") {
			_, err = s.CopyTo(ctx, &b, sql)
		} else {
			results, err = s.Exec(ctx, sql).ReadAll()
		}
		for _, r := range results {
			for _, row := range r.Rows {
				for _, v := range row {
					fmt.Fprintf(&b, "%s|", v)
				}
				b.WriteString("\n")
			}
			fmt.Fprintf(&b, "%s\n", r.CommandTag)
		}
		var pg *pgconn.PgError
		switch {
		case errors.As(err, &pg):
			b.WriteString(tells(pg) + "\n")
		case err != nil:
			t.Fatalf("%s: %v", sql, err)
		}
	}
	if s.TxStatus() != 'I' {
		if _, err := s.Exec(ctx, "ROLLBACK").ReadAll(); err != nil {
			t.Fatal(err)
		}
	}
	return b.String() + strings.Join(s.notices, "\n")
}

// recordID is what differs between two refusals of the same.
var recordID = regexp.MustCompile(`\(record: [0-9a-f-]+\)`)

// tells is everything that an error or notice says.
func tells(e *pgconn.PgError) string {
	text := fmt.Sprintln(e.Severity, e.Code, e.Message, e.Detail, e.Hint, e.Where, e.SchemaName, e.TableName, e.ColumnName, e.DataTypeName, e.ConstraintName)
	return recordID.ReplaceAllString(strings.TrimSpace(text), "(record)")
}
