"""Connects through the run's listener, unmodified: libpq's PG* environment. One line per fact."""
import psycopg2

with psycopg2.connect("") as conn:
    with conn.cursor() as cur:
        cur.execute("SELECT id, name, email, phone FROM customers WHERE id <= %s ORDER BY id", (2,))
        for row in cur:
            print("row %s|%s|%s|%s" % row)
    conn.rollback()
    with conn.cursor() as cur:
        try:
            cur.execute("DROP TABLE customers")
            print("DROP was not refused")
        except psycopg2.Error as e:
            print("refused", e.pgcode, str(e).replace("\n", " "))
    conn.rollback()
    with conn.cursor() as cur:
        cur.execute("SELECT count(*) FROM customers")
        print("count", cur.fetchone()[0])
conn.close()
