package postgres

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/internal/sqlparse"
	"github.com/deputymesh/deputy/policy"
	"github.com/deputymesh/deputy/proxy"
)

// opBuilder gathers the ops of one statement.
type opBuilder struct {
	d    *decider
	dec  *decision
	ops  []proxy.Op
	seen map[string]int
	// masked is what masked gives, once asked for: most statements don't need it.
	masks  []policy.MaskedTable
	listed bool
	// plain says that all relations read are tables without row security, or PostgreSQL's own views.
	plain bool
}

// masked lists the tables of which some policy masks a column.
func (b *opBuilder) masked() []policy.MaskedTable {
	if !b.listed {
		b.masks, b.listed = b.d.e.cfg.Core.MaskedTables(), true
	}
	return b.masks
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
		rel := b.dec.snap.find(r.Schema, r.Name)
		if rel == nil && (s.Kind == sqlparse.KindAlter || s.Kind == sqlparse.KindDrop || s.Kind == sqlparse.KindMaintain) {
			rel = b.dec.snap.tableOf(r.Schema, r.Name)
		}
		if b.d.narrow && r.Schema == "" && (rel == nil || rel.schema != "pg_catalog") {
			return objection(classPinned, fmt.Sprintf("%q has no schema before it, and this session has emptied its search_path", clip(r.Name, 64)))
		}
		b.dec.relations = append(b.dec.relations, rel)
	}
	if b.toolSetting() {
		return nil
	}
	if f, ok := forbiddenFunction(s); ok {
		return objection(classPinned, f+" is never allowed here: it can change settings that decisions rest on")
	}
	inner := s.Kind
	if s.Inner == sqlparse.KindExecute || s.Cursor != "" && b.dec.names == nil {
		return objection(classUnsupported, tagOf(s)+" of a prepared statement or a cursor isn't supported by this proxy")
	}
	switch s.Kind {
	case sqlparse.KindSelect, sqlparse.KindInsert, sqlparse.KindUpdate, sqlparse.KindDelete, sqlparse.KindMerge:
	case sqlparse.KindExplain:
		inner = s.Inner
		switch inner {
		case sqlparse.KindSelect, sqlparse.KindInsert, sqlparse.KindUpdate, sqlparse.KindDelete, sqlparse.KindMerge:
		default:
			return objection(classUnsupported, "EXPLAIN of this statement isn't there yet")
		}
	case sqlparse.KindLock:
		if s.Locks {
			return b.definition()
		}
		return b.relations(sqlparse.KindSelect)
	case sqlparse.KindTruncate, sqlparse.KindMaintain, sqlparse.KindCreate, sqlparse.KindAlter, sqlparse.KindDrop, sqlparse.KindGrant:
		return b.definition()
	case sqlparse.KindTransaction:
		return b.transaction()
	case sqlparse.KindSet:
		return b.settings()
	case sqlparse.KindShow:
		b.onDatabase("select", false, false)
		return nil
	case sqlparse.KindDo:
		b.dec.calls = true
		b.onDatabase("call", true, len(b.masked()) > 0)
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
	case sqlparse.KindCopy:
		return b.copyOps()
	case sqlparse.KindListen, sqlparse.KindNotify:
		return b.listen()
	case sqlparse.KindDeallocate, sqlparse.KindClose:
		// It ends what the session itself has.
		b.onDatabase("connect", false, false)
		return nil
	case sqlparse.KindDiscard:
		return b.discard()
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
		if rel := b.dec.relations[i]; rel != nil && (rel.schema == "pg_catalog" || rel.overSettings()) {
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
		schema, name = rel.schema, rel.name
		exact = !write && b.veiled(rel)
		b.plain = b.plain && (rel.kind == 'r' || rel.kind == 'p' || rel.kind == 'S' || rel.kind == 'm' || isSystem(rel)) && !rel.guarded
	default:
		if schema == "" {
			schema = b.dec.snap.creation
		}
		// A name that the catalogue doesn't have could be a new view over anything.
		exact = !write && len(b.masked()) > 0 && !b.d.isMade(b.dec.snap, named.Schema, named.Name)
		b.plain = false
	}
	op := b.add(verb, policy.Table(b.d.e.name, b.d.database, schema, name), write, exact)
	op.Columns = b.columnsOf(i, op.Columns)
}

// exactly demands that the verb on the i-th relation is permitted for it by name.
func (b *opBuilder) exactly(i int, verb string) {
	r := b.dec.stmt.Relations[i]
	schema, name := r.Schema, r.Name
	if rel := b.dec.relations[i]; rel != nil {
		schema, name = rel.schema, rel.name
	} else if schema == "" {
		schema = b.dec.snap.creation
	}
	b.add(verb, policy.Table(b.d.e.name, b.d.database, schema, name), true, true)
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
	if showsSecrets(r) || slices.ContainsFunc(r.behind, showsSecrets) {
		return true
	}
	if r.kind != 'f' && r.kind != 'v' && r.kind != 'm' && r.schema != "pg_catalog" || len(b.masked()) == 0 {
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
		for _, m := range b.masked() {
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

// showsSecrets says that a relation of PostgreSQL's own shows passwords to an account that may see them: those of foreign
// servers, or their verifiers. They are no agent's business, whether or not anything is masked.
func showsSecrets(r *relation) bool {
	switch r.name {
	case "pg_user_mapping", "pg_user_mappings", "pg_authid", "pg_shadow":
		return r.schema == "pg_catalog"
	case "_pg_user_mappings", "user_mapping_options":
		return r.schema == "information_schema"
	}
	return false
}

// overSettings says that the relation is a view over pg_settings: an update of it sets settings.
func (r *relation) overSettings() bool {
	return slices.ContainsFunc(append([]*relation{r}, r.behind...), func(t *relation) bool { return t.schema == "pg_catalog" && t.name == "pg_settings" })
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
	b.dec.calls = true
	for _, schema := range owners {
		blind := schema == "pg_catalog" && !exact
		b.add("call", policy.Function(b.d.e.name, b.d.database, schema, n.Name), true, len(b.masked()) > 0 && !blind)
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
		b.dec.makes = append(b.dec.makes, qname{r.Schema, r.Name})
	}
}
