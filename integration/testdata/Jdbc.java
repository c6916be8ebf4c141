import java.sql.*;

/** Connects through the run's listener, unmodified: jdbc:postgresql:///?service=NAME. One line per fact. */
public class Jdbc {
    public static void main(String[] args) throws Exception {
        try (Connection c = DriverManager.getConnection("jdbc:postgresql:///?service=" + args[0])) {
            // More executions than prepareThreshold (5), so that the driver switches to a named statement
            // and binary results.
            try (PreparedStatement s = c.prepareStatement("SELECT id, name, email, phone FROM customers WHERE id = ?")) {
                for (int i = 1; i <= 8; i++) {
                    s.setInt(1, (i - 1) % 5 + 1);
                    try (ResultSet r = s.executeQuery()) {
                        while (r.next()) {
                            System.out.println("row " + r.getInt(1) + "|" + r.getString(2) + "|" + r.getString(3) + "|" + r.getString(4));
                        }
                    }
                }
            }
            try (Statement s = c.createStatement()) {
                s.execute("DROP TABLE customers");
                System.out.println("DROP was not refused");
            } catch (SQLException e) {
                System.out.println("refused " + e.getSQLState() + " " + e.getMessage().replace('\n', ' '));
            }
            try (Statement s = c.createStatement(); ResultSet r = s.executeQuery("SELECT count(*) FROM customers")) {
                r.next();
                System.out.println("count " + r.getInt(1));
            }
            c.setAutoCommit(false);
            try (Statement s = c.createStatement()) {
                s.setFetchSize(2);
                int n = 0;
                try (ResultSet r = s.executeQuery("SELECT id FROM orders")) {
                    while (r.next()) n++;
                }
                System.out.println("fetched " + n);
            }
            c.rollback();
        }
    }
}
