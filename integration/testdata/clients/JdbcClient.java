import java.io.StringReader;
import java.io.StringWriter;
import java.sql.*;
import java.util.*;
import org.postgresql.PGConnection;
import org.postgresql.copy.CopyManager;

/** pgjdbc: server-prepared statements, cursors by portals, batches, autosave, all of DatabaseMetaData, COPY. One line per operation. */
public class JdbcClient {
    interface Operation { Object run() throws Exception; }

    static void operation(String name, Operation o) {
        String line;
        try {
            line = name + " ok " + o.run();
        } catch (SQLException e) {
            line = name + " " + e.getSQLState() + " " + e.getMessage();
        } catch (Exception e) {
            line = name + " error " + e;
        }
        System.out.println(line.replace('\n', ' '));
    }

    static String rows(ResultSet r, int columns, int most) throws SQLException {
        StringJoiner out = new StringJoiner(",");
        for (int n = 0; r.next(); n++) {
            if (n >= most) continue;
            StringJoiner row = new StringJoiner("|");
            for (int i = 1; i <= columns; i++) row.add(r.getString(i));
            out.add(row.toString());
        }
        return out.toString();
    }

    static int count(ResultSet r) throws SQLException {
        int n = 0;
        while (r.next()) n++;
        r.close();
        return n;
    }

    public static void main(String[] args) throws Exception {
        String url = "jdbc:postgresql:///?service=" + args[0];
        try (Connection c = DriverManager.getConnection(url); Statement s = c.createStatement()) {
            operation("select", () -> rows(s.executeQuery("SELECT id, email FROM customers WHERE id = 1"), 2, 9));
            operation("parameters", () -> {
                String got = "";
                // More than prepareThreshold, so that the driver goes over to a named statement and binary results.
                try (PreparedStatement p = c.prepareStatement("SELECT id, email FROM customers WHERE id = ?")) {
                    for (int i = 0; i < 8; i++) {
                        p.setInt(1, 2);
                        got = rows(p.executeQuery(), 2, 9);
                    }
                }
                return got;
            });
            operation("cursor", () -> {
                c.setAutoCommit(false);
                try (Statement cursor = c.createStatement()) {
                    cursor.setFetchSize(2);
                    return rows(cursor.executeQuery("SELECT id, email FROM customers ORDER BY id"), 2, 3);
                } finally {
                    c.rollback();
                    c.setAutoCommit(true);
                }
            });
            operation("metadata", () -> metadata(c));
            operation("refused", () -> s.execute("DROP TABLE orders"));
            operation("copy_out", () -> {
                StringWriter out = new StringWriter();
                c.unwrap(PGConnection.class).getCopyAPI().copyOut("COPY (SELECT id, name FROM customers WHERE id < 3 ORDER BY id) TO STDOUT (FORMAT csv)", out);
                return out.toString().trim().replace("\n", ";");
            });
            operation("copy_in", () -> {
                c.setAutoCommit(false);
                try {
                    return c.unwrap(PGConnection.class).getCopyAPI().copyIn("COPY notes (id, body) FROM STDIN (FORMAT csv)", new StringReader("1101,jdbc\n1102,jdbc\n"));
                } finally {
                    c.rollback();
                    c.setAutoCommit(true);
                }
            });
        }
        for (String option : new String[] {"", "&reWriteBatchedInserts=true"}) {
            try (Connection c = DriverManager.getConnection(url + option)) {
                operation(option.isEmpty() ? "batch" : "batch_rewritten", () -> {
                    c.setAutoCommit(false);
                    try (PreparedStatement p = c.prepareStatement("INSERT INTO notes (id, body) VALUES (?, ?)"); Statement s = c.createStatement()) {
                        for (int i = 1000; i < 1010; i++) {
                            p.setInt(1, i);
                            p.setString(2, "jdbc");
                            p.addBatch();
                        }
                        p.executeBatch();
                        return rows(s.executeQuery("SELECT count(*) FROM notes WHERE body = 'jdbc'"), 1, 1);
                    } finally {
                        c.rollback();
                    }
                });
            }
        }
        try (Connection c = DriverManager.getConnection(url + "&autosave=always"); Statement s = c.createStatement()) {
            operation("transaction", () -> {
                c.setAutoCommit(false);
                try {
                    s.execute("DROP TABLE orders");
                } catch (SQLException refused) {
                    // The driver goes back to its savepoint by itself.
                }
                String n = rows(s.executeQuery("SELECT count(*) FROM orders"), 1, 1);
                c.commit();
                return n;
            });
        }
    }

    static String metadata(Connection c) throws SQLException {
        DatabaseMetaData m = c.getMetaData();
        Map<String, Integer> n = new LinkedHashMap<>();
        n.put("tables", count(m.getTables(null, "public", "%", null)));
        n.put("columns", count(m.getColumns(null, "public", "orders", "%")));
        n.put("primary", count(m.getPrimaryKeys(null, "public", "orders")));
        n.put("imported", count(m.getImportedKeys(null, "public", "orders")));
        n.put("exported", count(m.getExportedKeys(null, "public", "customers")));
        n.put("cross", count(m.getCrossReference(null, "public", "customers", null, "public", "orders")));
        n.put("index", count(m.getIndexInfo(null, "public", "orders", false, true)));
        n.put("best row", count(m.getBestRowIdentifier(null, "public", "orders", DatabaseMetaData.bestRowSession, true)));
        count(m.getVersionColumns(null, "public", "orders"));
        count(m.getTypeInfo());
        count(m.getProcedures(null, "public", "%"));
        count(m.getProcedureColumns(null, "public", "%", "%"));
        count(m.getFunctions(null, "public", "%"));
        count(m.getFunctionColumns(null, "public", "%", "%"));
        count(m.getSchemas());
        count(m.getSchemas(null, "pub%"));
        count(m.getCatalogs());
        count(m.getTableTypes());
        count(m.getTablePrivileges(null, "public", "%"));
        count(m.getColumnPrivileges(null, "public", "orders", "%"));
        count(m.getUDTs(null, "public", "%", null));
        count(m.getClientInfoProperties());
        m.getSQLKeywords();
        m.getMaxColumnNameLength();
        m.getNumericFunctions();
        // What tools ask of a result: the driver looks up the base columns.
        try (PreparedStatement p = c.prepareStatement("SELECT id, email, feeling FROM customers, kinds LIMIT 0")) {
            ResultSetMetaData r = p.executeQuery().getMetaData();
            n.put("result " + r.getTableName(2) + "." + r.getColumnName(2) + " nullable", r.isNullable(1));
            r.isAutoIncrement(1);
            n.put(r.getColumnTypeName(3), p.getParameterMetaData().getParameterCount());
        }
        return n.toString();
    }
}
