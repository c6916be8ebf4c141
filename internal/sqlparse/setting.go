//go:build cgo

package sqlparse

import (
	"strconv"
	"strings"

	pg "github.com/pganalyze/pg_query_go/v6"
)

// setting notes SET and RESET, alone or inside ALTER ROLE, ALTER DATABASE, ALTER SYSTEM and functions.
func (w *walker) setting(v *pg.VariableSetStmt) {
	out := Setting{Op: SettingSet, Name: strings.ToLower(v.Name), Local: v.IsLocal}
	switch v.Kind {
	case pg.VariableSetKind_VAR_RESET:
		out.Op = SettingReset
	case pg.VariableSetKind_VAR_RESET_ALL:
		out.Op, out.Name = SettingReset, ""
	case pg.VariableSetKind_VAR_SET_MULTI:
		w.multiSetting(v)
		return
	case pg.VariableSetKind_VAR_SET_VALUE:
		for _, a := range v.Args {
			out.Values = append(out.Values, w.constant(a))
		}
	case pg.VariableSetKind_VAR_SET_DEFAULT, pg.VariableSetKind_VAR_SET_CURRENT:
	default:
		w.unknownNode("SET")
	}
	w.s.Settings = append(w.s.Settings, out)
}

// multiSetting notes SET TRANSACTION, SET SESSION CHARACTERISTICS and SET TRANSACTION SNAPSHOT.
func (w *walker) multiSetting(v *pg.VariableSetStmt) {
	prefix := ""
	switch v.Name {
	case "TRANSACTION":
	case "SESSION CHARACTERISTICS":
		prefix = "default_"
	case "TRANSACTION SNAPSHOT":
		out := Setting{Op: SettingSet, Name: "transaction_snapshot", Local: true}
		for _, a := range v.Args {
			out.Values = append(out.Values, w.constant(a))
		}
		w.s.Settings = append(w.s.Settings, out)
		return
	default:
		w.unknownNode("SET " + v.Name)
	}
	for _, a := range v.Args {
		d := a.GetDefElem()
		if d == nil {
			w.unknownNode("SET " + v.Name)
			continue
		}
		w.s.Settings = append(w.s.Settings, Setting{Op: SettingSet, Name: prefix + d.Defname,
			Values: []string{w.constant(d.Arg)}, Local: prefix == ""})
	}
}

// constant gives a constant as text; anything else is unknown.
func (w *walker) constant(n *pg.Node) string {
	switch v := n.GetNode().(type) {
	case *pg.Node_AConst:
		c := v.AConst
		switch {
		case c.GetSval() != nil:
			return c.GetSval().Sval
		case c.GetFval() != nil:
			return c.GetFval().Fval
		case c.GetIval() != nil:
			return strconv.Itoa(int(c.GetIval().Ival))
		case c.GetBoolval() != nil:
			return strconv.FormatBool(c.GetBoolval().Boolval)
		case c.GetBsval() != nil:
			return c.GetBsval().Bsval
		}
		return ""
	case *pg.Node_String_:
		return v.String_.Sval
	case *pg.Node_Integer:
		return strconv.Itoa(int(v.Integer.Ival))
	case *pg.Node_Float:
		return v.Float.Fval
	case *pg.Node_Boolean:
		return strconv.FormatBool(v.Boolean.Boolval)
	case *pg.Node_TypeCast: // SET TIME ZONE INTERVAL '…'
		return w.constant(v.TypeCast.Arg)
	default:
		w.unknownNode("value of a setting")
		return ""
	}
}

var transactionOps = map[pg.TransactionStmtKind]TransactionOp{
	pg.TransactionStmtKind_TRANS_STMT_BEGIN:             TxBegin,
	pg.TransactionStmtKind_TRANS_STMT_START:             TxBegin,
	pg.TransactionStmtKind_TRANS_STMT_COMMIT:            TxCommit,
	pg.TransactionStmtKind_TRANS_STMT_ROLLBACK:          TxRollback,
	pg.TransactionStmtKind_TRANS_STMT_SAVEPOINT:         TxSavepoint,
	pg.TransactionStmtKind_TRANS_STMT_RELEASE:           TxRelease,
	pg.TransactionStmtKind_TRANS_STMT_ROLLBACK_TO:       TxRollbackTo,
	pg.TransactionStmtKind_TRANS_STMT_PREPARE:           TxPrepare,
	pg.TransactionStmtKind_TRANS_STMT_COMMIT_PREPARED:   TxCommitPrepared,
	pg.TransactionStmtKind_TRANS_STMT_ROLLBACK_PREPARED: TxRollbackPrepared,
}

var transactionTags = map[TransactionOp]string{
	TxBegin: "BEGIN", TxCommit: "COMMIT", TxRollback: "ROLLBACK", TxSavepoint: "SAVEPOINT",
	TxRelease: "RELEASE", TxRollbackTo: "ROLLBACK TO SAVEPOINT", TxPrepare: "PREPARE TRANSACTION",
	TxCommitPrepared: "COMMIT PREPARED", TxRollbackPrepared: "ROLLBACK PREPARED",
}

func (w *walker) transaction(v *pg.TransactionStmt) {
	op, ok := transactionOps[v.Kind]
	if !ok {
		w.unknownNode("transaction statement")
	}
	t := &Transaction{Op: op, Savepoint: v.SavepointName, GID: v.Gid, Chain: v.Chain}
	for _, o := range v.Options {
		d := o.GetDefElem()
		if d == nil {
			w.unknownNode("transaction mode")
			continue
		}
		t.Modes = append(t.Modes, d.Defname+"="+w.constant(d.Arg))
	}
	w.s.Transaction, w.s.Tag = t, transactionTags[op]
}

// role notes a role by its name; CURRENT_USER and the like in lower case.
func (w *walker) role(r *pg.RoleSpec) {
	switch r.Roletype {
	case pg.RoleSpecType_ROLESPEC_CSTRING:
		w.roles[r.Rolename] = true
	case pg.RoleSpecType_ROLESPEC_CURRENT_ROLE:
		w.roles["current_role"] = true
	case pg.RoleSpecType_ROLESPEC_CURRENT_USER:
		w.roles["current_user"] = true
	case pg.RoleSpecType_ROLESPEC_SESSION_USER:
		w.roles["session_user"] = true
	case pg.RoleSpecType_ROLESPEC_PUBLIC:
		w.roles["public"] = true
	default:
		w.unknownNode("role")
	}
}
