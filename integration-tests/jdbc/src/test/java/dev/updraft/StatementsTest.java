package dev.updraft;

import static dev.updraft.Suite.connect;
import static dev.updraft.Suite.env;
import static dev.updraft.Suite.limit;
import static dev.updraft.Suite.query;
import static dev.updraft.Suite.rows;
import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTimeout;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.updraft.Suite.Feature;
import java.math.BigDecimal;
import java.nio.file.Files;
import java.nio.file.Path;
import java.sql.Connection;
import java.sql.Date;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.ResultSetMetaData;
import java.sql.SQLException;
import java.sql.Statement;
import java.sql.Time;
import java.sql.Timestamp;
import java.sql.Types;
import java.time.Duration;
import java.util.Arrays;
import java.util.List;
import java.util.concurrent.Executors;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.extension.ExtendWith;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.MethodSource;
import org.junit.jupiter.params.provider.ValueSource;

@ExtendWith(Suite.class)
class StatementsTest {
  private static Connection connection;

  @BeforeAll
  static void open() throws SQLException {
    connection = connect();
  }

  @AfterAll
  static void close() throws SQLException {
    try {
      connection.close();
    } catch (SQLException e) {
      // The driver never frees the batches of a result that is closed or cancelled before its end, and complains when it is
      // closed itself.
      assertTrue(e.getMessage().matches("(?s).*(Memory was leaked|Failed to clean up).*"), e.getMessage());
    }
  }

  @Feature("connect")
  @Test
  void connects() throws SQLException {
    assertTrue(connection.isValid(5));
    assertEquals("[[1]]", query(connection, "SELECT 1").toString());
  }

  @Feature("statements")
  @ParameterizedTest
  @CsvSource(
      delimiter = '|',
      value = {
        "SELECT 1 AS x, 'a' AS y|[[1, a]]",
        "SELECT a, b FROM t ORDER BY a NULLS LAST|[[1, x], [2, null], [null, z]]",
        "SELECT x FROM nested.inner|[[1]]",
        "SELECT n_name FROM nation ORDER BY n_name LIMIT 2|[[ALGERIA], [ARGENTINA]]",
        "WITH q AS (SELECT count(*) AS n FROM big) SELECT n FROM q|[[1000000]]",
      })
  void statements(String sql, String want) throws SQLException {
    assertEquals(want, query(connection, sql).toString());
  }

  @Feature("statements")
  @ParameterizedTest
  @ValueSource(strings = {"EXPLAIN SELECT 1", "SHOW TABLES", "DESCRIBE t", "SHOW ALL"})
  void statementsAboutStatements(String sql) throws SQLException {
    assertFalse(query(connection, sql).isEmpty());
  }

  @Feature("statements")
  @Test
  void columnsAreDescribed() throws SQLException {
    try (Statement statement = connection.createStatement(); ResultSet result = statement.executeQuery("SELECT * FROM types")) {
      ResultSetMetaData columns = result.getMetaData();
      assertEquals("id", columns.getColumnName(1));
      assertEquals("id", columns.getColumnLabel(1));
      assertEquals(Types.BIGINT, columns.getColumnType(1));
      for (int i = 1; i <= columns.getColumnCount(); i++) {
        if (columns.getColumnName(i).equals("c_d9")) {
          assertEquals(Types.DECIMAL, columns.getColumnType(i));
          assertEquals(9, columns.getPrecision(i));
          assertEquals(2, columns.getScale(i));
        }
        columns.getColumnTypeName(i);
        columns.getColumnClassName(i);
        columns.getColumnDisplaySize(i);
        columns.isNullable(i);
        columns.isSearchable(i);
        columns.isReadOnly(i);
        columns.isAutoIncrement(i);
        columns.isCaseSensitive(i);
        columns.isSigned(i);
        columns.getTableName(i);
        columns.getSchemaName(i);
        columns.getCatalogName(i);
      }
    }
  }

  @Feature("statements")
  @Test
  void rowsCanBeLimited() throws SQLException {
    try (Statement statement = connection.createStatement()) {
      statement.setMaxRows(7);
      statement.setFetchSize(100);
      assertEquals(7, rows(statement.executeQuery("SELECT id FROM big")).size());
      assertTrue(statement.execute("SELECT 1"));
      assertEquals("[[1]]", rows(statement.getResultSet()).toString());
    }
  }

  @Feature("prepared")
  @Test
  void preparedStatementRunsAgain() throws SQLException {
    try (PreparedStatement statement = connection.prepareStatement("SELECT b FROM t WHERE a = ?")) {
      assertEquals(1, statement.getParameterMetaData().getParameterCount());
      assertEquals(Types.BIGINT, statement.getParameterMetaData().getParameterType(1));
      assertEquals("b", statement.getMetaData().getColumnName(1));
      for (int i = 0; i < 3; i++) {
        statement.setLong(1, 1);
        assertEquals("[[x]]", rows(statement.executeQuery()).toString());
        statement.setLong(1, 2);
        assertEquals("[[null]]", rows(statement.executeQuery()).toString());
      }
    }
  }

  interface Setter {
    void set(PreparedStatement statement) throws SQLException;
  }

  /** Each finds the row with this id by a parameter of this type. */
  static List<Arguments> parameters() {
    return List.of(
        Arguments.of("c_bool = ? AND id = 2", 2, (Setter) s -> s.setBoolean(1, false)),
        Arguments.of("c_i8 = ?", 1, (Setter) s -> s.setByte(1, (byte) -128)),
        Arguments.of("c_i16 = ?", 2, (Setter) s -> s.setShort(1, (short) 32767)),
        Arguments.of("c_i32 = ?", 1, (Setter) s -> s.setInt(1, Integer.MIN_VALUE)),
        Arguments.of("c_i64 = ?", 1, (Setter) s -> s.setLong(1, Long.MIN_VALUE)),
        Arguments.of("c_f32 = ?", 1, (Setter) s -> s.setFloat(1, 1.5f)),
        Arguments.of("c_f64 = ?", 3, (Setter) s -> s.setDouble(1, 0.1)),
        Arguments.of("c_d9 = ?", 1, (Setter) s -> s.setBigDecimal(1, new BigDecimal("1234567.89"))),
        Arguments.of("c_d38 = ?", 2, (Setter) s -> s.setBigDecimal(1, new BigDecimal("-1.0000000001"))),
        Arguments.of("c_utf8 = ?", 2, (Setter) s -> s.setString(1, "zażółć 🎈")),
        Arguments.of("c_utf8 LIKE ?", 2, (Setter) s -> s.setString(1, "za%")),
        Arguments.of("c_binary = ?", 2, (Setter) s -> s.setBytes(1, new byte[] {0, (byte) 0xff})),
        Arguments.of("c_date32 = ?", 1, (Setter) s -> s.setDate(1, Date.valueOf("1970-01-01"))),
        Arguments.of("c_time32ms = ?", 3, (Setter) s -> s.setTime(1, Time.valueOf("12:30:00"))),
        Arguments.of("c_tsms = ?", 3, (Setter) s -> s.setTimestamp(1, Timestamp.valueOf("1969-12-31 23:59:59"))),
        Arguments.of("c_time64us = ?", 3, (Setter) s -> s.setTime(1, Time.valueOf("12:30:00"))),
        Arguments.of("c_tsus = ?", 3, (Setter) s -> s.setTimestamp(1, Timestamp.valueOf("1969-12-31 23:59:59"))),
        Arguments.of("c_tsus = CAST(CAST(? AS VARCHAR) AS TIMESTAMP)", 3, (Setter) s -> s.setString(1, "1969-12-31 23:59:59")),
        Arguments.of("c_tsutc = ?", 2, (Setter) s -> s.setTimestamp(1, Timestamp.valueOf("1970-01-01 00:00:00"))),
        Arguments.of("c_i32 = ?", 2, (Setter) s -> s.setObject(1, Integer.MAX_VALUE)),
        Arguments.of("id = CAST(? AS BIGINT)", 2, (Setter) s -> s.setLong(1, 2)),
        Arguments.of("id = $1", 2, (Setter) s -> s.setLong(1, 2)),
        Arguments.of("id BETWEEN ? AND 2 ORDER BY id LIMIT 1", 1, (Setter) s -> s.setLong(1, 1)));
  }

  @Feature("parameters")
  @ParameterizedTest
  @MethodSource("parameters")
  void parameterOfEveryType(String condition, long id, Setter setter) throws SQLException {
    try (PreparedStatement statement = connection.prepareStatement("SELECT id FROM types WHERE " + condition)) {
      setter.set(statement);
      assertEquals(List.of(List.of(id)), rows(statement.executeQuery()));
    }
  }

  @Feature("parameters")
  @ParameterizedTest
  @ValueSource(strings = {"c_bool", "c_i8", "c_i16", "c_i32", "c_i64", "c_f32", "c_f64", "c_d9", "c_d38", "c_utf8", "c_binary", "c_date32", "c_time64us", "c_tsus", "c_tsutc"})
  void nullParameterOfEveryType(String column) throws SQLException {
    String sql = "SELECT count(*) FROM types WHERE " + column + " IS NOT DISTINCT FROM ?";
    try (PreparedStatement statement = connection.prepareStatement(sql)) {
      statement.setNull(1, Types.NULL);
      assertEquals("[[1]]", rows(statement.executeQuery()).toString());
    }
  }

  @Feature("parameters")
  @Test
  void parameterWithoutATypeIsText() throws SQLException {
    try (PreparedStatement statement = connection.prepareStatement("SELECT ? AS v")) {
      statement.setString(1, "text");
      assertEquals("[[text]]", rows(statement.executeQuery()).toString());
      statement.setNull(1, Types.NULL);
      assertEquals("[[null]]", rows(statement.executeQuery()).toString());
    }
  }

  @Feature("parameters")
  @Test
  void wrongNumberOfParameters() throws SQLException {
    try (PreparedStatement statement = connection.prepareStatement("SELECT a FROM t WHERE a = ? AND b = ?")) {
      statement.setLong(1, 1);
      assertThrows(SQLException.class, statement::executeQuery);
    }
  }

  @Feature("types")
  @Test
  void everyType() throws SQLException {
    try (Statement statement = connection.createStatement(); ResultSet row = statement.executeQuery("SELECT * FROM types ORDER BY id")) {
      row.next();
      row.next();
      assertFalse(row.getBoolean("c_bool"));
      assertEquals(127, row.getByte("c_i8"));
      assertEquals(32767, row.getShort("c_i16"));
      assertEquals(Integer.MAX_VALUE, row.getInt("c_i32"));
      assertEquals(Long.MAX_VALUE, row.getLong("c_i64"));
      assertEquals(-0.25f, row.getFloat("c_f32"));
      assertEquals(-1e-300, row.getDouble("c_f64"));
      assertEquals(new BigDecimal("-0.01"), row.getBigDecimal("c_d9"));
      assertEquals(new BigDecimal("-1.0000000001"), row.getBigDecimal("c_d38"));
      assertEquals("zażółć 🎈", row.getString("c_utf8"));
      assertArrayEquals(new byte[] {0, (byte) 0xff}, row.getBytes("c_binary"));
      assertEquals("2262-04-11", row.getDate("c_date32").toString());
      assertTrue(row.getTime("c_time64us").toString().startsWith("23:59:59"));
      assertEquals(Timestamp.valueOf("2038-01-19 03:14:07.123456"), row.getTimestamp("c_tsus"));
      assertEquals(Timestamp.valueOf("2038-01-19 03:14:07.123"), row.getTimestamp("c_tsms"));
      assertEquals(Timestamp.valueOf("1970-01-01 00:00:00"), row.getTimestamp("c_tsutc"));
      row.next();
      row.next();
      for (int i = 2; i <= row.getMetaData().getColumnCount(); i++) {
        boolean zoned = row.getMetaData().getColumnType(i) == Types.TIMESTAMP_WITH_TIMEZONE; // See timestampWithTimeZone.
        assertNull(zoned ? row.getTimestamp(i) : row.getObject(i), row.getMetaData().getColumnName(i));
        assertTrue(row.wasNull());
        assertNull(row.getString(i));
      }
    }
  }

  @Feature("rare-types")
  @ParameterizedTest
  @CsvSource({
    "rare,c_u8", "rare,c_u16", "rare,c_f16", "rare,c_d256", "rare,c_lutf8", "rare,c_lbinary", "rare,c_fsb", "rare,c_duration",
    "rare,c_list", "rare,c_llist", "rare,c_fslist", "rare,c_struct", "rare,c_liststruct", "rare,c_map", "rare,c_dict", "ipc_types,c_interval",
    "ipc_types,c_view", "ipc_types,c_bview", "ipc_types,c_null", "ipc_types,c_date64", "ipc_types,c_time32s", "ipc_types,c_time64ns", "ipc_types,c_tss",
  })
  void rareTypes(String table, String column) throws SQLException {
    List<List<Object>> rows = query(connection, "SELECT " + column + " FROM " + table + " ORDER BY id");
    assertEquals(4, rows.size());
    assertNull(rows.get(3).get(0));
    if (column.equals("c_dict")) {
      assertEquals("[[x], [y], [x], [null]]", rows.toString());
    }
  }

  @Feature("rare-types")
  @ParameterizedTest
  @CsvSource({"c_u32,4294967295", "c_u64,18446744073709551615"})
  void unsignedAboveTheSignedMaximum(String column, String value) {
    limit(
        "rare-types",
        "UInt32 and UInt64 above the signed maximum are read as negative numbers: cast them",
        () -> assertEquals(value, query(connection, "SELECT " + column + " FROM rare WHERE id = 2").get(0).get(0).toString()));
  }

  @Feature("rare-types")
  @Test
  void timestampWithTimeZone() throws SQLException {
    String sql = "SELECT c_tsberlin FROM rare WHERE id = 1";
    try (Statement statement = connection.createStatement(); ResultSet row = statement.executeQuery(sql)) {
      row.next();
      limit("rare-types", "getTimestamp is wrong for time zones other than UTC", () -> assertEquals(0, row.getTimestamp(1).getTime()));
    }
    if (Suite.CLIENT.startsWith("JDBC 18.")) {
      limit("rare-types", "getObject of a timestamp with time zone fails: use getTimestamp", () -> query(connection, sql));
    }
  }

  @Feature("empty")
  @ParameterizedTest
  @ValueSource(strings = {"SELECT * FROM empty", "SELECT * FROM t WHERE a > 100", "SELECT * FROM t LIMIT 0"})
  void emptyResults(String sql) throws SQLException {
    try (Statement statement = connection.createStatement(); ResultSet result = statement.executeQuery(sql)) {
      assertFalse(result.next());
      assertTrue(result.getMetaData().getColumnCount() >= 2);
    }
  }

  @Feature("wide")
  @Test
  void wide() throws SQLException {
    List<List<Object>> rows = query(connection, "SELECT * FROM wide");
    assertEquals(1000, rows.get(0).size());
    assertEquals(999, rows.get(0).get(999));
  }

  @Feature("million")
  @Test
  void millionRows() throws SQLException {
    try (Statement statement = connection.createStatement(); ResultSet result = statement.executeQuery("SELECT id, name FROM big")) {
      long rows = 0;
      long sum = 0;
      while (result.next()) {
        rows++;
        sum += result.getLong(1);
      }
      assertEquals(1_000_000L, rows);
      assertEquals(1_000_000L * 999_999 / 2, sum);
    }
  }

  @Feature("tpch")
  @ParameterizedTest
  @MethodSource("queries")
  void tpch(String name) throws Exception {
    String sql = Files.readString(Path.of(env("TPCH"), name + ".sql"));
    Suite.sameRows(query(connection, sql), Files.readString(Path.of(env("ANSWERS"), name + ".tsv")));
  }

  static List<String> queries() {
    String[] names = new String[22];
    Arrays.setAll(names, i -> String.format("q%02d", i + 1));
    return List.of(names);
  }

  private static void readAll(Statement statement, String sql) throws SQLException {
    try (ResultSet result = statement.executeQuery(sql)) {
      while (result.next()) {
        result.getObject(1);
      }
    }
  }

  @Feature("cancel")
  @ParameterizedTest
  @ValueSource(strings = {Suite.LONG, Suite.LONG_ROWS})
  void cancel(String sql) throws Exception {
    var timer = Executors.newSingleThreadScheduledExecutor();
    try (Statement statement = connection.createStatement()) {
      timer.schedule(
          () -> {
            statement.cancel();
            return null;
          },
          700,
          TimeUnit.MILLISECONDS);
      // Mostly an SQLException; the driver may trip over the batch it was just reading.
      assertTimeout(Duration.ofSeconds(20), () -> assertThrows(Exception.class, () -> readAll(statement, sql)));
    } finally {
      timer.shutdownNow();
    }
    assertEquals("[[1]]", query(connection, "SELECT 1").toString());
  }

  @Feature("timeout")
  @Test
  void timeoutOfTheClient() throws SQLException {
    try (Statement statement = connection.createStatement()) {
      statement.setQueryTimeout(1);
      assertTimeout(Duration.ofSeconds(20), () -> assertThrows(SQLException.class, () -> readAll(statement, Suite.LONG)));
    }
  }

  @Feature("timeout")
  @Feature("session")
  @Test
  void timeoutOfTheServer() throws SQLException {
    try (Connection own = connect(); Statement statement = own.createStatement()) {
      statement.execute("SET statement_timeout = '1s'");
      SQLException error = assertThrows(SQLException.class, () -> readAll(statement, Suite.LONG));
      assertTrue(error.getMessage().toLowerCase().contains("time"), error.getMessage());
    }
  }

  @Feature("errors")
  @ParameterizedTest
  @CsvSource({"SELECT * FROM,expected", "SELECT * FROM nowhere,nowhere", "SELECT nothing FROM t,nothing", "SELECT 1/0,divide", "SELECT CAST(b AS INT) FROM t,x"})
  void errors(String sql, String says) throws SQLException {
    SQLException error = assertThrows(SQLException.class, () -> query(connection, sql));
    String text = (error + " " + error.getCause()).toLowerCase();
    assertTrue(text.contains(says), text);
    assertEquals("[[1]]", query(connection, "SELECT 1").toString());
  }

  @Feature("refusals")
  @ParameterizedTest
  @ValueSource(strings = {"INSERT INTO t VALUES (1, 'a')", "CREATE TABLE x (a INT)", "DROP TABLE t", "COPY t TO '/tmp/x.parquet'"})
  void refusals(String sql) throws SQLException {
    try (Statement statement = connection.createStatement()) {
      SQLException error = assertThrows(SQLException.class, () -> statement.executeUpdate(sql));
      assertTrue(error.getMessage().length() > 20, error.getMessage());
    }
    assertFalse(connection.getMetaData().supportsTransactions());
  }
}
