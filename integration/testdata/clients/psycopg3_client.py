"""psycopg 3: the extended protocol, server-side cursors, pipelines and COPY."""
import psycopg
from everyday import operation, rows
from psycopg.types import TypeInfo

conn = psycopg.connect("")
cur = conn.cursor()


def select():
    return rows(cur.execute("SELECT id, email FROM customers WHERE id = 1").fetchall())


def parameters():
    # More than prepare_threshold, then binary.
    for i in range(8):
        got = rows(cur.execute("SELECT id, email FROM customers WHERE id = %s", (2,), binary=i > 5).fetchall())
    return got


def cursor():
    with conn.cursor("named") as named:
        named.itersize = 2
        named.execute("SELECT id, email FROM customers ORDER BY id")
        return rows(list(named)[:3])


def batch():
    cur.executemany("INSERT INTO notes (id, body) VALUES (%s, %s)", [(i, "psycopg3") for i in range(3000, 3010)])
    n = cur.execute("SELECT count(*) FROM notes WHERE body = 'psycopg3'").fetchone()[0]
    conn.rollback()
    return n


def transaction():
    with conn.transaction():
        try:
            with conn.transaction():
                cur.execute("DROP TABLE orders")
        except psycopg.Error:
            pass
        return cur.execute("SELECT count(*) FROM orders").fetchone()[0]


def metadata():
    cur.execute("SELECT email, born FROM customers LIMIT 0")
    return ",".join(d.name for d in cur.description) + " " + TypeInfo.fetch(conn, "mood").name


def refused():
    cur.execute("DROP TABLE orders")


def copy_out():
    with cur.copy("COPY (SELECT id, name FROM customers WHERE id < 3 ORDER BY id) TO STDOUT") as copy:
        return ";".join(",".join(r) for r in copy.rows())


def copy_in():
    with cur.copy("COPY notes (id, body) FROM STDIN") as copy:
        copy.write_row((3101, "psycopg3"))
        copy.write_row((3102, "psycopg3"))
    n = cur.rowcount
    conn.rollback()
    return n


for f in (select, parameters, cursor, batch, transaction, metadata, refused, copy_out, copy_in):
    operation(f.__name__, f, conn.rollback)
conn.close()
