package postgres

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/deputymesh/deputy/internal/sqlparse"
	"github.com/deputymesh/deputy/proxy"
)

// Classes of refusals that this engine makes itself.
const (
	classUnparsable  = "unparsable"  // no facts: it is no SQL that the parser knows
	classUnsupported = "unsupported" // understood, and not there yet
	classPinned      = "pinned"      // would change a setting that decisions rest on
	classMasked      = "masked"      // uses a masked column otherwise than as a plain output column
	classTarget      = "target"      // the target's catalogue can't be read

	classNoStatement  = "no_statement"  // names a prepared statement that isn't there
	classDupStatement = "dup_statement" // names one that is there already
	classNoCursor     = "no_cursor"     // names a cursor that isn't there
)

// decision is what one statement does, as far as its text and the catalogue say. It holds for one snapshot.
type decision struct {
	stmt *sqlparse.Statement
	cmd  proxy.Command
	// relations of the statement, in its order; nil where the catalogue has none of that name.
	relations []*relation
	// makes lists what it creates, if it is allowed.
	makes []qname
	// planned says that planning it runs nothing but what is known as harmless.
	planned bool
	// defines says that the catalogue may look different afterwards.
	defines bool
	// calls says that it runs code which isn't known as harmless: it may change what later decisions rest on.
	calls bool
	// blind says that it writes to, or defines, a table of which some policy masks a column, without reading it, or may change
	// one past its text: nothing says then whether the agent may see what an error text would tell of the row.
	blind bool
	// fires says that it may start somebody's trigger, and what that does may be checked at the end of the transaction.
	fires bool
	// text goes to the target instead of the statement's own, if not empty.
	text string
	// names is set for a statement that names a prepared statement or a cursor; stmt then is what it runs.
	names *resolution
	snap  *snapshot
}

// decider turns facts into decisions for one session.
type decider struct {
	e        *Engine
	database string
	account  string
	app      string // the pinned application_name
	// narrow says that the session has emptied its search_path, see [opBuilder.toolSetting].
	narrow bool
	// made holds relations that the session created and the catalogue may not show yet.
	made map[qname]bool
	// resolve finds what the agent's names of prepared statements and cursors mean in this session.
	resolve func(ctx context.Context, stmt *sqlparse.Statement, alias string) (*resolution, error)
}

// objection refuses for a reason of the engine's own.
func objection(class, reason string) *proxy.Objection {
	return &proxy.Objection{Class: class, Reason: reason}
}

// decide finds out what the statement does. The error is a [*proxy.Objection].
func (d *decider) decide(ctx context.Context, stmt *sqlparse.Statement, alias string) (*decision, error) {
	dec := &decision{stmt: stmt, cmd: d.command(stmt)}
	if len(stmt.Unknown) > 0 {
		return dec, objection(classUnparsable, "the statement holds something that can't be decided: "+strings.Join(stmt.Unknown, ", "))
	}
	if handles(stmt) {
		var err error
		if dec.names, err = d.resolve(ctx, stmt, alias); err != nil {
			return dec, err
		}
		dec.text = dec.names.text
		if dec.names.runs != nil {
			stmt = dec.names.runs
			dec.stmt = stmt
			dec.cmd.Kind, dec.cmd.Scrubbed = string(stmt.Kind), dec.names.scrubbed
		}
	}
	cat := d.e.catalogs[d.database]
	snap, err := cat.get(ctx)
	if err != nil {
		return dec, errors.Join(objection(classTarget, "the target's catalogue can't be read, so nothing can be decided; try again"), err)
	}
	if d.misses(snap, stmt) {
		if snap, err = cat.after(ctx, snap); err != nil {
			return dec, errors.Join(objection(classTarget, "the target's catalogue can't be read, so nothing can be decided; try again"), err)
		}
	}
	snap = snap.as(d.account)
	dec.snap = snap
	b := &opBuilder{d: d, dec: dec}
	if err := b.build(); err != nil {
		return dec, err
	}
	dec.cmd.Ops = b.ops
	known := names{snap}
	dec.planned = !d.narrow && harmlessNames(stmt, known) && !snap.casts && b.plain
	dec.cmd.ReadOnly = dec.planned && stmt.ReadOnly(known) && (dec.text == "" || dec.names != nil)
	for i, r := range stmt.Relations {
		if rel := dec.relations[i]; rel != nil && r.Access&(sqlparse.Write|sqlparse.Define) != 0 {
			dec.blind = dec.blind || r.Access&sqlparse.Read == 0 && b.isMasked(rel) || rel.mayStir(b.isMasked)
			dec.fires = dec.fires || rel.fires || rel.mayStir(func(t *relation) bool { return t.fires })
		}
	}
	return dec, nil
}

func (d *decider) command(stmt *sqlparse.Statement) proxy.Command {
	return proxy.Command{
		Kind: string(stmt.Kind), Text: stmt.Text, Scrubbed: stmt.Normalized, Database: d.database, Account: d.account,
	}
}

// misses says that a relation isn't in the snapshot.
func (d *decider) misses(s *snapshot, stmt *sqlparse.Statement) bool {
	for _, r := range stmt.Relations {
		if r.Access&sqlparse.Define == 0 && s.find(r.Schema, r.Name) == nil && !d.isMade(s, r.Schema, r.Name) {
			return true
		}
	}
	for _, f := range stmt.Functions {
		if len(s.owners(s.functions, f.Schema, f.Name)) == 0 && !s.isSystem(f) {
			return true
		}
	}
	return false
}

// isSystem says that a function is PostgreSQL's own.
func (s *snapshot) isSystem(f sqlparse.Name) bool {
	return (f.Schema == "" || f.Schema == "pg_catalog") && s.system[f.Name] || f.Schema == "information_schema"
}

func (d *decider) isMade(s *snapshot, schema, name string) bool {
	if schema != "" {
		return d.made[qname{schema, name}]
	}
	return slices.ContainsFunc(s.schemas, func(p string) bool { return d.made[qname{p, name}] }) || d.made[qname{"", name}]
}
