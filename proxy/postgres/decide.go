package postgres

import (
	"context"
	"errors"
	"regexp"
	"slices"
	"strings"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/internal/sqlparse"
	"github.com/deputymesh/deputy/policy"
	"github.com/deputymesh/deputy/proxy"
)

// Classes of refusals that this engine makes itself.
const (
	classUnparsable  = "unparsable"  // no facts: it is no SQL that the parser knows
	classUnsupported = "unsupported" // understood, and not there yet
	classPinned      = "pinned"      // would change a setting that decisions rest on
	classMasked      = "masked"      // uses a masked column otherwise than as a plain output column
	classTarget      = "target"      // the target's catalogue can't be read
)

// decision is what one statement does, as far as its text and the catalogue say. It holds for one snapshot.
type decision struct {
	stmt *sqlparse.Statement
	cmd  proxy.Command
	// relations of the statement, in its order; nil where the catalogue has none of that name.
	relations []*relation
	// planned says that planning it runs nothing but what is known as harmless.
	planned bool
	// defines says that the catalogue may look different afterwards.
	defines bool
	// blind says that it writes to a table of which some policy masks a column, without reading it: nothing says then
	// whether the agent may see what an error text would tell of the row.
	blind bool
	// text goes to the target instead of the statement's own, if not empty.
	text string
	snap *snapshot
}

// decider turns facts into decisions for one session.
type decider struct {
	e        *Engine
	database string
	account  string
	app      string // the pinned application_name
	// made holds relations that the session created and the catalogue may not show yet.
	made map[qname]bool
	// prepared finds the name at the target of the agent's prepared statement.
	prepared func(name string) (string, bool)
}

// objection refuses for a reason of the engine's own.
func objection(class, reason string) *proxy.Objection {
	return &proxy.Objection{Class: class, Reason: reason}
}

// decide finds out what the statement does. The error is a [*proxy.Objection].
func (d *decider) decide(ctx context.Context, stmt *sqlparse.Statement) (*decision, error) {
	dec := &decision{stmt: stmt, cmd: d.command(stmt)}
	if len(stmt.Unknown) > 0 {
		return dec, objection(classUnparsable, "the statement holds something that can't be decided: "+strings.Join(stmt.Unknown, ", "))
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
	dec.snap = snap
	b := &opBuilder{d: d, dec: dec, masked: d.e.cfg.Core.MaskedTables()}
	if err := b.build(); err != nil {
		return dec, err
	}
	dec.cmd.Ops = b.ops
	known := names{snap}
	dec.planned = harmlessNames(stmt, known) && !snap.casts && b.plain
	dec.cmd.ReadOnly = dec.planned && stmt.ReadOnly(known) && dec.text == ""
	for i, r := range stmt.Relations {
		if r.Access&sqlparse.Write != 0 && r.Access&sqlparse.Read == 0 {
			dec.blind = dec.blind || dec.relations[i] != nil && b.isMasked(dec.relations[i])
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

// names tells the parser's facts what names mean at the target.
type names struct{ s *snapshot }

// Function implements [sqlparse.Catalog].
func (n names) Function(f sqlparse.Name) bool {
	if len(n.s.owners(n.s.functions, f.Schema, f.Name)) > 0 || !n.s.isSystem(f) {
		return false
	}
	return sqlparse.Builtin{}.Function(f) || slices.Contains(readingFunctions, f.Name)
}

// readingFunctions are marked as volatile and only read the catalogue; psql's \d calls them.
var readingFunctions = []string{"pg_partition_ancestors", "pg_partition_tree"}

// Operator implements [sqlparse.Catalog].
func (n names) Operator(o sqlparse.Name) bool {
	if len(n.s.owners(n.s.operators, o.Schema, o.Name)) > 0 {
		return false
	}
	// An operator of an extension that is vouched for has no place in Builtin.
	return sqlparse.Builtin{}.Operator(o) || o.Schema != "pg_catalog"
}

// Type implements [sqlparse.Catalog].
func (n names) Type(t sqlparse.Name) bool {
	if len(n.s.owners(n.s.types, t.Schema, t.Name)) > 0 {
		return false
	}
	if (sqlparse.Builtin{}).Type(t) {
		return true
	}
	if t.Schema != "" {
		return n.s.knownTypes[qname{t.Schema, t.Name}]
	}
	return slices.ContainsFunc(n.s.schemas, func(p string) bool { return n.s.knownTypes[qname{p, t.Name}] })
}

// RowFunction implements [sqlparse.Catalog]: t.name calls a function only if one of that name isn't PostgreSQL's own,
// or is one that isn't harmless, and no relation has such a column.
func (n names) RowFunction(name string) bool {
	if len(n.s.owners(n.s.functions, "", name)) > 0 {
		return true
	}
	return !n.s.columnNamed(name) && sqlparse.Builtin{}.RowFunction(name)
}

func (s *snapshot) columnNamed(name string) bool {
	if slices.Contains(systemColumns, name) {
		return true
	}
	for _, r := range s.byOID {
		if r.has(name) {
			return true
		}
	}
	return false
}

// harmlessNames says that everything the statement names is known as harmless.
func harmlessNames(s *sqlparse.Statement, c names) bool {
	if len(s.Opaque) > 0 {
		return false
	}
	for _, f := range s.Functions {
		if !c.Function(f) {
			return false
		}
	}
	for _, o := range s.Operators {
		if !c.Operator(o) {
			return false
		}
	}
	for _, t := range s.Types {
		if !c.Type(t) {
			return false
		}
	}
	for _, n := range s.Calls {
		if c.RowFunction(n) {
			return false
		}
	}
	return true
}

// opBuilder gathers the ops of one statement.
type opBuilder struct {
	d      *decider
	dec    *decision
	masked []policy.MaskedTable
	ops    []proxy.Op
	seen   map[string]int
	// plain says that all relations read are tables without row security, or PostgreSQL's own views.
	plain bool
}

// doesUpdate finds ON CONFLICT DO UPDATE in a normalized text, where no literal or comment is left.
var doesUpdate = regexp.MustCompile(`(?i)\bdo\s+update\b`)

func (b *opBuilder) add(verb string, res policy.Resource, write, exact bool) *proxy.Op {
	key := verb + " " + string(res.Kind) + " " + res.ID()
	if b.seen == nil {
		b.seen = map[string]int{}
	}
	i, ok := b.seen[key]
	if !ok {
		a := actor.PostgresAction{Target: b.d.e.cfg.Target, Verb: verb, Database: b.d.database}
		if res.Kind == policy.KindTable || res.Kind == policy.KindFunction {
			a.Schema, a.Table = res.Schema, res.Name
		}
		i = len(b.ops)
		b.seen[key] = i
		b.ops = append(b.ops, proxy.Op{Action: a, Resource: res, Write: write})
	}
	b.ops[i].Exact = b.ops[i].Exact || exact
	return &b.ops[i]
}

func (b *opBuilder) onDatabase(verb string, write, exact bool) {
	b.add(verb, policy.Database(b.d.e.name, b.d.database), write, exact)
}

// build turns the facts into ops, kind by kind. What has no rule is refused.
func (b *opBuilder) build() error {
	s := b.dec.stmt
	b.plain = true
	for _, r := range s.Relations {
		if r.Catalog != "" && r.Catalog != b.d.database {
			return objection(classUnsupported, "a name speaks of another database than this session's")
		}
		b.dec.relations = append(b.dec.relations, b.dec.snap.find(r.Schema, r.Name))
	}
	if f, ok := forbiddenFunction(s); ok {
		return objection(classPinned, f+" is never allowed here: it can change settings that decisions rest on")
	}
	inner := s.Kind
	switch s.Kind {
	case sqlparse.KindSelect, sqlparse.KindInsert, sqlparse.KindUpdate, sqlparse.KindDelete, sqlparse.KindMerge:
	case sqlparse.KindExplain:
		inner = s.Inner
		switch inner {
		case sqlparse.KindSelect, sqlparse.KindInsert, sqlparse.KindUpdate, sqlparse.KindDelete, sqlparse.KindMerge:
		default:
			return objection(classUnsupported, "EXPLAIN of this statement isn't there yet")
		}
	case sqlparse.KindTruncate, sqlparse.KindLock, sqlparse.KindMaintain, sqlparse.KindCreate, sqlparse.KindAlter, sqlparse.KindDrop, sqlparse.KindGrant:
		return b.definition()
	case sqlparse.KindTransaction:
		return b.transaction()
	case sqlparse.KindSet:
		return b.settings()
	case sqlparse.KindShow:
		b.onDatabase("select", false, false)
		return nil
	case sqlparse.KindDo:
		b.onDatabase("call", true, len(b.masked) > 0)
		return nil
	case sqlparse.KindCall:
		if len(s.Functions) == 0 {
			return objection(classUnparsable, "the procedure of the CALL isn't known")
		}
		b.names()
		for _, f := range s.Functions {
			b.function(f, true)
		}
		return b.relations(sqlparse.KindSelect)
	case sqlparse.KindDeallocate:
		return b.deallocate()
	default:
		return objection(classUnsupported, tagOf(s)+" isn't supported by this proxy yet")
	}
	if len(s.Opaque) > 0 {
		return objection(classUnsupported, "the statement runs code that can't be seen: "+strings.Join(s.Opaque, ", "))
	}
	b.names()
	if err := b.relations(inner); err != nil {
		return err
	}
	if len(b.ops) == 0 || inner == sqlparse.KindSelect && len(s.Relations) == 0 {
		b.onDatabase("select", false, false)
	}
	return nil
}

func tagOf(s *sqlparse.Statement) string {
	if s.Tag != "" {
		return s.Tag
	}
	return strings.ToUpper(string(s.Kind))
}

// relations adds the ops on relations of a statement that reads or changes rows.
func (b *opBuilder) relations(kind sqlparse.Kind) error {
	s := b.dec.stmt
	for i, r := range s.Relations {
		if r.Access&sqlparse.Define != 0 {
			b.table(i, "ddl", true)
			b.dec.defines = true
			b.remember(r)
		}
		if r.Access&sqlparse.Read != 0 {
			b.table(i, "select", false)
		}
		if r.Access&sqlparse.Write == 0 {
			continue
		}
		if rel := b.dec.relations[i]; rel != nil && rel.schema == "pg_catalog" {
			return objection(classPinned, "writing to PostgreSQL's own catalogue is never allowed here")
		}
		for _, verb := range writeVerbs(s, kind) {
			b.table(i, verb, true)
		}
	}
	if s.Locks {
		for i, r := range s.Relations {
			if r.Access&sqlparse.Read != 0 {
				b.table(i, "lock", true)
			}
		}
	}
	return nil
}

// writeVerbs are the verbs that a written relation needs. Where several statements write, all of them.
func writeVerbs(s *sqlparse.Statement, kind sqlparse.Kind) []string {
	if s.WritesInside || kind == sqlparse.KindMerge {
		return []string{"insert", "update", "delete"}
	}
	switch kind {
	case sqlparse.KindInsert:
		if doesUpdate.MatchString(s.Normalized) || s.Normalized == "" {
			return []string{"insert", "update"}
		}
		return []string{"insert"}
	case sqlparse.KindUpdate:
		return []string{"update"}
	case sqlparse.KindDelete:
		return []string{"delete"}
	default:
		return []string{"insert", "update", "delete"}
	}
}

// table adds an op on the i-th relation.
func (b *opBuilder) table(i int, verb string, write bool) {
	named, rel := b.dec.stmt.Relations[i], b.dec.relations[i]
	schema, name := named.Schema, named.Name
	exact := false
	switch {
	case rel != nil:
		schema = rel.schema
		exact = !write && b.veiled(rel)
		b.plain = b.plain && (rel.kind == 'r' || rel.kind == 'p' || rel.kind == 'S' || rel.kind == 'm' || isSystem(rel)) && !rel.guarded
	default:
		if schema == "" {
			schema = b.dec.snap.creation
		}
		// A name that the catalogue doesn't have could be a new view over anything.
		exact = !write && len(b.masked) > 0 && !b.d.isMade(b.dec.snap, named.Schema, named.Name)
		b.plain = false
	}
	op := b.add(verb, policy.Table(b.d.e.name, b.d.database, schema, name), write, exact)
	op.Columns = b.columnsOf(i, op.Columns)
}

// columnsOf lists the columns of the i-th relation that the statement names, for the record.
func (b *opBuilder) columnsOf(i int, out []string) []string {
	for _, c := range b.dec.stmt.Columns {
		if !slices.Contains(c.From, i) || len(out) >= 64 {
			continue
		}
		name := c.Name()
		if c.Star {
			name = "*"
		} else if rel := b.dec.relations[i]; rel != nil && !rel.has(name) {
			continue
		}
		if !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	return out
}

// veiled says that the relation can show masked columns under names that no rule covers: then only a policy written for
// exactly this relation lets it be read.
func (b *opBuilder) veiled(r *relation) bool {
	if len(b.masked) == 0 {
		return false
	}
	if r.kind == 'f' || (r.kind == 'v' || r.kind == 'm') && r.code {
		return true
	}
	if r.schema == "pg_catalog" && slices.Contains(showsValues, r.name) {
		return true
	}
	for _, t := range r.behind {
		if t.kind == 'f' || t.schema == "pg_catalog" && slices.Contains(showsValues, t.name) || b.isMasked(t) {
			return true
		}
	}
	return false
}

func (b *opBuilder) isMasked(r *relation) bool {
	for _, k := range append([]*relation{r}, r.kin...) {
		for _, m := range b.masked {
			if m.Table == k.name && (m.Schema == "" || m.Schema == k.schema) {
				return true
			}
		}
	}
	return false
}

// showsValues lists what of PostgreSQL's own shows rows of tables or texts of other statements.
var showsValues = []string{
	"pg_statistic", "pg_statistic_ext_data", "pg_stats", "pg_stats_ext", "pg_stats_ext_exprs",
	"pg_stat_activity", "pg_stat_statements", "pg_largeobject", "pg_cursors", "pg_prepared_statements",
}

func isSystem(r *relation) bool {
	return r.schema == "pg_catalog" || r.schema == "information_schema"
}

// names adds ops for functions, operators, types and row functions that aren't known as harmless.
func (b *opBuilder) names() {
	s, c := b.dec.stmt, names{b.dec.snap}
	for _, f := range s.Functions {
		if !c.Function(f) {
			b.function(f, false)
		}
	}
	for _, o := range s.Operators {
		if !c.Operator(o) {
			b.called(b.dec.snap.owners(b.dec.snap.operators, o.Schema, o.Name), o, true)
		}
	}
	for _, t := range s.Types {
		if !c.Type(t) {
			b.called(b.dec.snap.owners(b.dec.snap.types, t.Schema, t.Name), t, true)
		}
	}
	for _, n := range s.Calls {
		if c.RowFunction(n) {
			b.function(sqlparse.Name{Name: n}, false)
		}
	}
}

// function demands the verb call on every function that the name can resolve to.
func (b *opBuilder) function(f sqlparse.Name, always bool) {
	owners := b.dec.snap.owners(b.dec.snap.functions, f.Schema, f.Name)
	if f.Schema == "" && b.dec.snap.isSystem(f) && (always || !sqlparse.Builtin{}.Function(f)) {
		owners = append([]string{"pg_catalog"}, owners...)
	}
	b.called(owners, f, !slices.Contains(blindFunctions, f.Name))
}

func (b *opBuilder) called(owners []string, n sqlparse.Name, exact bool) {
	if n.Schema != "" {
		owners = []string{n.Schema}
	}
	if len(owners) == 0 {
		owners = []string{b.dec.snap.creation}
	}
	for _, schema := range owners {
		blind := schema == "pg_catalog" && !exact
		b.add("call", policy.Function(b.d.e.name, b.d.database, schema, n.Name), true, len(b.masked) > 0 && !blind)
	}
}

// blindFunctions are PostgreSQL's own that change something or differ from call to call, and read no table.
var blindFunctions = []string{
	"random", "setseed", "clock_timestamp", "timeofday", "statement_timestamp", "gen_random_uuid", "nextval", "setval", "currval",
	"lastval", "txid_current", "pg_current_xact_id", "pg_sleep", "pg_sleep_for", "pg_sleep_until", "pg_advisory_lock", "pg_advisory_xact_lock",
	"pg_try_advisory_lock", "pg_try_advisory_xact_lock", "pg_advisory_unlock", "pg_advisory_unlock_all", "pg_notify",
}

// forbiddenFunction finds a call that no policy can allow.
func forbiddenFunction(s *sqlparse.Statement) (string, bool) {
	for _, f := range s.Functions {
		if f.Name == "set_config" && (f.Schema == "" || f.Schema == "pg_catalog") {
			return "set_config", true
		}
	}
	for _, n := range s.Calls {
		if n == "set_config" {
			return n, true
		}
	}
	return "", false
}

func (b *opBuilder) remember(r sqlparse.Relation) {
	if b.dec.stmt.Kind == sqlparse.KindCreate || b.dec.stmt.WritesInside {
		b.d.made[qname{r.Schema, r.Name}] = true
	}
}
