package postgres

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/deputymesh/deputy/internal/sqlparse"
)

// relation is a table, view, sequence … of the target.
type relation struct {
	oid    uint32
	schema string
	name   string
	kind   byte // pg_class.relkind
	// guarded: row security calls functions when it is read.
	guarded bool
	// columns by number; dropped ones are missing.
	columns map[int16]string
	// madeOf gives the columns that a generated column is made of.
	madeOf map[string][]string
	// kin are its ancestors and descendants by inheritance and partitioning: a rule for one counts for all.
	kin []*relation
	// behind are the relations that a view reads, at any depth; code says that it calls functions that somebody wrote.
	behind []*relation
	code   bool
	// stirs are the relations that a change of this one may change past the text of a statement: what stands behind a view or a
	// rule, and what a foreign key cascades to. fires says that somebody's trigger runs then, here or at one of those.
	stirs []*relation
	fires bool
}

func (r *relation) String() string { return r.schema + "." + r.name }

// has says that the relation has that column, system columns included.
func (r *relation) has(column string) bool {
	return r.hasOwn(column) || slices.Contains(systemColumns, column)
}

// hasOwn says the same without system columns.
func (r *relation) hasOwn(column string) bool {
	for _, c := range r.columns {
		if c == column {
			return true
		}
	}
	return false
}

var systemColumns = []string{"ctid", "xmin", "xmax", "cmin", "cmax", "tableoid"}

type qname struct{ schema, name string }

// snapshot is the catalogue at one moment. It never changes.
type snapshot struct {
	schemas   []string        // search_path as it is effective, without pg_temp
	creation  string          // the schema where new objects go
	system    map[string]bool // names of PostgreSQL's own functions
	relations map[qname]*relation
	byOID     map[uint32]*relation
	indexes   map[qname]*relation // the tables of indexes, by the names of these
	// functions that aren't PostgreSQL's own, by name: the schemas that have them.
	functions map[string][]string
	// operators and types of others that run code which nobody vouches for, by name: the schemas.
	operators map[string][]string
	types     map[string][]string
	// knownTypes are all types of others, harmless ones included.
	knownTypes map[qname]bool
	// harmlessOIDs are those of knownTypes whose input runs nothing but what is vouched for.
	harmlessOIDs map[uint32]bool
	// views is the same with the search_path as each account has it: PostgreSQL leaves out schemas that it may not use.
	views map[string]*snapshot
	// casts says that there are casts by functions of others, which SQL text doesn't show.
	casts bool
}

// find resolves a name as the pinned search_path does; nil if there is no such relation.
func (s *snapshot) find(schema, name string) *relation {
	if schema != "" {
		return s.relations[qname{schema, name}]
	}
	for _, p := range s.schemas {
		if r := s.relations[qname{p, name}]; r != nil {
			return r
		}
	}
	return nil
}

// tableOf finds the table of an index.
func (s *snapshot) tableOf(schema, name string) *relation {
	if schema != "" {
		return s.indexes[qname{schema, name}]
	}
	for _, p := range s.schemas {
		if r := s.indexes[qname{p, name}]; r != nil {
			return r
		}
	}
	return nil
}

// as gives the snapshot as an account sees it; one that isn't known sees PostgreSQL's own schema only.
func (s *snapshot) as(account string) *snapshot {
	if v := s.views[account]; v != nil {
		return v
	}
	v := *s
	v.schemas = s.schemas[:1:1]
	return &v
}

// view makes what the account sees that may use the schemas.
func (s *snapshot) view(usable map[string]bool) *snapshot {
	v := *s
	v.schemas = []string{"pg_catalog"}
	for _, name := range s.schemas[1:] {
		if usable[name] {
			v.schemas = append(v.schemas, name)
		}
	}
	if len(v.schemas) > 1 {
		v.creation = v.schemas[1]
	}
	return &v
}

// owners gives the schemas where a name of others can resolve to, out of those in the table.
func (s *snapshot) owners(table map[string][]string, schema, name string) []string {
	var out []string
	for _, has := range table[name] {
		if has == schema || schema == "" && slices.Contains(s.schemas, has) {
			out = append(out, has)
		}
	}
	return out
}

// catalog keeps the snapshot of one database fresh, over a connection of its own that never sees an agent's SQL.
type catalog struct {
	e        *Engine
	database string
	account  Account

	// loading holds the one who reads the catalogue and guards conn; it is never taken with mu held.
	loading chan struct{}
	conn    *pgconn.PgConn
	// may is what the target may still say in this reading.
	may allowance

	mu      sync.Mutex // guards what follows, never over a call to the target
	current *snapshot
	taken   time.Time
	stale   bool
}

// missAge is how old a snapshot must be before an unknown name is worth another look.
const missAge = 100 * time.Millisecond

const (
	catalogTimeout = 15 * time.Second
	// What the target may say in one reading: some hundred thousand relations with their columns. It is kept in memory, and a target
	// that makes things up must not fill it.
	maxCatalog    = 128 << 20
	maxCatalogRow = 1 << 20
	// maxKinships bounds the pairs of relations that are kin, or that a view reads: long chains make very many.
	maxKinships = 4 << 20
)

func newCatalog(e *Engine, database string, account Account) *catalog {
	return &catalog{e: e, database: database, account: account, loading: make(chan struct{}, 1)}
}

// get returns a snapshot that is younger than the limit and than the last change that went through here.
func (c *catalog) get(ctx context.Context) (*snapshot, error) {
	return c.younger(ctx, c.e.cfg.CatalogAge)
}

// after returns a snapshot for a name that s doesn't know: s itself if it is fresh, else a new one.
func (c *catalog) after(ctx context.Context, s *snapshot) (*snapshot, error) {
	if newer := c.latest(); newer != nil && newer != s {
		return newer, nil
	}
	return c.younger(ctx, missAge)
}

// latest is the newest snapshot there is, however old; nil before the first.
func (c *catalog) latest() *snapshot {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.current
}

func (c *catalog) fresh(age time.Duration) *snapshot {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.current == nil || c.stale || c.e.cfg.Now().Sub(c.taken) >= age {
		return nil
	}
	return c.current
}

func (c *catalog) younger(ctx context.Context, age time.Duration) (*snapshot, error) {
	if s := c.fresh(age); s != nil {
		return s, nil
	}
	select {
	case c.loading <- struct{}{}:
		defer func() { <-c.loading }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	// Somebody else may have read it meanwhile.
	if s := c.fresh(age); s != nil {
		return s, nil
	}
	ctx, cancel := context.WithTimeout(ctx, catalogTimeout)
	defer cancel()
	c.mu.Lock()
	c.stale = false // a change from now on counts for the next
	c.mu.Unlock()
	started := c.e.cfg.Now()
	s, err := c.load(ctx)
	if err != nil {
		c.changed()
		if c.conn != nil {
			_ = c.conn.Conn().Close()
			c.conn = nil
		}
		return nil, fmt.Errorf("reading the catalogue of %s/%s: %w", c.e.name, c.database, err)
	}
	c.mu.Lock()
	c.current, c.taken = s, started
	c.mu.Unlock()
	return s, nil
}

// changed says that definitions may have changed.
func (c *catalog) changed() {
	c.mu.Lock()
	c.stale = true
	c.mu.Unlock()
}

// close ends the connection; no session is left by then.
func (c *catalog) close() {
	c.loading <- struct{}{}
	defer func() { <-c.loading }()
	if c.conn != nil {
		_ = c.conn.Conn().Close()
		c.conn = nil
	}
}

// connect makes sure of the connection; the caller holds loading.
func (c *catalog) connect(ctx context.Context) error {
	if c.conn != nil && !c.conn.IsClosed() {
		return nil
	}
	cfg, err := c.e.connConfig(c.account, c.database, "deputy catalogue", map[string]string{
		"default_transaction_read_only": "on", "statement_timeout": "15s",
	})
	if err != nil {
		return err
	}
	cfg.BuildFrontend = func(r io.Reader, w io.Writer) *pgproto3.Frontend {
		c.may = allowance{r, maxGreeting}
		front := pgproto3.NewFrontend(&c.may, w)
		front.SetMaxBodyLen(maxCatalogRow)
		return front
	}
	if c.conn, err = pgconn.ConnectConfig(ctx, cfg); err != nil {
		c.conn = nil
		return err
	}
	return nil
}

func (c *catalog) load(ctx context.Context) (*snapshot, error) {
	if err := c.connect(ctx); err != nil {
		return nil, err
	}
	c.may.left = maxCatalog
	var accounts []string
	for _, a := range c.e.cfg.Accounts {
		accounts = append(accounts, quoteLiteral(a.Name))
	}
	l := &loader{ctx: ctx, conn: c.conn, accounts: strings.Join(accounts, ", "), s: &snapshot{
		schemas:   append([]string{"pg_catalog"}, c.e.cfg.Schemas...),
		relations: map[qname]*relation{}, byOID: map[uint32]*relation{}, indexes: map[qname]*relation{},
		functions: map[string][]string{}, operators: map[string][]string{}, types: map[string][]string{},
		knownTypes: map[qname]bool{}, harmlessOIDs: map[uint32]bool{}, system: map[string]bool{}, creation: c.e.cfg.Schemas[0],
	}}
	for _, f := range sqlparse.Forms {
		l.s.system[f] = true
	}
	return l.s, l.run()
}
