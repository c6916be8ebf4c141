//go:build cgo

package sqlparse

import (
	"encoding/binary"
	"fmt"
	"slices"
	"sort"
	"strconv"

	pg "github.com/pganalyze/pg_query_go/v6"
)

// Bounds on the facts of one statement, so that a short text can't make long facts.
const (
	maxColumns   = 4096
	maxFromRefs  = 1 << 16
	maxRelations = 2048
)

// walker gathers the facts of one statement. It holds what the walk has found so far; where it
// stands goes down as arguments.
type walker struct {
	s        Statement
	err      error
	template bool
	depth    int

	columns   map[string]int // key of a column → its index
	fromRefs  int
	trail     []int // indexes of columns in the order met; see collect
	functions map[Name]bool
	types     map[Name]bool
	operators map[Name]bool
	calls     map[string]bool
	opaque    map[string]bool
	unknown   map[string]bool
	roles     map[string]bool
}

func newWalker() *walker {
	return &walker{
		template: true,
		columns:  map[string]int{}, functions: map[Name]bool{}, types: map[Name]bool{},
		operators: map[Name]bool{}, calls: map[string]bool{}, opaque: map[string]bool{},
		unknown: map[string]bool{}, roles: map[string]bool{},
	}
}

// finish puts the sets in order.
func (w *walker) finish() Statement {
	w.s.Functions = sortedNames(w.functions)
	w.s.Types = sortedNames(w.types)
	w.s.Operators = sortedNames(w.operators)
	w.s.Calls = sortedStrings(w.calls)
	w.s.Opaque = sortedStrings(w.opaque)
	w.s.Unknown = sortedStrings(w.unknown)
	w.s.Roles = sortedStrings(w.roles)
	if len(w.s.Opaque) > 0 || len(w.s.Unknown) > 0 {
		w.template = false
	}
	return w.s
}

// scope is one query level: what its FROM holds, the CTEs it sees, and the level around it.
type scope struct {
	parent *scope
	ctes   *ctes
	items  []item

	// What seen last gave, and for how many items: a short text can have a thousand of each.
	seenItems   int
	seenFrom    []int
	seenDerived bool
}

// seen gives the relations that an unqualified name in s can belong to, the innermost level first,
// and whether anything derived is among what it can see. The list is shared: don't append to it.
func (s *scope) seen() (from []int, derived bool) {
	n := 0
	for l := s; l != nil; l = l.parent {
		n += len(l.items)
	}
	if n == s.seenItems {
		return s.seenFrom, s.seenDerived
	}
	for l := s; l != nil; l = l.parent {
		more, d := itemsRefs(l.items)
		from, derived = appendNew(from, more), derived || d
	}
	s.seenItems, s.seenFrom, s.seenDerived = n, from, derived
	return from, derived
}

// hide drops the items from start on.
func (s *scope) hide(start int) {
	s.items = slices.Clone(s.items[:start])
	s.seenItems, s.seenFrom, s.seenDerived = -1, nil, false
}

// item is something in FROM that references can be qualified with.
type item struct {
	schema, name string
	rels         []int // indexes of Statement.Relations
	// bare says that it is a relation without alias: only such a one can be named with its schema.
	bare     bool
	derived  bool
	excluded bool
}

// ctes are the names of one WITH.
type ctes struct {
	parent *ctes
	names  map[string]bool
}

func (c *ctes) has(name string) bool {
	for ; c != nil; c = c.parent {
		if c.names[name] {
			return true
		}
	}
	return false
}

// below makes the scope of a query inside s.
func (s *scope) below() *scope { return &scope{parent: s, ctes: s.ctes} }

// beside makes the scope of a query in the FROM of s that is not lateral: it sees what s sees
// around it, not its neighbours.
func (s *scope) beside() *scope { return &scope{parent: s.parent, ctes: s.ctes} }

// unknownNode notes a node that has no handler.
func (w *walker) unknownNode(what string) { w.unknown[what] = true }

// relation notes a relation and gives its index.
func (w *walker) relation(r *pg.RangeVar, access Access) int {
	rel := Relation{
		Catalog: r.Catalogname, Schema: r.Schemaname, Name: r.Relname,
		Access: access, Only: !r.Inh,
	}
	if r.Alias != nil {
		rel.Alias, rel.Renamed = r.Alias.Aliasname, len(r.Alias.Colnames) > 0
	}
	return w.addRelation(rel)
}

func (w *walker) addRelation(rel Relation) int {
	if len(w.s.Relations) >= maxRelations {
		w.fail("relations")
		return 0
	}
	w.s.Relations = append(w.s.Relations, rel)
	return len(w.s.Relations) - 1
}

// named notes a relation that is given as a list of names, as DROP and COMMENT do.
func (w *walker) named(names []string, access Access) {
	rel := Relation{Access: access}
	switch n := len(names); n {
	case 1:
		rel.Name = names[0]
	case 2:
		rel.Schema, rel.Name = names[0], names[1]
	case 3:
		rel.Catalog, rel.Schema, rel.Name = names[0], names[1], names[2]
	default:
		w.unknownNode("relation name of " + strconv.Itoa(n) + " parts")
		return
	}
	w.addRelation(rel)
}

func (w *walker) fail(what string) {
	if w.err == nil {
		w.err = fmt.Errorf("%w: too many %s", ErrTooComplex, what)
	}
}

// item makes the FROM item of a plain relation.
func (w *walker) itemOf(i int) item {
	r := w.s.Relations[i]
	if r.Alias != "" {
		return item{name: r.Alias, rels: []int{i}}
	}
	return item{schema: r.Schema, name: r.Name, rels: []int{i}, bare: true}
}

// column notes a reference with a use and gives its index. The same reference with the same use is
// noted once.
func (w *walker) column(c Column) int {
	key := columnKey(c)
	i, ok := w.columns[key]
	if !ok {
		w.fromRefs += len(c.From) + len(c.RowOf)
		if len(w.s.Columns) >= maxColumns || w.fromRefs > maxFromRefs {
			w.fail("column references")
			return 0
		}
		i = len(w.s.Columns)
		w.s.Columns = append(w.s.Columns, c)
		w.columns[key] = i
	}
	w.trail = append(w.trail, i)
	return i
}

// columnKey gives a string that is the same for equal columns only: no path can hold a NUL.
func columnKey(c Column) string {
	b := make([]byte, 0, 64)
	for _, p := range c.Path {
		b = append(append(b, p...), 0)
	}
	b = append(append(b, 0), c.Use...)
	for _, flag := range []bool{c.Star, c.Row, c.Excluded, c.Derived} {
		b = strconv.AppendBool(append(b, 0), flag)
	}
	for _, list := range [][]int{c.From, c.RowOf} {
		b = binary.AppendUvarint(b, uint64(len(list)))
		for _, i := range list {
			b = binary.AppendUvarint(b, uint64(i))
		}
	}
	return string(b)
}

// alsoUse notes columns once more, with another use.
func (w *walker) alsoUse(columns []int, use Use) {
	for _, i := range columns {
		c := w.s.Columns[i]
		c.Use = use
		w.column(c)
	}
}

// collect gives the distinct columns noted since the trail was at mark.
func (w *walker) collect(mark int) []int {
	seen := make(map[int]bool, len(w.trail)-mark)
	var out []int
	for _, i := range w.trail[mark:] {
		if !seen[i] {
			seen[i] = true
			out = append(out, i)
		}
	}
	return out
}

// function notes a call by name.
func (w *walker) function(names []*pg.Node) {
	n, ok := w.name(names, "function name")
	if !ok {
		return
	}
	w.functions[n] = true
	if sequenceFunction(n) {
		w.s.WritesInside = true
	}
	if !(Builtin{}).Function(n) {
		w.template = false
	}
}

// sequenceFunction says that n advances or sets a sequence.
func sequenceFunction(n Name) bool {
	return (n.Schema == "" || n.Schema == "pg_catalog") && (n.Name == "nextval" || n.Name == "setval")
}

// name turns a list of strings into a name.
func (w *walker) name(nodes []*pg.Node, what string) (Name, bool) {
	names := stringsOf(nodes)
	switch len(names) {
	case 1:
		return Name{Name: names[0]}, true
	case 2:
		return Name{Schema: names[0], Name: names[1]}, true
	default:
		w.unknownNode(what + " of " + strconv.Itoa(len(names)) + " parts")
		return Name{}, false
	}
}

// stringsOf gives the String nodes of a list.
func stringsOf(nodes []*pg.Node) []string {
	var out []string
	for _, n := range nodes {
		if s := n.GetString_(); s != nil {
			out = append(out, s.Sval)
		}
	}
	return out
}

func sortedNames(set map[Name]bool) []Name {
	if len(set) == 0 {
		return nil
	}
	out := make([]Name, 0, len(set))
	for n := range set {
		out = append(out, n)
	}
	sort.Slice(out, func(i, j int) bool {
		if out[i].Schema != out[j].Schema {
			return out[i].Schema < out[j].Schema
		}
		return out[i].Name < out[j].Name
	})
	return out
}

func sortedStrings(set map[string]bool) []string {
	if len(set) == 0 {
		return nil
	}
	out := make([]string, 0, len(set))
	for s := range set {
		out = append(out, s)
	}
	sort.Strings(out)
	return out
}
