-- psql's commands that describe; what comes between two lines that begin with >>> belongs to the first.
\set QUIET on
\echo '>>> \\d'
\d
\echo '>>> \\d customers'
\d customers
\echo '>>> \\d+ customers'
\d+ customers
\echo '>>> \\d orders'
\d orders
\echo '>>> \\d+ orders'
\d+ orders
\echo '>>> \\d+ parts'
\d+ parts
\echo '>>> \\d+ parts_eu'
\d+ parts_eu
\echo '>>> \\d open_orders'
\d open_orders
\echo '>>> \\d+ open_orders'
\d+ open_orders
\echo '>>> \\d+ totals'
\d+ totals
\echo '>>> \\d tickets'
\d tickets
\echo '>>> \\d+ secrets'
\d+ secrets
\echo '>>> \\d+ farther'
\d+ farther
\echo '>>> \\d customers_pkey'
\d customers_pkey
\echo '>>> \\d+ customers_pkey'
\d+ customers_pkey
\echo '>>> \\d pair'
\d pair
\echo '>>> \\dS pg_class'
\dS pg_class
\echo '>>> \\d+ pg_catalog.pg_class'
\d+ pg_catalog.pg_class
\echo '>>> \\da'
\da
\echo '>>> \\daS'
\daS
\echo '>>> \\dA'
\dA
\echo '>>> \\dA+'
\dA+
\echo '>>> \\dAc'
\dAc
\echo '>>> \\dAf'
\dAf
\echo '>>> \\dAo'
\dAo
\echo '>>> \\dAp'
\dAp
\echo '>>> \\db'
\db
\echo '>>> \\dc'
\dc
\echo '>>> \\dc+'
\dc+
\echo '>>> \\dC'
\dC
\echo '>>> \\dC+'
\dC+
\echo '>>> \\dd'
\dd
\echo '>>> \\dD'
\dD
\echo '>>> \\dD+'
\dD+
\echo '>>> \\ddp'
\ddp
\echo '>>> \\dE'
\dE
\echo '>>> \\dE+'
\dE+
\echo '>>> \\des'
\des
\echo '>>> \\des+'
\des+
\echo '>>> \\det'
\det
\echo '>>> \\det+'
\det+
\echo '>>> \\deu'
\deu
\echo '>>> \\deu+'
\deu+
\echo '>>> \\dew'
\dew
\echo '>>> \\dew+'
\dew+
\echo '>>> \\df'
\df
\echo '>>> \\df+'
\df+
\echo '>>> \\dfn add_one'
\dfn add_one
\echo '>>> \\dF'
\dF
\echo '>>> \\dF+'
\dF+
\echo '>>> \\dFd'
\dFd
\echo '>>> \\dFd+'
\dFd+
\echo '>>> \\dFp'
\dFp
\echo '>>> \\dFp+'
\dFp+
\echo '>>> \\dFt'
\dFt
\echo '>>> \\dFt+'
\dFt+
\echo '>>> \\dg'
\dg
\echo '>>> \\dg+'
\dg+
\echo '>>> \\di'
\di
\echo '>>> \\di+'
\di+
\echo '>>> \\dl'
\dl
\echo '>>> \\dl+'
\dl+
\echo '>>> \\dL'
\dL
\echo '>>> \\dL+'
\dL+
\echo '>>> \\dm'
\dm
\echo '>>> \\dm+'
\dm+
\echo '>>> \\dn'
\dn
\echo '>>> \\dn+'
\dn+
\echo '>>> \\do'
\do
\echo '>>> \\do+ ='
\do+ =
\echo '>>> \\dO'
\dO
\echo '>>> \\dO+'
\dO+
\echo '>>> \\dp'
\dp
\echo '>>> \\dP'
\dP
\echo '>>> \\dP+'
\dP+
\echo '>>> \\dPi'
\dPi
\echo '>>> \\drds'
\drds
\echo '>>> \\dRp'
\dRp
\echo '>>> \\dRp+'
\dRp+
\echo '>>> \\dRs'
\dRs
\echo '>>> \\dRs+'
\dRs+
\echo '>>> \\ds'
\ds
\echo '>>> \\ds+'
\ds+
\echo '>>> \\dt'
\dt
\echo '>>> \\dt+'
\dt+
\echo '>>> \\dtS+'
\dtS+
\echo '>>> \\dT'
\dT
\echo '>>> \\dT+'
\dT+
\echo '>>> \\du'
\du
\echo '>>> \\du+'
\du+
\echo '>>> \\dv'
\dv
\echo '>>> \\dv+'
\dv+
\echo '>>> \\dx'
\dx
\echo '>>> \\dx+'
\dx+
\echo '>>> \\dX'
\dX
\echo '>>> \\dy'
\dy
\echo '>>> \\dy+'
\dy+
\echo '>>> \\l'
\l
\echo '>>> \\l+'
\l+
\echo '>>> \\lo_list'
\lo_list
\echo '>>> \\sf add_one'
\sf add_one
\echo '>>> \\sf+ add_one'
\sf+ add_one
\echo '>>> \\sv open_orders'
\sv open_orders
\echo '>>> \\sv+ open_orders'
\sv+ open_orders
\echo '>>> \\z'
\z
\echo '>>> \\encoding'
\encoding
\echo '>>> SELECT 1 \\gdesc'
SELECT 1 \gdesc
\echo '>>> SELECT id FROM customers ORDER BY id LIMIT 2 \\gx'
SELECT id FROM customers ORDER BY id LIMIT 2 \gx
\echo '>>> SELECT status, id, total_cents FROM orders \\crosstabview'
SELECT status, id, total_cents FROM orders \crosstabview
\echo '>>> SELECT ''SELECT 1'' \\gexec'
SELECT 'SELECT 1' \gexec
