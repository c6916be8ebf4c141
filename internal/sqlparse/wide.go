//go:build cgo

package sqlparse

import (
	pg "github.com/pganalyze/pg_query_go/v6"
)

// wide says that a statement may act on relations that it doesn't name: on what depends on those that it does, on all in a
// schema, on all that somebody owns, on all there are.
func wide(n *pg.Node) bool {
	const cascade = pg.DropBehavior_DROP_CASCADE
	switch v := n.GetNode().(type) {
	case *pg.Node_TruncateStmt:
		return v.TruncateStmt.Behavior == cascade
	case *pg.Node_DropStmt:
		return v.DropStmt.Behavior == cascade
	case *pg.Node_AlterTableStmt:
		for _, c := range v.AlterTableStmt.Cmds {
			if c.GetAlterTableCmd().GetBehavior() == cascade {
				return true
			}
		}
	case *pg.Node_AlterDomainStmt:
		return v.AlterDomainStmt.Behavior == cascade
	case *pg.Node_RenameStmt:
		return v.RenameStmt.RenameType == pg.ObjectType_OBJECT_SCHEMA || v.RenameStmt.Behavior == cascade
	case *pg.Node_GrantStmt:
		return v.GrantStmt.Targtype == pg.GrantTargetType_ACL_TARGET_ALL_IN_SCHEMA
	case *pg.Node_VacuumStmt:
		return len(v.VacuumStmt.Rels) == 0
	case *pg.Node_ClusterStmt:
		return v.ClusterStmt.Relation == nil
	case *pg.Node_ReindexStmt:
		return v.ReindexStmt.Relation == nil
	case *pg.Node_CreatePublicationStmt:
		return v.CreatePublicationStmt.ForAllTables || wholeSchemas(v.CreatePublicationStmt.Pubobjects)
	case *pg.Node_AlterPublicationStmt:
		return v.AlterPublicationStmt.ForAllTables || wholeSchemas(v.AlterPublicationStmt.Pubobjects)
	case *pg.Node_DropOwnedStmt, *pg.Node_ReassignOwnedStmt, *pg.Node_AlterTableMoveAllStmt:
		return true
	}
	return false
}

func wholeSchemas(objects []*pg.Node) bool {
	for _, o := range objects {
		if o.GetPublicationObjSpec().GetPubobjtype() != pg.PublicationObjSpecType_PUBLICATIONOBJ_TABLE {
			return true
		}
	}
	return false
}
