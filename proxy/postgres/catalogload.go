package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/jackc/pgx/v5/pgconn"
)

// loader fills a snapshot. All queries run in one transaction, so that they see one state.
type loader struct {
	ctx  context.Context
	conn *pgconn.PgConn
	s    *snapshot
	// accounts are the names of those that agents use, quoted.
	accounts string
	err      error
}

// firstUserOID is the first that initdb doesn't give out: what is above belongs to somebody.
const firstUserOID = "16384"

const (
	queryRelations = `select c.oid, n.nspname, c.relname, c.relkind, c.relrowsecurity
		from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
		where c.relkind in ('r','p','v','m','f','S') and n.nspname !~ '^pg_(toast|temp_)'`
	queryColumns = `select a.attrelid, a.attnum, a.attname
		from pg_catalog.pg_attribute a join pg_catalog.pg_class c on c.oid = a.attrelid
		where a.attnum > 0 and not a.attisdropped and c.relkind in ('r','p','v','m','f','S')`
	// What generated columns are made of.
	queryGenerated = `select a.attrelid, a.attname, s.attname
		from pg_catalog.pg_attribute a join pg_catalog.pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
		join pg_catalog.pg_depend p on p.classid = 'pg_catalog.pg_attrdef'::pg_catalog.regclass and p.objid = d.oid
		and p.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass and p.refobjid = a.attrelid and p.refobjsubid <> a.attnum
		join pg_catalog.pg_attribute s on s.attrelid = p.refobjid and s.attnum = p.refobjsubid
		where a.attgenerated <> '' and not a.attisdropped`
	queryIndexes = `select n.nspname, c.relname, i.indrelid from pg_catalog.pg_index i join pg_catalog.pg_class c on c.oid = i.indexrelid
		join pg_catalog.pg_namespace n on n.oid = c.relnamespace where i.indexrelid >= ` + firstUserOID + ` and n.nspname !~ '^pg_(toast|temp_)'`
	queryInherits = `select inhrelid, inhparent from pg_catalog.pg_inherits`
	// What the rewrite rules of a relation depend on. Functions and operators count where somebody made them.
	queryViews = `select distinct r.ev_class, d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass, d.refobjid
		from pg_catalog.pg_rewrite r join pg_catalog.pg_depend d
		on d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass and d.objid = r.oid
		where d.refobjid <> r.ev_class and (d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
		or d.refobjid >= ` + firstUserOID + ` and d.refclassid in ('pg_catalog.pg_proc'::pg_catalog.regclass, 'pg_catalog.pg_operator'::pg_catalog.regclass))`
	// PostgreSQL's own tables and functions aren't noted in pg_depend, so what a view of somebody's says of them is read from the
	// rule itself: query_to_xml shows any table, pg_statistic any value.
	queryViewsOwn = `select distinct r.ev_class, m.found[1] = 'relid', m.found[2]::pg_catalog.oid, p.proname
		from pg_catalog.pg_rewrite r
		cross join lateral pg_catalog.regexp_matches(r.ev_action::pg_catalog.text, ':(relid|funcid|aggfnoid|winfnoid) (\d+)', 'g') m (found)
		left join pg_catalog.pg_proc p on p.oid = m.found[2]::pg_catalog.oid and m.found[1] <> 'relid'
		where r.ev_class >= ` + firstUserOID + ` and m.found[2]::pg_catalog.int8 between 1 and ` + firstUserOID + ` - 1`
	queryFunctions = `select distinct n.nspname, p.proname
		from pg_catalog.pg_proc p join pg_catalog.pg_namespace n on n.oid = p.pronamespace
		where (n.nspname <> 'pg_catalog' and n.nspname <> 'information_schema') or p.oid >= ` + firstUserOID
	querySystem = `select distinct p.proname from pg_catalog.pg_proc p where p.pronamespace = 'pg_catalog'::pg_catalog.regnamespace and p.oid < ` + firstUserOID
	queryUsable = `select r.rolname, n.nspname from pg_catalog.pg_roles r, pg_catalog.pg_namespace n
		where n.nspname !~ '^pg_(toast|temp_)' and pg_catalog.has_schema_privilege(r.oid, n.oid, 'usage') and r.rolname in (`
	querySchemas = `select nspname from pg_catalog.pg_namespace`
	// Operators and input functions written in C by an extension, immutable or stable, count as vouched for:
	// only a superuser can install them.
	queryOperators = `select distinct n.nspname, o.oprname
		from pg_catalog.pg_operator o join pg_catalog.pg_namespace n on n.oid = o.oprnamespace
		join pg_catalog.pg_proc p on p.oid = o.oprcode join pg_catalog.pg_language l on l.oid = p.prolang
		where (n.nspname <> 'pg_catalog' or o.oid >= ` + firstUserOID + `)
		and not (p.provolatile in ('i','s') and l.lanname in ('internal','c'))`
	// A composite's input calls that of each field, and an array's that of its elements.
	queryTypes = `select n.nspname, t.typname, t.oid, case
			when t.typtype in ('e','p') then true
			when t.typtype = 'c' then not exists (select 1 from pg_catalog.pg_attribute a join pg_catalog.pg_type f on f.oid = a.atttypid
				join pg_catalog.pg_proc fi on fi.oid = f.typinput join pg_catalog.pg_language fl on fl.oid = fi.prolang
				where a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped and f.oid >= ` + firstUserOID + `
				and not (f.typtype = 'e' or f.typtype = 'b' and f.typelem = 0 and fi.provolatile in ('i','s') and fl.lanname in ('internal','c')))
			when t.typtype = 'd' then not exists (select 1 from pg_catalog.pg_constraint k where k.contypid = t.oid)
				and b.typtype in ('b','e') and bi.provolatile in ('i','s') and bl.lanname in ('internal','c')
			when t.typtype = 'b' then i.provolatile in ('i','s') and l.lanname in ('internal','c') and (t.typelem = 0 or e.typtype not in ('d','r','m','c'))
			else false end
		from pg_catalog.pg_type t join pg_catalog.pg_namespace n on n.oid = t.typnamespace
		join pg_catalog.pg_proc i on i.oid = t.typinput join pg_catalog.pg_language l on l.oid = i.prolang
		left join pg_catalog.pg_type e on e.oid = t.typelem
		left join pg_catalog.pg_type b on b.oid = t.typbasetype
		left join pg_catalog.pg_proc bi on bi.oid = b.typinput left join pg_catalog.pg_language bl on bl.oid = bi.prolang
		where n.nspname not in ('pg_catalog','information_schema') or t.oid >= ` + firstUserOID
	queryCasts = `select count(*) from pg_catalog.pg_cast k join pg_catalog.pg_proc p on p.oid = k.castfunc
		join pg_catalog.pg_language l on l.oid = p.prolang
		where k.oid >= ` + firstUserOID + ` and not (p.provolatile in ('i','s') and l.lanname in ('internal','c'))`
)

func (l *loader) run() error {
	l.exec("begin transaction isolation level repeatable read read only")
	parents := map[uint32][]uint32{}
	uses := map[uint32][]uint32{}
	l.query(queryRelations, 5, func(v [][]byte) {
		r := &relation{
			oid: l.oid(v[0]), schema: string(v[1]), name: string(v[2]), kind: one(v[3]), guarded: string(v[4]) == "t",
			columns: map[int16]string{},
		}
		l.s.relations[qname{r.schema, r.name}] = r
		l.s.byOID[r.oid] = r
	})
	l.query(queryColumns, 3, func(v [][]byte) {
		if r := l.s.byOID[l.oid(v[0])]; r != nil {
			n, err := strconv.ParseInt(string(v[1]), 10, 16)
			l.fail(err)
			r.columns[int16(n)] = string(v[2])
		}
	})
	l.query(queryGenerated, 3, func(v [][]byte) {
		if r := l.s.byOID[l.oid(v[0])]; r != nil {
			if r.madeOf == nil {
				r.madeOf = map[string][]string{}
			}
			r.madeOf[string(v[1])] = append(r.madeOf[string(v[1])], string(v[2]))
		}
	})
	l.query(queryIndexes, 3, func(v [][]byte) {
		if r := l.s.byOID[l.oid(v[2])]; r != nil {
			l.s.indexes[qname{string(v[0]), string(v[1])}] = r
		}
	})
	l.query(queryInherits, 2, func(v [][]byte) {
		child, parent := l.oid(v[0]), l.oid(v[1])
		parents[child] = append(parents[child], parent)
	})
	l.query(queryViews, 3, func(v [][]byte) {
		view := l.oid(v[0])
		if string(v[1]) == "t" {
			uses[view] = append(uses[view], l.oid(v[2]))
		} else if r := l.s.byOID[view]; r != nil {
			r.code = true
		}
	})
	l.query(queryViewsOwn, 4, func(v [][]byte) {
		view := l.oid(v[0])
		if string(v[1]) == "t" {
			uses[view] = append(uses[view], l.oid(v[2]))
		} else if r := l.s.byOID[view]; r != nil && !isContained(string(v[3])) {
			r.code = true
		}
	})
	names := func(into map[string][]string) func([][]byte) {
		return func(v [][]byte) { into[string(v[1])] = append(into[string(v[1])], string(v[0])) }
	}
	l.query(queryFunctions, 2, names(l.s.functions))
	l.query(queryOperators, 2, names(l.s.operators))
	l.query(querySystem, 1, func(v [][]byte) { l.s.system[string(v[0])] = true })
	schemas := map[string]bool{}
	l.query(querySchemas, 1, func(v [][]byte) { schemas[string(v[0])] = true })
	for _, name := range l.s.schemas[1:] {
		if schemas[name] {
			l.s.creation = name
			break
		}
	}
	l.query(queryTypes, 4, func(v [][]byte) {
		l.s.knownTypes[qname{string(v[0]), string(v[1])}] = true
		if string(v[3]) == "t" {
			l.s.harmlessOIDs[l.oid(v[2])] = true
		} else {
			l.s.types[string(v[1])] = append(l.s.types[string(v[1])], string(v[0]))
		}
	})
	usable := map[string]map[string]bool{}
	l.query(queryUsable+l.accounts+")", 2, func(v [][]byte) {
		if usable[string(v[0])] == nil {
			usable[string(v[0])] = map[string]bool{}
		}
		usable[string(v[0])][string(v[1])] = true
	})
	l.query(queryCasts, 1, func(v [][]byte) { l.s.casts = string(v[0]) != "0" })
	edges := l.stirred(parents, uses)
	l.exec("commit")
	if l.err != nil {
		return l.err
	}
	if err := errors.Join(l.s.relate(parents), l.s.lookBehind(uses), l.s.stir(edges)); err != nil {
		return err
	}
	l.s.views = map[string]*snapshot{}
	for account, schemas := range usable {
		l.s.views[account] = l.s.view(schemas)
	}
	return nil
}

var errTangled = errors.New("its tables inherit from each other, or its views read each other, more often than can be followed")

// relate gives every relation its ancestors and descendants. What the target says may go in circles.
func (s *snapshot) relate(parents map[uint32][]uint32) error {
	pairs := 0
	for child := range parents {
		c := s.byOID[child]
		if c == nil {
			continue
		}
		seen := map[uint32]bool{child: true}
		for up := slices.Clone(parents[child]); len(up) > 0; up = up[1:] {
			if seen[up[0]] {
				continue
			}
			seen[up[0]] = true
			if pairs++; pairs > maxKinships {
				return errTangled
			}
			if p := s.byOID[up[0]]; p != nil {
				c.kin = append(c.kin, p)
				p.kin = append(p.kin, c)
			}
			up = append(up, parents[up[0]]...)
		}
	}
	return nil
}

// lookBehind follows views through views.
func (s *snapshot) lookBehind(uses map[uint32][]uint32) error {
	return s.follow(uses, func(v, r *relation) {
		v.behind = append(v.behind, r)
		v.code = v.code || r.code
	})
}

// follow calls found once for each relation and each of those that the edges lead to from it, at any distance.
func (s *snapshot) follow(edges map[uint32][]uint32, found func(from, to *relation)) error {
	pairs := 0
	for oid := range edges {
		from := s.byOID[oid]
		if from == nil {
			continue
		}
		seen := map[uint32]bool{oid: true}
		for todo := slices.Clone(edges[oid]); len(todo) > 0; todo = todo[1:] {
			if pairs++; pairs > maxKinships {
				return errTangled
			}
			r := s.byOID[todo[0]]
			if r == nil || seen[r.oid] {
				continue
			}
			seen[r.oid] = true
			found(from, r)
			todo = append(todo, edges[r.oid]...)
		}
	}
	return nil
}

func (l *loader) fail(err error) {
	if err != nil && l.err == nil {
		l.err = err
	}
}

func (l *loader) exec(sql string) {
	if l.err == nil {
		_, err := l.conn.Exec(l.ctx, sql).ReadAll()
		l.fail(err)
	}
}

func (l *loader) query(sql string, columns int, row func([][]byte)) {
	if l.err != nil {
		return
	}
	rows := l.conn.ExecParams(l.ctx, sql, nil, nil, nil, nil)
	for rows.NextRow() {
		v := rows.Values()
		if len(v) != columns {
			l.fail(fmt.Errorf("the catalogue gave %d columns, not %d", len(v), columns))
			continue
		}
		if l.err == nil {
			row(v)
		}
	}
	_, err := rows.Close()
	l.fail(err)
}

func (l *loader) oid(b []byte) uint32 {
	n, err := strconv.ParseUint(string(b), 10, 32)
	l.fail(err)
	return uint32(n)
}

func one(b []byte) byte {
	if len(b) != 1 {
		return 0
	}
	return b[0]
}
