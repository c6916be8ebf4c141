"""asyncpg: binary everywhere, prepared statements, introspection of types, cursors by portals, and COPY."""
import asyncio
import io

import asyncpg
from everyday import code, rows


async def main():
    conn = await asyncpg.connect()

    async def select():
        return rows(await conn.fetch("SELECT id, email FROM customers WHERE id = 1"))

    async def parameters():
        return rows(await conn.fetch("SELECT id, email FROM customers WHERE id = $1 AND name <> $2", 2, "x"))

    async def cursor():
        async with conn.transaction():
            return rows([r async for r in conn.cursor("SELECT id, email FROM customers ORDER BY id", prefetch=2)][:3])

    async def batch():
        tr = conn.transaction()
        await tr.start()
        try:
            await conn.executemany("INSERT INTO notes (id, body) VALUES ($1, $2)", [(i, "asyncpg") for i in range(4000, 4010)])
            return await conn.fetchval("SELECT count(*) FROM notes WHERE body = 'asyncpg'")
        finally:
            await tr.rollback()

    async def transaction():
        async with conn.transaction():
            try:
                async with conn.transaction():
                    await conn.execute("DROP TABLE orders")
            except asyncpg.PostgresError:
                pass
            return await conn.fetchval("SELECT count(*) FROM orders")

    async def metadata():
        # Types that it doesn't know make it read the catalogue.
        feeling, numbers = await conn.fetchrow("SELECT feeling, numbers FROM kinds")
        return f"{feeling} {numbers}"

    async def refused():
        await conn.execute("DROP TABLE orders")

    async def copy_out():
        out = io.BytesIO()
        await conn.copy_from_query("SELECT id, name FROM customers WHERE id < 3 ORDER BY id", output=out, format="csv")
        return out.getvalue().decode().strip().replace("\n", ";")

    async def copy_in():
        tr = conn.transaction()
        await tr.start()
        try:
            return await conn.copy_records_to_table("notes", records=[(4101, "asyncpg"), (4102, "asyncpg")])
        finally:
            await tr.rollback()

    for f in (select, parameters, cursor, batch, transaction, metadata, refused, copy_out, copy_in):
        try:
            line = f"{f.__name__} ok {await f()}"
        except Exception as e:
            line = f"{f.__name__} {code(e)} {type(e).__name__}: {e}"
        print(line.replace("\n", " "), flush=True)
    await conn.close()


asyncio.run(main())
