package dev.updraft;

import static dev.updraft.Suite.connect;
import static dev.updraft.Suite.rows;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.updraft.Suite.Feature;
import java.lang.reflect.InvocationTargetException;
import java.lang.reflect.Method;
import java.sql.Connection;
import java.sql.DatabaseMetaData;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.SQLFeatureNotSupportedException;
import java.sql.Types;
import java.util.ArrayList;
import java.util.List;
import java.util.Set;
import java.util.TreeSet;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.extension.ExtendWith;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** DatabaseMetaData: what BI tools draw their trees from. */
@ExtendWith(Suite.class)
class MetadataTest {
  private static Connection connection;
  private static DatabaseMetaData metadata;

  @BeforeAll
  static void open() throws SQLException {
    connection = connect();
    metadata = connection.getMetaData();
  }

  @AfterAll
  static void close() throws SQLException {
    connection.close();
  }

  private static Set<String> column(ResultSet result, String name) throws SQLException {
    Set<String> values = new TreeSet<>();
    try (result) {
      while (result.next()) {
        values.add(result.getString(name));
      }
    }
    return values;
  }

  private static Set<String> firstColumn(ResultSet result) throws SQLException {
    return column(result, result.getMetaData().getColumnLabel(1));
  }

  @Feature("metadata")
  @Test
  void catalogsSchemasAndTableTypes() throws SQLException {
    assertFalse(column(metadata.getCatalogs(), "TABLE_CAT").isEmpty());
    assertTrue(firstColumn(metadata.getSchemas()).containsAll(Set.of("nested", "public")));
    assertEquals(Set.of("nested"), firstColumn(metadata.getSchemas(null, "nest%")));
    assertTrue(column(metadata.getTableTypes(), "TABLE_TYPE").contains("VIEW"));
  }

  @Feature("metadata")
  @ParameterizedTest
  @CsvSource({"t,t", "ty%s,types", "nothing,", "_,t", "linei%,lineitem"})
  void tables(String pattern, String want) throws SQLException {
    Set<String> expected = want == null ? Set.of() : Set.of(want);
    assertEquals(expected, column(metadata.getTables(null, null, pattern, null), "TABLE_NAME"));
  }

  @Feature("metadata")
  @Test
  void columns() throws SQLException {
    try (ResultSet result = metadata.getColumns(null, null, "types", "c_d9")) {
      assertTrue(result.next());
      assertEquals("c_d9", result.getString("COLUMN_NAME"));
      assertEquals(Types.DECIMAL, result.getInt("DATA_TYPE"));
      assertEquals(9, result.getInt("COLUMN_SIZE"));
      assertEquals(2, result.getInt("DECIMAL_DIGITS"));
      assertEquals("DECIMAL", result.getString("TYPE_NAME"));
      assertFalse(result.next());
    }
    assertEquals(8, column(metadata.getColumns(null, null, "customer", null), "COLUMN_NAME").size());
    assertEquals(1001, column(metadata.getColumns(null, null, "wide", "%"), "COLUMN_NAME").size() + 1);
  }

  @Feature("keys-and-types")
  @Test
  void keysAreEmpty() throws SQLException {
    assertTrue(rows(metadata.getPrimaryKeys(null, null, "t")).isEmpty());
    assertTrue(rows(metadata.getImportedKeys(null, null, "t")).isEmpty());
    assertTrue(rows(metadata.getExportedKeys(null, null, "t")).isEmpty());
    assertTrue(rows(metadata.getCrossReference(null, null, "t", null, null, "types")).isEmpty());
  }

  /** Every getter without arguments: BI tools call them all, and one exception ends the connection for them. */
  @Feature("info")
  @Test
  void everyGetter() {
    List<String> failed = new ArrayList<>();
    int called = 0;
    for (Method method : DatabaseMetaData.class.getMethods()) {
      if (method.getParameterCount() != 0) {
        continue;
      }
      called++;
      try {
        if (method.invoke(metadata) instanceof ResultSet result) {
          result.close();
        }
      } catch (InvocationTargetException e) {
        // The driver says by itself that it has no such thing; that is no fault of the server.
        if (!(e.getCause() instanceof SQLFeatureNotSupportedException)) {
          failed.add(method.getName() + ": " + e.getCause());
        }
      } catch (IllegalAccessException | SQLException e) {
        failed.add(method.getName() + ": " + e);
      }
    }
    assertTrue(called > 100);
    assertEquals(List.of(), failed);
  }

  @Feature("info")
  @Test
  void infoIsTruthful() throws SQLException {
    assertEquals("updraft", metadata.getDatabaseProductName().toLowerCase());
    assertFalse(metadata.getDatabaseProductVersion().isEmpty());
    assertEquals("\"", metadata.getIdentifierQuoteString());
    assertTrue(metadata.isReadOnly());
    assertFalse(metadata.supportsTransactions());
    assertTrue(metadata.supportsFullOuterJoins());
    assertTrue(metadata.supportsGroupBy());
    assertFalse(metadata.getSQLKeywords().isEmpty());
    assertFalse(metadata.getNumericFunctions().isEmpty());
    assertFalse(metadata.getStringFunctions().isEmpty());
    assertEquals(Connection.TRANSACTION_NONE, metadata.getDefaultTransactionIsolation());
    metadata.supportsConvert();
    metadata.supportsConvert(Types.INTEGER, Types.VARCHAR);
    metadata.supportsResultSetType(ResultSet.TYPE_FORWARD_ONLY);
    metadata.supportsTransactionIsolationLevel(Connection.TRANSACTION_SERIALIZABLE);
  }
}
