package postgres

const (
	// Foreign keys that change the rows which refer, by the relation that they refer to.
	queryCascades = `select confrelid, conrelid from pg_catalog.pg_constraint
		where contype = 'f' and (confdeltype in ('c','n','d') or confupdtype in ('c','n','d'))`
	queryTriggers = `select distinct tgrelid from pg_catalog.pg_trigger where not tgisinternal and tgenabled <> 'D'`
)

// stirred reads what a change of each relation may change beside it: what its cascades, its children, and the views and rules
// in uses lead to.
func (l *loader) stirred(parents, uses map[uint32][]uint32) map[uint32][]uint32 {
	edges := map[uint32][]uint32{}
	for r, behind := range uses {
		edges[r] = append(edges[r], behind...)
	}
	for child, above := range parents {
		for _, p := range above {
			edges[p] = append(edges[p], child)
		}
	}
	l.query(queryCascades, 2, func(v [][]byte) {
		to, from := l.oid(v[0]), l.oid(v[1])
		edges[to] = append(edges[to], from)
	})
	l.query(queryTriggers, 1, func(v [][]byte) {
		if r := l.s.byOID[l.oid(v[0])]; r != nil {
			r.fires = true
		}
	})
	return edges
}

// stir follows what a change of each relation may change, to the end.
func (s *snapshot) stir(edges map[uint32][]uint32) error {
	return s.follow(edges, func(r, reached *relation) {
		r.stirs = append(r.stirs, reached)
	})
}

// mayStir says that a change of the relation may change another one for which yes holds.
func (r *relation) mayStir(yes func(*relation) bool) bool {
	for _, t := range r.stirs {
		if yes(t) {
			return true
		}
	}
	return false
}
