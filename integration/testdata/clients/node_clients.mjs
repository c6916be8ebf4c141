// node-postgres, knex, Sequelize or TypeORM. One line per operation: "name ok answer" or "name SQLSTATE message".
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
const require = createRequire(process.argv[2] + "/");
const which = process.argv[3];
const pg = require("pg"), knexOf = require("knex"), { Sequelize, QueryTypes } = require("sequelize"), { DataSource } = require("typeorm");

// Some of them want all of it in their own configuration: what libpq reads from the service file.
const service = Object.fromEntries(readFileSync(process.env.PGSERVICEFILE, "utf8").split("\n").filter((l) => l.includes("=")).map((l) => [l.slice(0, l.indexOf("=")), l.slice(l.indexOf("=") + 1)]));
const { host, port, dbname: database, user, password } = service;

const rows = (list) => list.map((r) => Object.values(r).join("|")).join(",");
async function each(operations) {
  for (const [name, run] of Object.entries(operations)) {
    let line;
    try {
      line = `${name} ok ${await run()}`;
    } catch (e) {
      const cause = e.parent ?? e.driverError ?? e;
      line = `${name} ${cause.code ?? "error"} ${e.message}`;
    }
    console.log(line.replaceAll("\n", " "));
  }
}
const refusal = "DROP TABLE orders";

async function nodePg() {
  const c = new pg.Client(); // by libpq's environment
  await c.connect();
  await each({
    select: async () => rows((await c.query("SELECT id, email FROM customers WHERE id = 1")).rows),
    parameters: async () => {
      let got;
      for (let i = 0; i < 3; i++) got = await c.query({ name: "by-id", text: "SELECT id, email FROM customers WHERE id = $1", values: [2] });
      return rows(got.rows);
    },
    cursor: async () => {
      const Cursor = require("pg-cursor");
      const cursor = c.query(new Cursor("SELECT id, email FROM customers ORDER BY id"));
      const got = [...(await cursor.read(2)), ...(await cursor.read(2))];
      await cursor.close();
      return rows(got.slice(0, 3));
    },
    batch: async () => {
      await c.query("BEGIN");
      try {
        for (let i = 7000; i < 7010; i++) await c.query("INSERT INTO notes (id, body) VALUES ($1, $2)", [i, "pg"]);
        return (await c.query("SELECT count(*) AS n FROM notes WHERE body = 'pg'")).rows[0].n;
      } finally {
        await c.query("ROLLBACK");
      }
    },
    transaction: async () => {
      await c.query("BEGIN");
      await c.query("SAVEPOINT s");
      await c.query(refusal).catch(() => c.query("ROLLBACK TO SAVEPOINT s"));
      const n = (await c.query("SELECT count(*) AS n FROM orders")).rows[0].n;
      await c.query("COMMIT");
      return n;
    },
    refused: () => c.query(refusal),
  });
  await c.end();
}

async function knex() {
  const k = knexOf({ client: "pg", connection: { host, port, database, user, password }, pool: { min: 0, max: 2 } });
  await each({
    select: async () => rows(await k("customers").select("id", "email").where({ id: 1 })),
    parameters: async () => rows((await k.raw("SELECT id, email FROM customers WHERE id = ?", [2])).rows),
    batch: async () => {
      let n;
      await k.transaction(async (t) => {
        await t.batchInsert("notes", Array.from({ length: 10 }, (_, i) => ({ id: 8000 + i, body: "knex" })), 4);
        n = (await t("notes").where({ body: "knex" }).count())[0].count;
        throw new Error("back");
      }).catch((e) => { if (e.message !== "back") throw e; });
      return n;
    },
    transaction: () => k.transaction(async (t) => {
      await t.transaction((inner) => inner.raw(refusal)).catch(() => {});
      return (await t("orders").count())[0].count;
    }),
    metadata: async () => Object.keys(await k("orders").columnInfo()).length + " " + (await k.schema.hasTable("orders")) + " " + (await k.schema.hasColumn("orders", "status")),
    refused: () => k.raw(refusal),
  });
  await k.destroy();
}

async function sequelize() {
  const s = new Sequelize(database, user, password, { host, port, dialect: "postgres", logging: false });
  const Note = s.define("note", { id: { type: "int", primaryKey: true }, body: "text" }, { tableName: "notes", timestamps: false });
  const Customer = s.define("customer", { email: "text" }, { tableName: "customers", timestamps: false });
  await each({
    select: async () => rows(await Customer.findAll({ where: { id: 1 }, attributes: ["id", "email"], raw: true })),
    parameters: async () => rows(await s.query("SELECT id, email FROM customers WHERE id = $1", { bind: [2], type: QueryTypes.SELECT })),
    batch: async () => {
      const t = await s.transaction();
      try {
        await Note.bulkCreate(Array.from({ length: 10 }, (_, i) => ({ id: 9000 + i, body: "sequelize" })), { transaction: t });
        return await Note.count({ where: { body: "sequelize" }, transaction: t });
      } finally {
        await t.rollback();
      }
    },
    transaction: () => s.transaction(async (t) => {
      await s.transaction({ transaction: t }, (inner) => s.query(refusal, { transaction: inner })).catch(() => {});
      return (await s.query("SELECT count(*) AS n FROM orders", { transaction: t, type: QueryTypes.SELECT }))[0].n;
    }),
    metadata: async () => {
      await s.authenticate();
      const q = s.getQueryInterface();
      const tables = await q.showAllTables(), columns = await q.describeTable("orders");
      await q.showIndex("orders");
      await q.getForeignKeyReferencesForTable("orders");
      await s.databaseVersion();
      return `${tables.length > 5} ${Object.keys(columns).length}`;
    },
    refused: () => s.query(refusal),
  });
  await s.close();
}

async function typeorm() {
  const db = new DataSource({ type: "postgres", host, port: Number(port), database, username: user, password, installExtensions: false });
  const failed = await db.initialize().catch((e) => e);
  await each({
    select: async () => {
      if (failed instanceof Error) throw failed;
      return rows(await db.query("SELECT id, email FROM customers WHERE id = 1"));
    },
    parameters: async () => rows(await db.createQueryBuilder().select(["id", "email"]).from("customers", "c").where("c.id = :id", { id: 2 }).getRawMany()),
    batch: () => db.transaction(async (m) => {
      await m.createQueryBuilder().insert().into("notes", ["id", "body"]).values(Array.from({ length: 10 }, (_, i) => ({ id: 9500 + i, body: "typeorm" }))).execute();
      const n = (await m.query("SELECT count(*) AS n FROM notes WHERE body = 'typeorm'"))[0].n;
      await m.query("DELETE FROM notes WHERE body = 'typeorm'");
      return n;
    }),
    transaction: () => db.transaction(async (m) => {
      await m.transaction((inner) => inner.query(refusal)).catch(() => {});
      return (await m.query("SELECT count(*) AS n FROM orders"))[0].n;
    }),
    metadata: async () => {
      const r = db.createQueryRunner();
      const table = await r.getTable("orders");
      await r.getTables(["orders", "customers", "kinds", "parts"]);
      await r.release();
      return `${table.columns.length} ${table.foreignKeys.length} ${table.indices.length}`;
    },
    refused: () => db.query(refusal),
  });
  await db.destroy();
}

await { pg: nodePg, knex, sequelize, typeorm }[which]();
