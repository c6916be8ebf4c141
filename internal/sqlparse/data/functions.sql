-- The functions that data/functions.txt lists, before data/functions_denied.txt takes its part: all
-- overloads immutable or stable, written in C inside the server or in SQL by initdb, callable with
-- values that a statement can write, and not the input or output function of a type.
select p.proname
from pg_proc p join pg_language l on l.oid = p.prolang
where p.pronamespace = 'pg_catalog'::regnamespace
group by p.proname
having bool_and(l.lanname in ('internal', 'sql')
  and p.provolatile in ('i', 's')
  and p.prorettype <> all ('{internal,trigger,event_trigger,language_handler,index_am_handler,table_am_handler,fdw_handler,tsm_handler}'::regtype[])
  and not 'internal'::regtype = any (p.proargtypes)
  and not exists (select from pg_type t
    where p.oid in (t.typinput, t.typoutput, t.typreceive, t.typsend, t.typmodin, t.typmodout)))
order by p.proname collate "C"
