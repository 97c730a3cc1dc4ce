package dev.updraft;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.lang.annotation.Repeatable;
import java.lang.annotation.Retention;
import java.lang.annotation.RetentionPolicy;
import java.nio.file.Files;
import java.nio.file.Path;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Statement;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.TreeSet;
import java.util.stream.Collectors;
import org.junit.jupiter.api.extension.AfterTestExecutionCallback;
import org.junit.jupiter.api.extension.BeforeAllCallback;
import org.junit.jupiter.api.extension.ExtensionContext;
import org.junit.jupiter.api.function.Executable;

/** What all tests share: where the servers are, and the record of which feature works (a column of docs/clients.md). */
final class Suite implements AfterTestExecutionCallback, BeforeAllCallback {

  /** The square of the matrix that a test counts for; the names are those of integration-tests/python/features.py. */
  @Retention(RetentionPolicy.RUNTIME)
  @Repeatable(Features.class)
  @interface Feature {
    String value();
  }

  @Retention(RetentionPolicy.RUNTIME)
  @interface Features {
    Feature[] value();
  }

  private record Outcome(String status, String note) {}

  static final String CLIENT = "JDBC " + System.getProperty("driver.version");
  private static final Map<String, List<Outcome>> OUTCOMES = new TreeMap<>();

  // Runs for minutes unless it is stopped.
  static final String LONG =
      "SELECT sum((a.id * b.id) % 7) AS s FROM big AS a CROSS JOIN big AS b";
  static final String LONG_ROWS =
      "SELECT a.id * b.id AS v FROM big AS a CROSS JOIN big AS b";

  static String env(String name) {
    String value = System.getenv("UPDRAFT_" + name);
    if (value == null) {
      throw new IllegalStateException("UPDRAFT_" + name + " is not set; run this suite with integration-tests/test.sh clients-jdbc");
    }
    return value;
  }

  static String url(String port, String more) {
    return "jdbc:arrow-flight-sql://" + env("HOST") + ":" + env(port) + "/?" + more;
  }

  static Connection connect() throws SQLException {
    return DriverManager.getConnection(url("PORT", "useEncryption=false"));
  }

  /** All rows; the result is closed. */
  static List<List<Object>> rows(ResultSet result) throws SQLException {
    try (result) {
      List<List<Object>> rows = new ArrayList<>();
      int columns = result.getMetaData().getColumnCount();
      while (result.next()) {
        List<Object> row = new ArrayList<>();
        for (int i = 1; i <= columns; i++) {
          row.add(result.getObject(i));
        }
        rows.add(row);
      }
      return rows;
    }
  }

  static List<List<Object>> query(Connection connection, String sql) throws SQLException {
    try (Statement statement = connection.createStatement(); ResultSet result = statement.executeQuery(sql)) {
      return rows(result);
    }
  }

  /** States what the driver cannot do; fails on the day it can. */
  static void limit(String feature, String reason, Executable attempt) {
    assertThrows(Throwable.class, attempt, "works, though it is listed as a limit of the driver: " + reason);
    record(feature, "limit", reason);
  }

  /** Compares with DuckDB's answer (tab-separated text), in any order, numbers within what a double can tell. */
  static void sameRows(List<List<Object>> got, String answer) {
    List<List<String>> want = answer.lines().map(line -> List.of(line.split("\t", -1))).collect(Collectors.toList());
    List<List<String>> have =
        got.stream()
            .map(row -> row.stream().map(cell -> cell == null ? "\\N" : cell.toString()).collect(Collectors.toList()))
            .collect(Collectors.toList());
    assertEquals(want.size(), have.size(), "number of rows");
    Comparator<List<String>> order = Comparator.comparing(row -> row.stream().map(Suite::rounded).collect(Collectors.joining("\t")));
    have.sort(order);
    want.sort(order);
    for (int i = 0; i < want.size(); i++) {
      for (int j = 0; j < want.get(i).size(); j++) {
        String a = have.get(i).get(j);
        String b = want.get(i).get(j);
        if (!a.equals(b)) {
          Double x = number(a);
          Double y = number(b);
          assertTrue(
              x != null && y != null && Math.abs(x - y) <= Math.max(1e-4, 1e-6 * Math.abs(y)), have.get(i) + ", DuckDB has " + want.get(i));
        }
      }
    }
  }

  private static Double number(String text) {
    try {
      return Double.valueOf(text);
    } catch (NumberFormatException e) {
      return null;
    }
  }

  private static String rounded(String text) {
    Double number = number(text);
    return number == null ? text : String.format("%.2f", number);
  }

  private static synchronized void record(String feature, String status, String note) {
    OUTCOMES.computeIfAbsent(feature, f -> new ArrayList<>()).add(new Outcome(status, note));
  }

  @Override
  public void beforeAll(ExtensionContext context) {
    env("PORT");
    // Written once, when the last test class is done.
    context.getRoot().getStore(ExtensionContext.Namespace.GLOBAL).getOrComputeIfAbsent("results", key -> (ExtensionContext.Store.CloseableResource) Suite::write);
  }

  @Override
  public void afterTestExecution(ExtensionContext context) {
    boolean failed = context.getExecutionException().isPresent();
    for (Feature feature : context.getRequiredTestMethod().getAnnotationsByType(Feature.class)) {
      record(feature.value(), failed ? "fail" : "pass", failed ? context.getDisplayName() : "");
    }
  }

  /** The worst outcome of a square counts; a limit beside what works is "partly". */
  private static void write() throws IOException {
    List<String> order = List.of("pass", "limit", "fail");
    List<String> rows = new ArrayList<>();
    OUTCOMES.forEach(
        (feature, outcomes) -> {
          String worst = outcomes.stream().map(Outcome::status).max(Comparator.comparing(order::indexOf)).orElse("fail");
          if (worst.equals("limit") && outcomes.stream().anyMatch(o -> o.status().equals("pass"))) {
            worst = "partly";
          }
          TreeSet<String> notes = outcomes.stream().map(Outcome::note).filter(n -> !n.isEmpty()).collect(Collectors.toCollection(TreeSet::new));
          rows.add(
              String.format(
                  "{\"client\": %s, \"feature\": %s, \"status\": %s, \"note\": %s}",
                  quoted(CLIENT), quoted(feature), quoted(worst), quoted(String.join("; ", notes))));
        });
    Files.writeString(Path.of(env("RESULTS")), "[" + String.join(",\n", rows) + "]\n");
  }

  private static String quoted(String text) {
    return '"' + text.replace("\\", "\\\\").replace("\"", "\\\"").replace("\n", " ") + '"';
  }
}
