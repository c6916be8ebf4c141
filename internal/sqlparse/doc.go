// Package sqlparse turns SQL text into facts: what kind of statement it is, which relations,
// columns, functions, types and operators it names, and what it can do besides. It never hands out
// the parse tree and never decides; an engine decides on the facts.
//
// Invariants:
//
//   - The tree is PostgreSQL 17's own (pg_query_go v6), and the whole of it is walked. A node without
//     a handler lands in [Statement].Unknown; something that runs code which no parse can see lands in
//     [Statement].Opaque. A caller refuses both unless its policy allows exactly that.
//   - In doubt a fact is reported, not left out: a name that could be a column or a row is reported as
//     both, a name that could be a CTE or a table counts as a table unless it surely is the CTE.
//   - SQL that a peer wrote is parsed in a child process ([Pool]): the parser can die of a stack
//     overflow that no recover catches, and then the child dies, not the caller.
//   - What a name means (search_path, views, functions behind operators and casts) is the server's
//     knowledge. The facts hold for a session whose search_path begins with pg_catalog, whose
//     client_encoding is UTF8 and whose standard_conforming_strings is on: the proxy pins all three
//     and refuses statements that would change them. With standard_conforming_strings off, '\” would
//     end elsewhere than the parser believes.
//
// This is the only package of the module that uses cgo. Without cgo it compiles and refuses
// ([ErrNoParser]).
package sqlparse
