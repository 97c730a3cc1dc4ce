package clients

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"database/sql"
	"fmt"
	"net/url"
	"os"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow/flight/flightsql/driver"
)

const goSQL = "Go database/sql"

func open(t *testing.T, dsn string) *sql.DB {
	t.Helper()
	db, err := sql.Open("flightsql", dsn)
	must(t, err)
	t.Cleanup(func() { db.Close() })
	return db
}

func plain(t *testing.T) *sql.DB { return open(t, "flightsql://"+address("PORT")+"?timeout=60s") }

// texts are the rows of a query, each value as plain text.
func texts(t *testing.T, rows *sql.Rows) [][]string {
	t.Helper()
	defer rows.Close()
	columns, err := rows.Columns()
	must(t, err)
	all := [][]string{}
	for rows.Next() {
		cells, targets := make([]any, len(columns)), make([]any, len(columns))
		for i := range cells {
			targets[i] = &cells[i]
		}
		must(t, rows.Scan(targets...))
		row := make([]string, len(cells))
		for i, cell := range cells {
			switch value := cell.(type) {
			case nil:
				row[i] = `\N`
			case time.Time:
				row[i] = value.UTC().Format("2006-01-02")
			case []byte:
				row[i] = string(value)
			default:
				row[i] = fmt.Sprint(value)
			}
		}
		all = append(all, row)
	}
	must(t, rows.Err())
	return all
}

func TestSQLStatements(t *testing.T) {
	feature(t, goSQL, "connect")
	feature(t, goSQL, "statements")
	db := plain(t)
	must(t, db.Ping())
	for query, want := range map[string]string{
		"SELECT 1": "[[1]]",
		"SELECT a, b FROM t ORDER BY a NULLS LAST":      `[[1 x] [2 \N] [\N z]]`,
		"SELECT count(*) FROM lineitem WHERE false":     "[[0]]",
		"SELECT x FROM nested.inner":                    "[[1]]",
		"SELECT n_name FROM nation WHERE n_nationkey=3": "[[CANADA]]",
	} {
		rows, err := db.Query(query)
		must(t, err)
		equal(t, fmt.Sprint(texts(t, rows)), want)
	}
	for _, query := range []string{"EXPLAIN SELECT 1", "SHOW TABLES"} {
		rows, err := db.Query(query)
		must(t, err)
		if len(texts(t, rows)) == 0 {
			t.Fatal(query, "gives no rows")
		}
	}
}

func TestSQLPrepared(t *testing.T) {
	feature(t, goSQL, "prepared")
	stmt, err := plain(t).Prepare("SELECT b FROM t WHERE a = ?")
	must(t, err)
	defer stmt.Close()
	for range 3 {
		var b string
		must(t, stmt.QueryRow(int64(1)).Scan(&b))
		equal(t, b, "x")
	}
}

func TestSQLParameters(t *testing.T) {
	feature(t, goSQL, "parameters")
	db := plain(t)
	for _, c := range []struct {
		query string
		value any
		want  string
	}{
		{"SELECT id FROM types WHERE c_bool = ? ORDER BY id LIMIT 1", true, "[[1]]"},
		{"SELECT id FROM types WHERE c_i64 = $1", int64(0), "[[3]]"},
		{"SELECT id FROM types WHERE c_f64 = ?", 0.1, "[[3]]"},
		{"SELECT id FROM types WHERE c_utf8 = ?", "zażółć 🎈", "[[2]]"},
		{"SELECT CAST(? AS BIGINT) + 1", int64(41), "[[42]]"},
		{"SELECT count(*) FROM big WHERE id < ?", int64(10), "[[10]]"},
		{"SELECT o_orderkey FROM orders WHERE o_orderdate < CAST(CAST(? AS VARCHAR) AS DATE) LIMIT 1", "1992-01-01", "[]"},
	} {
		rows, err := db.Query(c.query, c.value)
		if err != nil {
			t.Fatalf("%s: %v", c.query, err)
		}
		equal(t, fmt.Sprint(texts(t, rows)), c.want)
	}
	_, err := db.Query("SELECT a FROM t WHERE a = ? AND b = ?", int64(1))
	says(t, err, "argument")
	for _, c := range []struct {
		condition string
		value     any
	}{
		{"c_i32 = ?", int64(0)}, {"c_date32 = ?", time.Now()}, {"c_tsus = ?", time.Now()}, {"c_d9 = ?", 0.0}, {"c_i64 = ?", nil},
	} {
		rows, err := db.Query("SELECT id FROM types WHERE "+c.condition, c.value)
		if err == nil {
			rows.Close()
		}
		limit(t, goSQL, "parameters", "INT, DATE, TIMESTAMP, DECIMAL and NULL cannot be bound: wrap the parameter, as in CAST(CAST(? AS VARCHAR) AS DATE)", err)
	}
}

func TestSQLTypes(t *testing.T) {
	feature(t, goSQL, "types")
	db := plain(t)
	rows, err := db.Query("SELECT c_bool, c_i8, c_i16, c_i32, c_i64, c_f64, c_d9, c_utf8, c_date32, c_tsus, c_tsutc, c_binary, c_time64us FROM types WHERE id IN (2, 4) ORDER BY id")
	must(t, err)
	all := texts(t, rows)
	equal(t, fmt.Sprint(all[0][:11]), "[false 127 32767 2147483647 9223372036854775807 -1e-300 -0.01 zażółć 🎈 2262-04-11 2038-01-19 1970-01-01]")
	for _, cell := range all[1] {
		equal(t, cell, `\N`)
	}
	var moment time.Time
	must(t, db.QueryRow("SELECT c_tsus FROM types WHERE id = 2").Scan(&moment))
	equal(t, moment.UTC(), time.Date(2038, 1, 19, 3, 14, 7, 123456000, time.UTC))
}

func TestSQLRareTypes(t *testing.T) {
	feature(t, goSQL, "rare-types")
	db := plain(t)
	rows, err := db.Query("SELECT c_f16, c_lutf8, c_lbinary, c_dict, c_duration, c_d256 FROM rare WHERE id = 2")
	must(t, err)
	equal(t, fmt.Sprint(texts(t, rows)[0][1]), "zażółć 🎈")
	for _, column := range []string{"c_u8", "c_u64", "c_fsb", "c_list", "c_struct", "c_map"} {
		var value any
		limit(t, goSQL, "rare-types", "unsigned, fixed-size binary, nested, NULL and month intervals cannot be read: cast them",
			db.QueryRow("SELECT "+column+" FROM rare WHERE id = 2").Scan(&value))
	}
}

func TestSQLEmptyWideMillion(t *testing.T) {
	db := plain(t)
	t.Run("empty", func(t *testing.T) {
		feature(t, goSQL, "empty")
		rows, err := db.Query("SELECT * FROM t WHERE a > 100")
		must(t, err)
		columns, err := rows.Columns()
		must(t, err)
		equal(t, fmt.Sprint(columns), "[a b]")
		equal(t, len(texts(t, rows)), 0)
	})
	t.Run("wide", func(t *testing.T) {
		feature(t, goSQL, "wide")
		rows, err := db.Query("SELECT * FROM wide")
		must(t, err)
		equal(t, len(texts(t, rows)[0]), 1000)
	})
	t.Run("million", func(t *testing.T) {
		feature(t, goSQL, "million")
		rows, err := db.Query("SELECT id FROM big")
		must(t, err)
		defer rows.Close()
		var count, sum, id int64
		for rows.Next() {
			must(t, rows.Scan(&id))
			count, sum = count+1, sum+id
		}
		must(t, rows.Err())
		equal(t, count, 1_000_000)
		equal(t, sum, 1_000_000*999_999/2)
	})
}

func TestSQLTpch(t *testing.T) {
	feature(t, goSQL, "tpch")
	db := plain(t)
	for name, query := range queries(t) {
		t.Run(name, func(t *testing.T) {
			rows, err := db.Query(query[0])
			must(t, err)
			sameRows(t, texts(t, rows), query[1])
		})
	}
}

// readAll reads a result to its end and returns what ended it.
func readAll(ctx context.Context, db *sql.DB, query string) error {
	rows, err := db.QueryContext(ctx, query)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
	}
	if err := rows.Err(); err != nil {
		return err
	}
	// The driver closes its reader when the context ends, and database/sql may meet the closed reader first and take
	// it for the plain end of the result. Then only the context tells; longRows has no end of its own.
	return ctx.Err()
}

func TestSQLCancel(t *testing.T) {
	db := plain(t)
	t.Run("cancel", func(t *testing.T) {
		feature(t, goSQL, "cancel")
		ctx, cancel := context.WithCancel(context.Background())
		time.AfterFunc(500*time.Millisecond, cancel)
		within(t, 10*time.Second, func() {
			err := readAll(ctx, db, longRows)
			says(t, err, "cancel")
		})
	})
	t.Run("timeout", func(t *testing.T) {
		feature(t, goSQL, "timeout")
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		within(t, 10*time.Second, func() {
			err := readAll(ctx, db, longRows)
			says(t, err, "deadline")
		})
	})
}

func TestSQLErrors(t *testing.T) {
	feature(t, goSQL, "errors")
	db := plain(t)
	for query, want := range map[string]string{"SELECT * FROM": "InvalidArgument", "SELECT * FROM nowhere": "nowhere", "SELECT nothing FROM t": "nothing"} {
		_, err := db.Query(query)
		says(t, err, want)
	}
	var one int64
	must(t, db.QueryRow("SELECT 1").Scan(&one))
}

func TestSQLRefusals(t *testing.T) {
	feature(t, goSQL, "refusals")
	db := plain(t)
	_, err := db.Begin()
	says(t, err, "transaction")
	_, err = db.Exec("DELETE FROM t")
	says(t, err)
}

func TestSQLLogin(t *testing.T) {
	user, password := url.QueryEscape(env("USER")), url.PathEscape(env("PASSWORD"))
	one := func(db *sql.DB) error {
		var one int64
		return db.QueryRow("SELECT 1").Scan(&one)
	}
	ca, err := os.ReadFile(env("CA"))
	must(t, err)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	must(t, driver.RegisterTLSConfig("test", &tls.Config{RootCAs: pool, ServerName: "localhost"}))
	identity, err := tls.LoadX509KeyPair(env("CERT"), env("KEY"))
	must(t, err)
	must(t, driver.RegisterTLSConfig("mutual", &tls.Config{RootCAs: pool, ServerName: "localhost", Certificates: []tls.Certificate{identity}}))
	for _, c := range []struct{ feature, dsn string }{
		{"password", "flightsql://" + user + ":" + password + "@" + address("LOGIN_PORT")},
		{"token", "flightsql://" + address("LOGIN_PORT") + "?token=" + env("TOKEN")},
		{"tls", "flightsql://" + user + ":" + password + "@" + address("TLS_PORT") + "?tls=test"},
		{"tls", "flightsql://" + address("TLS_PORT") + "?tls=skip-verify&token=" + env("TOKEN")},
		{"mtls", "flightsql://" + address("MTLS_PORT") + "?tls=mutual"},
	} {
		t.Run(c.feature, func(t *testing.T) {
			feature(t, goSQL, c.feature)
			must(t, one(open(t, c.dsn+"")))
		})
	}
	t.Run("refused", func(t *testing.T) {
		feature(t, goSQL, "refused")
		for _, dsn := range []string{
			"flightsql://" + user + ":wrong@" + address("LOGIN_PORT"),
			"flightsql://" + address("LOGIN_PORT") + "?token=wrong",
			"flightsql://" + address("LOGIN_PORT"),
		} {
			says(t, one(open(t, dsn)), "Unauthenticated")
		}
	})
}
