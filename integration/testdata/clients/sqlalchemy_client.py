"""SQLAlchemy 1.4 on psycopg2: its start-up queries, reflection, the ORM, streamed results."""
import sqlalchemy as sa
from everyday import operation, rows
from sqlalchemy.ext.automap import automap_base
from sqlalchemy.orm import Session

engine = sa.create_engine("postgresql+psycopg2://")
conn = engine.connect()


def select():
    return rows(conn.execute(sa.text("SELECT id, email FROM customers WHERE id = 1")))


def parameters():
    return rows(conn.execute(sa.text("SELECT id, email FROM customers WHERE id = :id"), {"id": 2}))


def cursor():
    got = conn.execution_options(stream_results=True, max_row_buffer=2).execute(sa.text("SELECT id, email FROM customers ORDER BY id"))
    return rows(list(got)[:3])


def batch():
    with engine.connect() as other:
        t = other.begin()
        notes = sa.Table("notes", sa.MetaData(), autoload_with=other)
        other.execute(notes.insert(), [{"id": i, "body": "sqlalchemy"} for i in range(5000, 5010)])
        n = other.execute(sa.select(sa.func.count()).select_from(notes).where(notes.c.body == "sqlalchemy")).scalar()
        t.rollback()
        return n


def transaction():
    with engine.begin() as tx:
        try:
            with tx.begin_nested():
                tx.execute(sa.text("DROP TABLE orders"))
        except sa.exc.SQLAlchemyError:
            pass
        return tx.execute(sa.text("SELECT count(*) FROM orders")).scalar()


def metadata():
    i = sa.inspect(engine)
    found = sa.MetaData()
    found.reflect(engine, views=True)
    for name in found.tables:
        i.get_pk_constraint(name), i.get_foreign_keys(name), i.get_indexes(name), i.get_unique_constraints(name)
        i.get_check_constraints(name), i.get_table_comment(name)
    i.get_schema_names(), i.get_view_names(), i.get_sequence_names(), i.get_enums(), i.get_foreign_table_names()
    i.get_view_definition("open_orders")
    base = automap_base()
    base.prepare(autoload_with=engine)
    with Session(engine) as s:
        order = s.get(base.classes.orders, 101)
        return f"{len(found.tables) > 5} {order.status} {order.customers.email}"


def refused():
    conn.execute(sa.text("DROP TABLE orders"))


for f in (select, parameters, cursor, batch, transaction, metadata, refused):
    operation(f.__name__, f)
conn.close()
