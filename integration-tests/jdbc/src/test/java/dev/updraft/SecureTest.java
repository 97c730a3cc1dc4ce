package dev.updraft;

import static dev.updraft.Suite.connect;
import static dev.updraft.Suite.env;
import static dev.updraft.Suite.limit;
import static dev.updraft.Suite.query;
import static dev.updraft.Suite.url;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.updraft.Suite.Feature;
import java.net.URLEncoder;
import java.nio.charset.StandardCharsets;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.SQLException;
import java.util.Properties;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.extension.ExtendWith;

/** Logins, TLS and the session. */
@ExtendWith(Suite.class)
class SecureTest {
  private static void works(String url, String user, String password) throws SQLException {
    Properties properties = new Properties();
    if (user != null) {
      properties.put("user", user);
      properties.put("password", password);
    }
    try (Connection connection = DriverManager.getConnection(url, properties)) {
      assertEquals("[[25]]", query(connection, "SELECT count(*) FROM nation").toString());
    }
  }

  private static String encoded(String text) {
    return URLEncoder.encode(text, StandardCharsets.UTF_8);
  }

  @Feature("password")
  @Test
  void password() throws SQLException {
    works(url("LOGIN_PORT", "useEncryption=false"), env("USER"), env("PASSWORD"));
  }

  @Feature("token")
  @Test
  void token() throws SQLException {
    works(url("LOGIN_PORT", "useEncryption=false&token=" + encoded(env("TOKEN"))), null, null);
  }

  @Feature("refused")
  @Test
  void refused() {
    String plain = url("LOGIN_PORT", "useEncryption=false");
    for (Throwable error :
        new Throwable[] {
          assertThrows(SQLException.class, () -> works(plain, env("USER"), "wrong")),
          assertThrows(SQLException.class, () -> works(plain, "nobody", "wrong")),
          assertThrows(SQLException.class, () -> works(plain + "&token=wrong", null, null)),
          assertThrows(SQLException.class, () -> works(plain, null, null)),
        }) {
      StringBuilder text = new StringBuilder();
      for (Throwable e = error; e != null; e = e.getCause()) {
        text.append(e);
      }
      assertTrue(text.toString().toLowerCase().contains("unauthenticated"), text.toString());
    }
  }

  @Feature("tls")
  @Test
  void tls() throws SQLException {
    String ca = "useEncryption=true&tlsRootCerts=" + encoded(env("CA"));
    works(url("TLS_PORT", ca), env("USER"), env("PASSWORD"));
    works(url("TLS_PORT", ca + "&token=" + encoded(env("TOKEN"))), null, null);
    works(url("TLS_PORT", "useEncryption=true&disableCertificateVerification=true"), env("USER"), env("PASSWORD"));
    assertThrows(SQLException.class, () -> works(url("TLS_PORT", "useEncryption=true"), env("USER"), env("PASSWORD")));
  }

  @Feature("mtls")
  @Test
  void clientCertificate() throws SQLException {
    String mutual =
        "useEncryption=true&tlsRootCerts=" + encoded(env("CA")) + "&clientCertificate=" + encoded(env("CERT")) + "&clientKey=" + encoded(env("KEY"));
    works(url("MTLS_PORT", mutual), null, null);
  }

  @Feature("session")
  @Test
  void catalogOfTheConnection() throws SQLException {
    String catalog;
    try (Connection connection = connect()) {
      catalog = query(connection, "SELECT table_catalog FROM information_schema.tables WHERE table_name = 't'").get(0).get(0).toString();
    }
    Connection connection = DriverManager.getConnection(url("PORT", "useEncryption=false&catalog=" + encoded(catalog)));
    assertEquals("[[1]]", query(connection, "SELECT x FROM nested.inner").toString());
    limit("session", "closing a connection that was opened with `catalog` fails: the driver closes the channel before the session", connection::close);
    assertThrows(SQLException.class, () -> DriverManager.getConnection(url("PORT", "useEncryption=false&catalog=nowhere")).close());
  }
}
