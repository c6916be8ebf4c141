-- The types that data/types.txt lists: base, range and multirange types of pg_catalog.
select t.typname
from pg_type t join pg_proc p on p.oid = t.typinput
where t.typnamespace = 'pg_catalog'::regnamespace and t.typtype in ('b', 'r', 'm')
  and t.typcategory <> 'A' and p.provolatile in ('i', 's')
order by t.typname collate "C"
