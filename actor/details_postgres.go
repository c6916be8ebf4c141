package actor

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/deputymesh/deputy/internal/strictjson"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

const postgresType = "deputy_postgres"

// PostgresVerbs are the actions of a deputy_postgres capability, in sync with
// the policy actions postgres:<verb>. Transaction control needs none.
func PostgresVerbs() []string {
	return []string{"select", "insert", "update", "delete", "truncate", "ddl", "admin", "call", "set", "copy", "lock", "listen"}
}

// PostgresDetail is a capability on PostgreSQL databases:
//
//	{"type":"deputy_postgres","locations":["spiffe://…/target/orders"],
//	 "actions":["select"],"databases":["orders"],"tables":["sales.*"],"max_rows":1000}
//
// An absent (nil) Databases or Tables and a zero MaxRows is no constraint.
type PostgresDetail struct {
	Locations []spiffeid.ID // targets; at least one
	Actions   []string      // of PostgresVerbs; at least one
	Databases []string      // exact names
	Tables    []string      // schema.table, * only as a whole segment
	MaxRows   int64         // rows given back by one command
}

// PostgresAction is one verb on one object. For the verb call the object is the
// routine. An empty Table is an action on the schema, an empty Schema one on the
// database.
type PostgresAction struct {
	Target   spiffeid.ID
	Verb     string
	Database string
	Schema   string
	Table    string
}

func (a PostgresAction) Name() string { return "postgres:" + a.Verb }
func (PostgresAction) action()        {}

type postgresJSON struct {
	Type      string    `json:"type"`
	Locations locations `json:"locations"`
	Actions   []string  `json:"actions"`
	Databases []string  `json:"databases,omitempty"`
	Tables    []string  `json:"tables,omitempty"`
	MaxRows   *int64    `json:"max_rows,omitempty"`
}

// locations are read so that one which is no SPIFFE ID has the class of every malformed value.
type locations []spiffeid.ID

func (l *locations) UnmarshalJSON(data []byte) error {
	var texts []string
	if err := strictjson.Unmarshal(data, &texts); err != nil {
		return err
	}
	*l = make(locations, 0, len(texts))
	for _, text := range texts {
		id, err := spiffeid.FromString(text)
		if err != nil {
			return refuse(ClassDetails, "locations: %w", err)
		}
		*l = append(*l, id)
	}
	return nil
}

func parsePostgres(data []byte) (Detail, error) {
	var j postgresJSON
	if err := strictjson.Unmarshal(data, &j); err != nil {
		return nil, err
	}
	d := PostgresDetail{Locations: j.Locations, Actions: j.Actions, Databases: j.Databases, Tables: j.Tables}
	if j.MaxRows != nil {
		if *j.MaxRows < 1 {
			return nil, refuse(ClassDetails, "max_rows is %d, want at least 1", *j.MaxRows)
		}
		d.MaxRows = *j.MaxRows
	}
	return d, nil
}

func (d PostgresDetail) MarshalJSON() ([]byte, error) {
	j := postgresJSON{Type: postgresType, Locations: d.Locations, Actions: d.Actions, Databases: d.Databases, Tables: d.Tables}
	if d.MaxRows != 0 {
		j.MaxRows = &d.MaxRows
	}
	return json.Marshal(j)
}

func (PostgresDetail) Type() string             { return postgresType }
func (d PostgresDetail) Targets() []spiffeid.ID { return d.Locations }

func (d PostgresDetail) validate() error {
	if err := checkPlace(d.Locations, d.Actions, PostgresVerbs()); err != nil {
		return err
	}
	if err := errors.Join(checkList("databases", d.Databases), checkList("tables", d.Tables)); err != nil {
		return err
	}
	for _, db := range d.Databases {
		if err := checkIdentifier(db); err != nil {
			return fmt.Errorf("databases: %w", err)
		}
	}
	for _, t := range d.Tables {
		schema, table, ok := strings.Cut(t, ".")
		if !ok {
			return fmt.Errorf("tables: %q is not schema.table", t)
		}
		for _, seg := range []string{schema, table} {
			if seg == "*" {
				continue
			}
			if err := checkIdentifier(seg); err != nil {
				return fmt.Errorf("tables: %q: %w", t, err)
			}
		}
	}
	if d.MaxRows < 0 {
		return fmt.Errorf("max_rows is %d", d.MaxRows)
	}
	return nil
}

// checkIdentifier takes a PostgreSQL identifier as the catalogue spells it. A
// name that holds a dot, a star or a double quote can't be said in a pattern;
// only * covers it.
func checkIdentifier(s string) error {
	if len(s) == 0 || len(s) > 63 {
		return fmt.Errorf("%q is not an identifier of 1 to 63 bytes", s)
	}
	for _, r := range s {
		if r == '.' || r == '*' || r == '"' || isControl(r) {
			return fmt.Errorf("%q holds %q", s, r)
		}
	}
	return nil
}

func (d PostgresDetail) within(parent Detail) error {
	p, ok := parent.(PostgresDetail)
	if !ok {
		return fmt.Errorf("%s is not %s", d.Type(), parent.Type())
	}
	switch {
	case !covers(p.Locations, d.Locations):
		return errors.New("locations are wider")
	case !covers(p.Actions, d.Actions):
		return errors.New("actions are wider")
	case p.Databases != nil && d.Databases == nil:
		return errors.New("databases is missing")
	case p.Databases != nil && !covers(p.Databases, d.Databases):
		return errors.New("databases are wider")
	case p.Tables != nil && d.Tables == nil:
		return errors.New("tables is missing")
	case p.MaxRows != 0 && d.MaxRows == 0:
		return errors.New("max_rows is missing")
	case p.MaxRows != 0 && d.MaxRows > p.MaxRows:
		return errors.New("max_rows is greater")
	}
	if p.Tables != nil {
		for _, t := range d.Tables {
			if !anyTable(p.Tables, t) {
				return fmt.Errorf("tables: %q is wider", t)
			}
		}
	}
	return nil
}

// anyTable says whether a pattern of the parent covers the child's. A child's *
// is covered by * only, which string equality decides.
func anyTable(parents []string, child string) bool {
	schema, table, _ := strings.Cut(child, ".")
	for _, p := range parents {
		ps, pt, _ := strings.Cut(p, ".")
		if (ps == "*" || ps == schema) && (pt == "*" || pt == table) {
			return true
		}
	}
	return false
}

func (d PostgresDetail) match(a Action) (Limits, error) {
	pa, ok := a.(PostgresAction)
	if !ok {
		return Limits{}, fmt.Errorf("%s is about PostgreSQL", d.Type())
	}
	switch {
	case pa.Target.IsZero() || !contains(d.Locations, pa.Target):
		return Limits{}, fmt.Errorf("target %q is not among the locations", pa.Target)
	case !contains(d.Actions, pa.Verb):
		return Limits{}, fmt.Errorf("%q is not among the actions", pa.Verb)
	case pa.Database == "":
		return Limits{}, errors.New("the action names no database")
	case d.Databases != nil && !contains(d.Databases, pa.Database):
		return Limits{}, fmt.Errorf("database %q is not among the databases", pa.Database)
	case pa.Schema == "" && pa.Table != "":
		return Limits{}, fmt.Errorf("table %q has no schema", pa.Table)
	case d.Tables != nil && !d.coversObject(pa):
		return Limits{}, fmt.Errorf("%q is not among the tables", strings.TrimSuffix(pa.Schema+"."+pa.Table, "."))
	}
	return Limits{MaxRows: d.MaxRows}, nil
}

func (d PostgresDetail) coversObject(a PostgresAction) bool {
	if a.Schema == "" {
		// SELECT 1 and SET touch no table, so no pattern speaks of them. Every
		// other verb on the whole database reaches tables that none names.
		return a.Verb == "select" || a.Verb == "set"
	}
	for _, t := range d.Tables {
		schema, table, _ := strings.Cut(t, ".")
		if (schema == "*" || schema == a.Schema) && (table == "*" || a.Table != "" && table == a.Table) {
			return true
		}
	}
	return false
}

func (d PostgresDetail) at(target spiffeid.ID) (Detail, bool) {
	if !contains(d.Locations, target) {
		return nil, false
	}
	d.Locations = []spiffeid.ID{target}
	return d, true
}
