package sqlparse

// Kind says what a statement is. The set is closed; what fits nowhere is KindOther, and a caller
// refuses it unless a policy allows it by its tag.
type Kind string

// Kinds of statements.
const (
	KindSelect      Kind = "select" // SELECT, VALUES, TABLE
	KindInsert      Kind = "insert"
	KindUpdate      Kind = "update"
	KindDelete      Kind = "delete"
	KindMerge       Kind = "merge"
	KindCopy        Kind = "copy"
	KindTruncate    Kind = "truncate"
	KindCreate      Kind = "create" // CREATE anything, SELECT INTO, CREATE TABLE AS
	KindAlter       Kind = "alter"  // ALTER anything, COMMENT, SECURITY LABEL
	KindDrop        Kind = "drop"
	KindGrant       Kind = "grant" // GRANT, REVOKE, default privileges
	KindTransaction Kind = "transaction"
	KindSet         Kind = "set" // SET, RESET, SET CONSTRAINTS
	KindShow        Kind = "show"
	KindExplain     Kind = "explain"
	KindDo          Kind = "do"
	KindCall        Kind = "call"
	KindPrepare     Kind = "prepare"
	KindExecute     Kind = "execute"
	KindDeallocate  Kind = "deallocate"
	KindDeclare     Kind = "declare"
	KindFetch       Kind = "fetch" // FETCH, MOVE
	KindClose       Kind = "close"
	KindListen      Kind = "listen" // LISTEN, UNLISTEN
	KindNotify      Kind = "notify"
	KindLock        Kind = "lock"
	KindMaintain    Kind = "maintain" // VACUUM, ANALYZE, CLUSTER, REINDEX, REFRESH, CHECKPOINT
	KindDiscard     Kind = "discard"
	KindLoad        Kind = "load"
	KindOther       Kind = "other"
)

// Defines says whether the kind changes definitions rather than rows.
func (k Kind) Defines() bool {
	switch k {
	case KindCreate, KindAlter, KindDrop, KindGrant:
		return true
	default:
		return false
	}
}

// known says whether k is one of the constants above.
func (k Kind) known() bool {
	switch k {
	case KindSelect, KindInsert, KindUpdate, KindDelete, KindMerge, KindCopy, KindTruncate, KindCreate,
		KindAlter, KindDrop, KindGrant, KindTransaction, KindSet, KindShow, KindExplain, KindDo, KindCall,
		KindPrepare, KindExecute, KindDeallocate, KindDeclare, KindFetch, KindClose, KindListen,
		KindNotify, KindLock, KindMaintain, KindDiscard, KindLoad, KindOther:
		return true
	default:
		return false
	}
}
