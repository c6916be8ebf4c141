package postgres

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/deputymesh/deputy/internal/sqlparse"
	"github.com/deputymesh/deputy/policy"
)

// adminTags begin the tags of statements about more than the objects of a database.
var adminTags = []string{
	"ROLE", "USER", "GROUP", "DATABASE", "TABLESPACE", "EXTENSION", "SERVER", "FOREIGN DATA WRAPPER", "SUBSCRIPTION", "PUBLICATION",
	"LANGUAGE", "EVENT TRIGGER", "SYSTEM", "CAST", "OPERATOR", "TRANSFORM", "ACCESS METHOD", "AGGREGATE", "CONVERSION", "DEFAULT PRIVILEGES", "OWNED",
}

// definition adds the ops of statements about definitions, and of TRUNCATE, LOCK and maintenance.
func (b *opBuilder) definition() error {
	s := b.dec.stmt
	verb := "ddl"
	switch s.Kind {
	case sqlparse.KindTruncate:
		verb = "truncate"
	case sqlparse.KindLock:
		verb = "lock"
	case sqlparse.KindMaintain, sqlparse.KindGrant:
		verb = "admin"
	default:
		if _, object, ok := strings.Cut(s.Tag, " "); ok {
			for _, t := range adminTags {
				if strings.HasPrefix(object, t) {
					verb = "admin"
				}
			}
		}
	}
	b.dec.defines = s.Kind.Defines() || s.Kind == sqlparse.KindMaintain
	b.names()
	named := false
	for i, r := range s.Relations {
		defined := r.Access&sqlparse.Define != 0 || !s.Kind.Defines()
		if rel := b.dec.relations[i]; rel != nil && rel.schema == "pg_catalog" && (defined || r.Access&sqlparse.Write != 0) && s.Kind != sqlparse.KindMaintain {
			return objection(classPinned, "changing PostgreSQL's own catalogue is never allowed here")
		}
		switch {
		case defined:
			b.table(i, verb, true)
			b.remember(r)
			named = true
			b.redefined(i, verb)
		case r.Access&sqlparse.Write != 0:
			for _, v := range writeVerbs(s, s.Inner) {
				b.table(i, v, true)
			}
		}
		if r.Access&sqlparse.Read != 0 && s.Kind.Defines() {
			b.table(i, "select", false)
		}
	}
	if s.Wide {
		if err := b.everything(verb); err != nil {
			return err
		}
	}
	if !named || verb == "admin" && s.Kind != sqlparse.KindMaintain && s.Kind != sqlparse.KindGrant {
		// ALTER SCHEMA or FUNCTION gives other names to what is decided by name.
		b.onDatabase(verb, true, s.Kind == sqlparse.KindAlter && !isRemark(s) && len(b.masked()) > 0)
	}
	if s.Tag == "CREATE VIEW" || s.Tag == "CREATE RULE" {
		for _, rel := range b.dec.relations {
			if rel != nil && rel.overSettings() {
				return objection(classPinned, "a view or rule over pg_settings would set settings when it is updated, so it can't be made here")
			}
		}
	}
	if len(s.Opaque) > 0 {
		b.dec.calls = true
		// It makes or runs code that nobody sees here, so it takes the right to run any.
		b.onDatabase("call", true, len(b.masked()) > 0)
	}
	for _, set := range s.Settings {
		if isPinned(set.Name) || set.Name == "" {
			return objection(classPinned, "it would change "+settingName(set)+", which is pinned here")
		}
		b.add("set", policy.Setting(b.d.e.name, b.d.database, set.Name), true, false)
	}
	return nil
}

// maxWide bounds the relations of a statement that doesn't name them: each is decided, and stands in the record.
const maxWide = 1000

// everything adds the verb on every relation of the database. Which of them a CASCADE reaches only the server knows.
func (b *opBuilder) everything(verb string) error {
	n := 0
	for _, oid := range slices.Sorted(maps.Keys(b.dec.snap.byOID)) {
		r := b.dec.snap.byOID[oid]
		if isSystem(r) {
			continue
		}
		if n++; n > maxWide {
			return objection(classUnsupported, fmt.Sprintf("it may act on more than %d relations that it doesn't name; name them", maxWide))
		}
		b.add(verb, policy.Table(b.d.e.name, b.d.database, r.schema, r.name), true, false)
	}
	return nil
}

// redefined looks after tables with masked columns, and views that may show them, in a statement on definitions. What makes
// another thing of them, or of what is known about them, takes a permit for exactly that table: masks go by names. What only
// refers to them reads the columns that it names.
func (b *opBuilder) redefined(i int, verb string) {
	s, rel := b.dec.stmt, b.dec.relations[i]
	if s.Tag == "CREATE FOREIGN TABLE" && len(b.masked()) > 0 {
		b.exactly(i, verb)
	}
	if rel == nil || !b.isMasked(rel) && !b.veiled(rel) {
		return
	}
	switch {
	case s.Kind == sqlparse.KindAlter && !isRemark(s), s.Kind == sqlparse.KindCreate && !slices.Contains(refers, s.Tag):
		b.exactly(i, verb)
	case s.Kind == sqlparse.KindCreate && slices.ContainsFunc(s.Columns, func(c sqlparse.Column) bool { return slices.Contains(c.From, i) }):
		b.table(i, "select", false)
	}
}

// refers are the tags of what may refer to a table and leaves it as it is.
var refers = []string{"CREATE TABLE", "CREATE TABLE AS", "SELECT INTO", "CREATE INDEX", "CREATE STATISTICS", "CREATE SEQUENCE"}

// isRemark says that the statement changes what is said of a thing, not the thing.
func isRemark(s *sqlparse.Statement) bool { return s.Tag == "COMMENT" || s.Tag == "SECURITY LABEL" }

func (b *opBuilder) transaction() error {
	t := b.dec.stmt.Transaction
	if t == nil {
		return objection(classUnparsable, "the transaction statement isn't understood")
	}
	switch t.Op {
	case sqlparse.TxBegin, sqlparse.TxCommit, sqlparse.TxRollback, sqlparse.TxSavepoint, sqlparse.TxRelease, sqlparse.TxRollbackTo:
		b.onDatabase("connect", false, false)
		return nil
	default:
		return objection(classUnsupported, "two-phase commit isn't supported by this proxy yet")
	}
}

// discard decides DISCARD. What was given at connect is what the pinned settings go back to.
func (b *opBuilder) discard() error {
	switch b.dec.stmt.Tag {
	case "DISCARD ALL", "DISCARD TEMP":
	case "DISCARD PLANS", "DISCARD SEQUENCES":
		b.onDatabase("connect", false, false)
		return nil
	default:
		return objection(classUnsupported, b.dec.stmt.Tag+" isn't known")
	}
	// Temporary tables are gone, and their names mean what they meant before.
	clear(b.d.made)
	b.dec.defines = true
	b.onDatabase("connect", false, false)
	return nil
}

func settingName(s sqlparse.Setting) string {
	if s.Name == "" {
		return "every setting"
	}
	return s.Name
}

// settings adds the ops of SET and RESET. Pinned ones are refused, whatever policy says.
func (b *opBuilder) settings() error {
	s := b.dec.stmt
	if len(s.Settings) == 0 {
		if strings.HasPrefix(s.Tag, "SET CONSTRAINTS") {
			b.onDatabase("connect", false, false)
			return nil
		}
		return objection(classUnparsable, "the SET isn't understood")
	}
	for _, set := range s.Settings {
		name := strings.ToLower(set.Name)
		switch {
		case name == "application_name" && len(s.Settings) == 1:
			// The name at the target names the session. Many clients set theirs; they get the same answer.
			b.dec.text = "SET application_name = " + quoteLiteral(b.d.app)
			b.onDatabase("connect", false, false)
		case name == "" || isPinned(name) && (set.Op == sqlparse.SettingReset || len(set.Values) != 1 || !pinnedSame(name, set.Values[0])):
			if set.Op == sqlparse.SettingReset && name != "role" && name != "session_authorization" {
				// What was given at connect is what RESET goes back to.
				b.onDatabase("connect", false, false)
				continue
			}
			return objection(classPinned, settingName(set)+" is pinned at this proxy and can't be changed; use qualified names where search_path would matter")
		case isPinned(name) || isHarmlessSetting(name):
			b.onDatabase("connect", false, false)
		default:
			b.add("set", policy.Setting(b.d.e.name, b.d.database, name), true, false)
		}
	}
	return nil
}

func quoteLiteral(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }
