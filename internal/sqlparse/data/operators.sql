-- The operators that data/operators.txt lists: every overload in pg_catalog calls a function that is
-- immutable or stable and internal or written in SQL by initdb.
select o.oprname
from pg_operator o join pg_proc p on p.oid = o.oprcode join pg_language l on l.oid = p.prolang
where o.oprnamespace = 'pg_catalog'::regnamespace
group by o.oprname
having bool_and(p.provolatile in ('i', 's') and l.lanname in ('internal', 'sql')
  and p.pronamespace = 'pg_catalog'::regnamespace)
order by o.oprname collate "C"
