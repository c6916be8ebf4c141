//go:build cgo

package sqlparse

import (
	"strings"

	pg "github.com/pganalyze/pg_query_go/v6"
)

// accessShareLock is the lock mode ACCESS SHARE, see lockdefs.h.
const accessShareLock = 1

// top walks a whole statement.
func (w *walker) top(n *pg.Node) {
	sc := &scope{}
	switch n.GetNode().(type) {
	case *pg.Node_SelectStmt:
		w.topSelect(n.GetSelectStmt(), sc)
	case *pg.Node_InsertStmt, *pg.Node_UpdateStmt, *pg.Node_DeleteStmt, *pg.Node_MergeStmt:
		w.s.Kind, w.s.Tag = rowKind(n)
		w.s.Outputs = w.query(n, sc, UseOutput, true)
	case nil:
		w.s.Kind = KindOther
		w.unknownNode("empty statement")
	default:
		w.template = false
		w.s.Wide = wide(n)
		if !w.utility(n, sc) {
			w.definition(n, sc)
		}
	}
}

// topSelect tells a SELECT from a SELECT INTO, which makes a table.
func (w *walker) topSelect(s *pg.SelectStmt, sc *scope) {
	first := s
	for first.Op != pg.SetOperation_SETOP_NONE && first.Larg != nil {
		first = first.Larg
	}
	if first.IntoClause != nil {
		w.template = false
		w.s.Kind, w.s.Tag, w.s.Inner = KindCreate, "SELECT INTO", KindSelect
		w.selectStmt(s, sc, UseStore)
		return
	}
	w.s.Kind, w.s.Tag = KindSelect, "SELECT"
	w.s.Limited = s.LimitCount != nil && !s.LimitCount.GetAConst().GetIsnull()
	w.s.Outputs = w.selectStmt(s, sc, UseOutput)
}

// rowKind gives kind and tag of a statement on rows.
func rowKind(n *pg.Node) (Kind, string) {
	switch n.GetNode().(type) {
	case *pg.Node_SelectStmt:
		return KindSelect, "SELECT"
	case *pg.Node_InsertStmt:
		return KindInsert, "INSERT"
	case *pg.Node_UpdateStmt:
		return KindUpdate, "UPDATE"
	case *pg.Node_DeleteStmt:
		return KindDelete, "DELETE"
	case *pg.Node_MergeStmt:
		return KindMerge, "MERGE"
	default:
		return KindOther, ""
	}
}

// inside walks the statement inside another one and makes its kind Inner. With UseOutput its rows are
// what the client gets, and its outputs ours.
func (w *walker) inside(n *pg.Node, sc *scope, sink Use) {
	kind, tag := w.s.Kind, w.s.Tag
	if rows, _ := rowKind(n); rows != KindOther && sink != UseOutput {
		w.s.Kind = rows
		w.query(n, sc, sink, true)
	} else {
		w.top(n)
	}
	w.s.Inner = w.s.Kind
	w.s.Kind, w.s.Tag = kind, tag
}

// utility walks the statements that have facts of their own. It says false for definitions.
func (w *walker) utility(n *pg.Node, sc *scope) bool {
	s := &w.s
	switch v := n.Node.(type) {
	case *pg.Node_TransactionStmt:
		s.Kind, s.Tag = KindTransaction, "TRANSACTION"
		w.transaction(v.TransactionStmt)
	case *pg.Node_VariableSetStmt:
		s.Kind, s.Tag = KindSet, "SET"
		if v.VariableSetStmt.Kind >= pg.VariableSetKind_VAR_RESET {
			s.Tag = "RESET"
		}
		w.setting(v.VariableSetStmt)
	case *pg.Node_VariableShowStmt:
		s.Kind, s.Tag = KindShow, "SHOW"
		name := strings.ToLower(v.VariableShowStmt.Name)
		if name == "all" {
			name = ""
		}
		s.Settings = append(s.Settings, Setting{Op: SettingShow, Name: name})
	case *pg.Node_ConstraintsSetStmt:
		s.Kind, s.Tag = KindSet, "SET CONSTRAINTS"
		for _, c := range v.ConstraintsSetStmt.Constraints {
			s.Settings = append(s.Settings, Setting{Op: SettingSet, Name: "constraints",
				Values: []string{c.GetRangeVar().GetRelname()}})
		}
		if len(s.Settings) == 0 {
			s.Settings = []Setting{{Op: SettingSet, Name: "constraints", Values: []string{"all"}}}
		}
	case *pg.Node_ExplainStmt:
		s.Kind, s.Tag, s.Analyze = KindExplain, "EXPLAIN", analyzes(v.ExplainStmt.Options)
		w.inside(v.ExplainStmt.Query, sc, UseOutput)
		s.Outputs = nil
	case *pg.Node_CopyStmt:
		s.Kind, s.Tag = KindCopy, "COPY"
		w.copy(v.CopyStmt, sc)
	case *pg.Node_DoStmt:
		s.Kind, s.Tag = KindDo, "DO"
		w.opaque["DO"] = true
	case *pg.Node_CallStmt:
		s.Kind, s.Tag = KindCall, "CALL"
		w.opaque["CALL"] = true
		if v.CallStmt.Funccall != nil {
			w.call(v.CallStmt.Funccall, sc, UseOther)
		}
	case *pg.Node_PrepareStmt:
		s.Kind, s.Tag, s.Object = KindPrepare, "PREPARE", v.PrepareStmt.Name
		w.exprs(v.PrepareStmt.Argtypes, sc, UseOther)
		w.inside(v.PrepareStmt.Query, sc, UseOutput)
	case *pg.Node_ExecuteStmt:
		s.Kind, s.Tag, s.Object = KindExecute, "EXECUTE", v.ExecuteStmt.Name
		w.opaque["EXECUTE "+v.ExecuteStmt.Name] = true
		w.exprs(v.ExecuteStmt.Params, sc, UseOther)
	case *pg.Node_DeallocateStmt:
		s.Kind, s.Tag, s.Object = KindDeallocate, "DEALLOCATE", v.DeallocateStmt.Name
	case *pg.Node_DeclareCursorStmt:
		s.Kind, s.Tag, s.Object = KindDeclare, "DECLARE CURSOR", v.DeclareCursorStmt.Portalname
		s.Hold = v.DeclareCursorStmt.Options&cursorHold != 0
		s.Binary = v.DeclareCursorStmt.Options&cursorBinary != 0
		w.inside(v.DeclareCursorStmt.Query, sc, UseOutput)
	case *pg.Node_FetchStmt:
		s.Kind, s.Tag, s.Object = KindFetch, "FETCH", v.FetchStmt.Portalname
		if v.FetchStmt.Ismove {
			s.Tag = "MOVE"
		}
	case *pg.Node_ClosePortalStmt:
		s.Kind, s.Tag, s.Object = KindClose, "CLOSE CURSOR", v.ClosePortalStmt.Portalname
	case *pg.Node_ListenStmt:
		s.Kind, s.Tag, s.Object = KindListen, "LISTEN", v.ListenStmt.Conditionname
	case *pg.Node_UnlistenStmt:
		s.Kind, s.Tag, s.Object = KindListen, "UNLISTEN", v.UnlistenStmt.Conditionname
	case *pg.Node_NotifyStmt:
		s.Kind, s.Tag, s.Object = KindNotify, "NOTIFY", v.NotifyStmt.Conditionname
	case *pg.Node_LockStmt:
		s.Kind, s.Tag, s.Locks = KindLock, "LOCK TABLE", true
		if v.LockStmt.Mode == accessShareLock {
			// The lock that reading takes, and nothing more.
			s.Locks = false
			w.relations(v.LockStmt.Relations, Read)
			break
		}
		w.relations(v.LockStmt.Relations, Write)
	case *pg.Node_TruncateStmt:
		s.Kind, s.Tag = KindTruncate, "TRUNCATE TABLE"
		w.relations(v.TruncateStmt.Relations, Write)
	case *pg.Node_DiscardStmt:
		s.Kind, s.Tag = KindDiscard, strings.ReplaceAll(v.DiscardStmt.Target.String(), "_", " ") // DISCARD ALL
	case *pg.Node_CheckPointStmt:
		s.Kind, s.Tag = KindMaintain, "CHECKPOINT"
	case *pg.Node_LoadStmt:
		s.Kind, s.Tag = KindLoad, "LOAD"
		w.opaque["LOAD"] = true
	default:
		return false
	}
	return true
}

func (w *walker) relations(list []*pg.Node, access Access) {
	for _, n := range list {
		r := n.GetRangeVar()
		if r == nil {
			w.unknownNode("relation list")
			continue
		}
		w.relation(r, access)
	}
}

// analyzes says whether EXPLAIN executes. Only a clear "off" in every ANALYZE option says no.
func analyzes(options []*pg.Node) bool {
	for _, n := range options {
		d := n.GetDefElem()
		if d == nil {
			return true
		}
		if d.Defname != "analyze" {
			continue
		}
		off := false
		switch {
		case d.Arg.GetString_() != nil:
			v := strings.ToLower(d.Arg.GetString_().Sval)
			off = v == "off" || v == "false"
		case d.Arg.GetInteger() != nil:
			off = d.Arg.GetInteger().Ival == 0
		case d.Arg.GetBoolean() != nil:
			off = !d.Arg.GetBoolean().Boolval
		}
		if !off {
			return true
		}
	}
	return false
}

// PostgreSQL's CURSOR_OPT_HOLD and CURSOR_OPT_BINARY.
const (
	cursorHold   = 0x0020
	cursorBinary = 0x0001
)

// copy walks COPY.
func (w *walker) copy(s *pg.CopyStmt, sc *scope) {
	c := &Copy{From: s.IsFrom, Program: s.IsProgram, Query: s.Query != nil}
	w.s.Copy = c
	switch {
	case s.IsProgram:
		w.opaque["COPY PROGRAM"] = true
	case s.Filename != "":
		c.File = s.Filename
		w.opaque["COPY to or from a file of the server"] = true
	}
	if s.Query != nil {
		w.inside(s.Query, sc, UseOutput)
	}
	if s.Relation != nil {
		w.copyTable(s, sc)
	}
	w.expr(s.WhereClause, sc, UseFilter)
	w.copyOptions(c, s.Options, sc)
}

// copyOptions walks the options of COPY. Those that name columns name what the rows bring or what is read anyway.
func (w *walker) copyOptions(c *Copy, options []*pg.Node, sc *scope) {
	for _, n := range options {
		d := n.GetDefElem()
		if d == nil {
			w.unknownNode("COPY option")
			continue
		}
		switch d.Defname {
		case "format":
			c.Binary = d.Arg.GetString_().GetSval() != "text" && d.Arg.GetString_().GetSval() != "csv"
		case "header":
			c.Header = true
		case "freeze", "delimiter", "null", "quote", "escape", "force_quote", "force_not_null", "force_null", "encoding":
		case "default":
			w.expr(d.Arg, sc, UseOther)
		default:
			w.unknownNode("COPY option " + d.Defname)
		}
	}
}

func (w *walker) copyTable(s *pg.CopyStmt, sc *scope) {
	access, use := Read, UseOutput
	if s.IsFrom {
		access, use = Write, UseTarget
	}
	i := w.relation(s.Relation, access)
	if w.err != nil {
		return
	}
	it := w.itemOf(i)
	it.excluded = s.IsFrom // WHERE sees the row that the agent brings, and nothing of the table
	sc.items = append(sc.items, it)
	names := stringsOf(s.Attlist)
	if len(names) == 0 {
		at := w.column(Column{Star: true, From: []int{i}, Use: use})
		if !s.IsFrom {
			w.s.Outputs = []Output{{Kind: OutputStar, Columns: []int{at}}}
		}
		return
	}
	for _, name := range names {
		at := w.column(Column{Path: []string{name}, From: []int{i}, Use: use})
		if !s.IsFrom {
			w.s.Outputs = append(w.s.Outputs, Output{Name: name, Kind: OutputColumn, Columns: []int{at}})
		}
	}
}
