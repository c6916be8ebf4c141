"""psycopg2: libpq's simple protocol, named cursors, batches and COPY."""
import io

import psycopg2
import psycopg2.extras
from everyday import operation, rows

conn = psycopg2.connect("")
cur = conn.cursor()


def select():
    cur.execute("SELECT id, email FROM customers WHERE id = 1")
    return rows(cur.fetchall())


def parameters():
    cur.execute("SELECT id, email FROM customers WHERE id = %s AND name <> %s", (2, "Robert'); --"))
    return rows(cur.fetchall())


def cursor():
    with conn.cursor("named") as named:
        named.itersize = 2
        named.execute("SELECT id, email FROM customers ORDER BY id")
        return rows(list(named)[:3])


def batch():
    psycopg2.extras.execute_values(cur, "INSERT INTO notes (id, body) VALUES %s", [(i, "psycopg2") for i in range(2000, 2010)])
    cur.execute("SELECT count(*) FROM notes WHERE body = 'psycopg2'")
    n = cur.fetchone()[0]
    conn.rollback()
    return n


def transaction():
    cur.execute("SAVEPOINT s")
    try:
        cur.execute("DROP TABLE orders")
    except psycopg2.Error:
        cur.execute("ROLLBACK TO SAVEPOINT s")
    cur.execute("SELECT count(*) FROM orders")
    n = cur.fetchone()[0]
    conn.commit()
    return n


def metadata():
    cur.execute("SELECT email, born FROM customers LIMIT 0")
    names = [d.name for d in cur.description]
    psycopg2.extras.register_hstore  # what it asks for is below
    psycopg2.extras.HstoreAdapter.get_oids(conn)
    return ",".join(names)


def refused():
    cur.execute("DROP TABLE orders")


def copy_out():
    out = io.StringIO()
    cur.copy_expert("COPY (SELECT id, name FROM customers WHERE id < 3 ORDER BY id) TO STDOUT (FORMAT csv)", out)
    return out.getvalue().strip().replace("\n", ";")


def copy_masked():
    cur.copy_expert("COPY customers TO STDOUT", io.StringIO())


def copy_in():
    cur.copy_expert("COPY notes (id, body) FROM STDIN (FORMAT csv)", io.StringIO("2101,psycopg2\n2102,psycopg2\n"))
    n = cur.rowcount
    conn.rollback()
    return n


for f in (select, parameters, cursor, batch, transaction, metadata, refused, copy_out, copy_masked, copy_in):
    operation(f.__name__, f, conn.rollback)
conn.close()
