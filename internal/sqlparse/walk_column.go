//go:build cgo

package sqlparse

import (
	pg "github.com/pganalyze/pg_query_go/v6"
)

// columnRef resolves a reference as far as the text allows and notes it.
func (w *walker) columnRef(ref *pg.ColumnRef, sc *scope, use Use) int {
	c := Column{Use: use}
	for _, f := range ref.Fields {
		switch {
		case f.GetString_() != nil:
			c.Path = append(c.Path, f.GetString_().Sval)
		case f.GetAStar() != nil:
			c.Star = true
		default:
			w.unknownNode("column reference")
		}
	}
	qualifier := c.Path
	if !c.Star && len(c.Path) > 0 {
		qualifier = c.Path[:len(c.Path)-1]
	}
	switch {
	case len(qualifier) > 0:
		w.qualified(&c, qualifier, sc)
		if !c.Star {
			w.calls[c.Name()] = true
		}
	case c.Star:
		c.From, c.Derived = itemsRefs(sc.items)
	default:
		w.unqualified(&c, sc)
	}
	return w.column(c)
}

// unqualified resolves a bare name: a column of anything in scope, at any level, or a whole row.
func (w *walker) unqualified(c *Column, sc *scope) {
	c.From, c.Derived = sc.seen()
	for name := c.Name(); sc != nil; sc = sc.parent {
		for _, it := range sc.items {
			if it.name == name && !it.excluded {
				c.Row = true
				c.RowOf = appendNew(c.RowOf, it.rels)
			}
		}
	}
}

// qualified resolves a reference by its qualifier: the innermost level that surely has it decides.
// With a schema only relations without alias can be meant; one that was found through the
// search_path may be in that schema or not. What nothing surely has counts as any column.
func (w *walker) qualified(c *Column, qualifier []string, sc *scope) {
	name, schema := qualifier[len(qualifier)-1], ""
	if len(qualifier) > 1 {
		schema = qualifier[len(qualifier)-2]
	}
	for level := sc; level != nil; level = level.parent {
		found, excluded := false, true
		for _, it := range level.items {
			if it.name != name || schema != "" && (!it.bare || it.schema != "" && it.schema != schema) {
				continue
			}
			found = found || it.schema == schema || schema == ""
			excluded = excluded && it.excluded
			c.From = appendNew(c.From, it.rels)
			c.Derived = c.Derived || it.derived
		}
		if found {
			c.Excluded = excluded
			return
		}
	}
	if len(c.From) == 0 {
		c.From, _ = sc.seen()
		c.Derived = true
	}
}

func itemsRefs(items []item) (from []int, derived bool) {
	for _, it := range items {
		if it.excluded {
			continue
		}
		from = appendNew(from, it.rels)
		derived = derived || it.derived
	}
	return from, derived
}

// appendNew appends what isn't there yet.
func appendNew(list, more []int) []int {
next:
	for _, m := range more {
		for _, l := range list {
			if l == m {
				continue next
			}
		}
		list = append(list, m)
	}
	return list
}
