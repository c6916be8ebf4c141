package postgres

import "strings"

// searchPath is the pinned search_path. PostgreSQL looks into pg_catalog first where the path doesn't name it, and makes new
// objects in the first schema that the path does name; pg_temp comes last, so that no temporary table takes the place of another.
func searchPath(schemas []string) string {
	var b strings.Builder
	for _, s := range schemas {
		b.WriteString(`"` + strings.ReplaceAll(s, `"`, `""`) + `", `)
	}
	return b.String() + "pg_temp"
}

// What PostgreSQL's own tools, pg_dump among them, send before anything else. Their text alone counts: nothing else that calls
// set_config may look like them.
const (
	emptiesPath = "SELECT pg_catalog.set_config('search_path', '', false)" // so that every name comes with its schema
	avoidsViews = "SELECT set_config(name, 'view, foreign-table', false) FROM pg_settings WHERE name = 'restrict_nonsystem_relation_kind'"
)

// toolSetting decides about those; ok says that the statement is one of them.
func (b *opBuilder) toolSetting() (ok bool) {
	switch strings.TrimSpace(b.dec.stmt.Text) {
	case emptiesPath:
		// A rollback or RESET brings the pinned path back, so from here on no decision rests on which of the two it is: a relation
		// is named with its schema or is PostgreSQL's own, and everything else is judged by the longer path. On the empty one
		// PostgreSQL looks into pg_temp first, so what the session made may stand in the place of PostgreSQL's own: that is its
		// own affair, but nothing counts as proven read-only any more.
		b.d.narrow = true
	case avoidsViews:
		// The session gives up reading views and foreign tables: less than it may.
	default:
		return false
	}
	b.onDatabase("connect", false, false)
	return true
}
