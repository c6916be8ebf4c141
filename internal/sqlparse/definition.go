//go:build cgo

package sqlparse

import (
	"strings"

	pg "github.com/pganalyze/pg_query_go/v6"
)

// definition walks CREATE, ALTER, DROP, GRANT and maintenance. What is in none of its cases is
// other and unknown.
func (w *walker) definition(n *pg.Node, sc *scope) {
	s := &w.s
	name := messageName(n)
	if d, ok := definitions[name]; ok {
		s.Kind, s.Tag = d.kind, d.tag
		if d.opaque {
			defer func() { w.opaque[s.Tag] = true }()
		}
	} else {
		s.Kind, s.Tag = KindOther, name
	}
	switch v := n.Node.(type) {
	case *pg.Node_DropStmt:
		s.Tag += objectTag(v.DropStmt.RemoveType)
		for _, o := range v.DropStmt.Objects {
			w.object(v.DropStmt.RemoveType, o, sc)
		}
	case *pg.Node_CommentStmt:
		w.object(v.CommentStmt.Objtype, v.CommentStmt.Object, sc)
	case *pg.Node_SecLabelStmt:
		w.object(v.SecLabelStmt.Objtype, v.SecLabelStmt.Object, sc)
	case *pg.Node_AlterTableStmt:
		s.Tag += objectTag(v.AlterTableStmt.Objtype)
		w.all(n, sc)
	case *pg.Node_RenameStmt:
		s.Tag += objectTag(v.RenameStmt.RenameType)
		switch v.RenameStmt.RenameType {
		case pg.ObjectType_OBJECT_COLUMN, pg.ObjectType_OBJECT_TABCONSTRAINT, pg.ObjectType_OBJECT_ATTRIBUTE:
			s.Tag = "ALTER" + objectTag(v.RenameStmt.RelationType)
		}
		w.all(n, sc)
	case *pg.Node_AlterOwnerStmt:
		s.Tag += objectTag(v.AlterOwnerStmt.ObjectType)
		w.all(n, sc)
	case *pg.Node_AlterObjectSchemaStmt:
		s.Tag += objectTag(v.AlterObjectSchemaStmt.ObjectType)
		w.all(n, sc)
	case *pg.Node_AlterObjectDependsStmt:
		s.Tag += objectTag(v.AlterObjectDependsStmt.ObjectType)
		w.all(n, sc)
	case *pg.Node_GrantStmt:
		if !v.GrantStmt.IsGrant {
			s.Tag = "REVOKE"
		}
		w.all(n, sc)
	case *pg.Node_GrantRoleStmt:
		if !v.GrantRoleStmt.IsGrant {
			s.Tag = "REVOKE ROLE"
		}
		for _, p := range v.GrantRoleStmt.GrantedRoles {
			w.roles[p.GetAccessPriv().GetPrivName()] = true
		}
		w.all(n, sc)
	case *pg.Node_DefineStmt:
		s.Tag += objectTag(v.DefineStmt.Kind)
		w.all(n, sc)
	case *pg.Node_CreateTableAsStmt:
		w.createAs(v.CreateTableAsStmt, sc)
	case *pg.Node_ViewStmt:
		w.defined(v.ViewStmt.View, sc)
		w.exprs(v.ViewStmt.Options, sc, UseOther)
		w.inside(v.ViewStmt.Query, &scope{}, UseNested)
	case *pg.Node_RuleStmt:
		w.rule(v.RuleStmt, sc)
	case *pg.Node_CreateTrigStmt:
		w.function(v.CreateTrigStmt.Funcname)
		w.trigger(v.CreateTrigStmt, sc)
	case *pg.Node_CreateEventTrigStmt:
		w.function(v.CreateEventTrigStmt.Funcname)
	case *pg.Node_VacuumStmt:
		if !v.VacuumStmt.IsVacuumcmd {
			s.Tag = "ANALYZE"
		}
		w.all(n, sc)
		w.touch(Read | Write)
	case *pg.Node_ClusterStmt, *pg.Node_ReindexStmt, *pg.Node_RefreshMatViewStmt:
		w.all(n, sc)
		w.touch(Read | Write)
	case *pg.Node_CreateRoleStmt:
		w.roles[v.CreateRoleStmt.Role] = true
		w.all(n, sc)
	case *pg.Node_CreateStatsStmt:
		w.exprs(v.CreateStatsStmt.Relations, sc, UseOther) // before what refers to their columns
		w.exprs(v.CreateStatsStmt.Exprs, sc, UseOther)
	case *pg.Node_CreateFunctionStmt:
		if v.CreateFunctionStmt.IsProcedure {
			s.Tag = "CREATE PROCEDURE"
		}
		w.sqlBody(v.CreateFunctionStmt.SqlBody)
		v.CreateFunctionStmt.SqlBody = nil
		w.all(n, sc)
	default:
		if _, ok := definitions[name]; !ok {
			w.unknownNode(name)
		}
		w.all(n, sc)
	}
}

// all walks every field of a statement.
func (w *walker) all(n *pg.Node, sc *scope) {
	m := n.ProtoReflect()
	if fd := m.WhichOneof(m.Descriptor().Oneofs().Get(0)); fd != nil {
		w.fields(m.Get(fd).Message(), sc, UseOther)
	}
}

// touch makes the relations of a maintenance statement ones that are used, not defined.
func (w *walker) touch(access Access) {
	for i := range w.s.Relations {
		w.s.Relations[i].Access = access
	}
}

func messageName(n *pg.Node) string {
	m := n.ProtoReflect()
	fd := m.WhichOneof(m.Descriptor().Oneofs().Get(0))
	if fd == nil {
		return ""
	}
	return string(fd.Message().Name())
}

// objectTag gives " MATERIALIZED VIEW" for OBJECT_MATVIEW.
func objectTag(t pg.ObjectType) string {
	switch t {
	case pg.ObjectType_OBJECT_MATVIEW:
		return " MATERIALIZED VIEW"
	case pg.ObjectType_OBJECT_FDW:
		return " FOREIGN DATA WRAPPER"
	case pg.ObjectType_OBJECT_FOREIGN_SERVER:
		return " SERVER"
	case pg.ObjectType_OBJECT_STATISTIC_EXT:
		return " STATISTICS"
	default:
		return " " + strings.ReplaceAll(strings.TrimPrefix(t.String(), "OBJECT_"), "_", " ")
	}
}

// object notes the relation that a DROP, COMMENT or the like names by a list of strings.
func (w *walker) object(t pg.ObjectType, n *pg.Node, sc *scope) {
	names := stringsOf(n.GetList().GetItems())
	switch t {
	case pg.ObjectType_OBJECT_TABLE, pg.ObjectType_OBJECT_VIEW, pg.ObjectType_OBJECT_MATVIEW,
		pg.ObjectType_OBJECT_SEQUENCE, pg.ObjectType_OBJECT_INDEX, pg.ObjectType_OBJECT_FOREIGN_TABLE:
		w.named(names, Define)
	case pg.ObjectType_OBJECT_COLUMN, pg.ObjectType_OBJECT_TRIGGER, pg.ObjectType_OBJECT_RULE,
		pg.ObjectType_OBJECT_POLICY, pg.ObjectType_OBJECT_TABCONSTRAINT:
		if len(names) > 1 {
			w.named(names[:len(names)-1], Define)
			return
		}
		w.unknownNode("name of " + strings.ToLower(t.String()))
	default:
		w.expr(n, sc, UseOther)
	}
}

// createAs walks CREATE TABLE AS and CREATE MATERIALIZED VIEW.
func (w *walker) createAs(s *pg.CreateTableAsStmt, sc *scope) {
	if s.Objtype == pg.ObjectType_OBJECT_MATVIEW {
		w.s.Tag = "CREATE MATERIALIZED VIEW"
	}
	w.s.WritesInside = true
	if s.Into != nil {
		if s.Into.Rel != nil {
			w.relation(s.Into.Rel, Write|Define)
		}
		w.exprs(s.Into.Options, sc, UseOther)
	}
	w.inside(s.Query, &scope{}, UseStore)
}

// constraint walks a constraint of a table. A foreign key tells which values there are in the columns that it refers to; where
// it names none they are those of the primary key, which the catalogue knows.
func (w *walker) constraint(c *pg.Constraint, sc *scope, use Use) {
	to := c.Pktable
	c.Pktable = nil
	w.fields(c.ProtoReflect(), sc, use)
	if to == nil {
		return
	}
	i := w.relation(to, Define)
	names := stringsOf(c.PkAttrs)
	for _, name := range names {
		w.column(Column{Path: []string{name}, From: []int{i}, Use: UseFilter})
	}
	if len(names) == 0 {
		w.column(Column{Star: true, From: []int{i}, Use: UseFilter})
	}
}

// rule walks CREATE RULE: its actions run later, for others, with NEW and OLD.
func (w *walker) rule(s *pg.RuleStmt, sc *scope) {
	i := w.relation(s.Relation, Define)
	inside := &scope{items: []item{{name: "new", rels: []int{i}}, {name: "old", rels: []int{i}}}}
	w.expr(s.WhereClause, inside, UseOther)
	for _, a := range s.Actions {
		if kind, _ := rowKind(a); kind != KindOther {
			w.query(a, inside.below(), UseNested, false)
			continue
		}
		w.expr(a, sc, UseOther)
	}
}

func (w *walker) trigger(s *pg.CreateTrigStmt, sc *scope) {
	i := w.relation(s.Relation, Define)
	if s.Constrrel != nil {
		w.relation(s.Constrrel, Define)
	}
	inside := &scope{items: []item{{name: "new", rels: []int{i}}, {name: "old", rels: []int{i}}}}
	w.expr(s.WhenClause, inside, UseOther)
	w.exprs(s.TransitionRels, sc, UseOther)
}

// sqlBody walks the body of a function that is written in SQL proper, RETURN or BEGIN ATOMIC.
func (w *walker) sqlBody(n *pg.Node) {
	if n == nil {
		return
	}
	if l := n.GetList(); l != nil {
		for _, it := range l.Items {
			w.sqlBody(it)
		}
		return
	}
	if kind, _ := rowKind(n); kind != KindOther {
		w.query(n, &scope{}, UseNested, false)
		return
	}
	w.expr(n, &scope{}, UseOther)
}
