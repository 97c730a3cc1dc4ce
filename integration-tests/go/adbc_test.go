package clients

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/apache/arrow-adbc/go/adbc"
	"github.com/apache/arrow-adbc/go/adbc/driver/flightsql"
	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"
)

const goADBC = "ADBC (Go)"

var ctx = context.Background()

func connect(t *testing.T, uri string, options map[string]string) (adbc.Connection, error) {
	t.Helper()
	all := map[string]string{adbc.OptionKeyURI: uri}
	for key, value := range options {
		all[key] = value
	}
	db, err := flightsql.NewDriver(memory.DefaultAllocator).NewDatabase(all)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { db.Close() })
	conn, err := db.Open(ctx)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { conn.Close() })
	return conn, nil
}

func connected(t *testing.T) adbc.Connection {
	t.Helper()
	conn, err := connect(t, "grpc://"+address("PORT"), nil)
	must(t, err)
	return conn
}

// run executes one statement; the reader is the caller's to release.
func run(conn adbc.Connection, query string, bind arrow.RecordBatch) (array.RecordReader, func(), error) {
	stmt, err := conn.NewStatement()
	if err != nil {
		return nil, nil, err
	}
	end := func() { stmt.Close() }
	if err = stmt.SetSqlQuery(query); err == nil && bind != nil {
		if err = stmt.Prepare(ctx); err == nil {
			err = stmt.Bind(ctx, bind)
		}
	}
	if err != nil {
		end()
		return nil, nil, err
	}
	reader, _, err := stmt.ExecuteQuery(ctx)
	if err != nil {
		end()
		return nil, nil, err
	}
	return reader, func() { reader.Release(); stmt.Close() }, nil
}

// cellsOf are the rows of a query, each value as plain text.
func cellsOf(conn adbc.Connection, query string, bind arrow.RecordBatch) ([][]string, *arrow.Schema, error) {
	reader, end, err := run(conn, query, bind)
	if err != nil {
		return nil, nil, err
	}
	defer end()
	rows := [][]string{}
	for reader.Next() {
		batch := reader.RecordBatch()
		for i := range int(batch.NumRows()) {
			row := make([]string, batch.NumCols())
			for j, column := range batch.Columns() {
				row[j] = column.ValueStr(i)
				if column.IsNull(i) {
					row[j] = `\N`
				}
			}
			rows = append(rows, row)
		}
	}
	return rows, reader.Schema(), reader.Err()
}

func one(kind arrow.DataType, text string) arrow.RecordBatch {
	builder := array.NewRecordBuilder(memory.DefaultAllocator, arrow.NewSchema([]arrow.Field{{Name: "1", Type: kind, Nullable: true}}, nil))
	defer builder.Release()
	if text == `\N` {
		builder.Field(0).AppendNull()
	} else if err := builder.Field(0).AppendValueFromString(text); err != nil {
		panic(err)
	}
	return builder.NewRecordBatch()
}

func TestADBCStatements(t *testing.T) {
	feature(t, goADBC, "connect")
	feature(t, goADBC, "statements")
	conn := connected(t)
	for query, want := range map[string]string{
		"SELECT 1": "[[1]]",
		"SELECT a, b FROM t ORDER BY a NULLS LAST": `[[1 x] [2 \N] [\N z]]`,
		"SELECT x FROM nested.inner":               "[[1]]",
	} {
		rows, _, err := cellsOf(conn, query, nil)
		must(t, err)
		equal(t, fmt.Sprint(rows), want)
	}
}

func TestADBCPreparedAndParameters(t *testing.T) {
	conn := connected(t)
	t.Run("prepared", func(t *testing.T) {
		feature(t, goADBC, "prepared")
		stmt, err := conn.NewStatement()
		must(t, err)
		defer stmt.Close()
		must(t, stmt.SetSqlQuery("SELECT b FROM t WHERE a = ?"))
		must(t, stmt.Prepare(ctx))
		schema, err := stmt.GetParameterSchema()
		must(t, err)
		equal(t, schema.NumFields(), 1)
		for range 3 {
			must(t, stmt.Bind(ctx, one(arrow.PrimitiveTypes.Int64, "1")))
			reader, _, err := stmt.ExecuteQuery(ctx)
			must(t, err)
			equal(t, reader.Next(), true)
			equal(t, reader.RecordBatch().Column(0).ValueStr(0), "x")
			reader.Release()
		}
	})
	t.Run("parameters", func(t *testing.T) {
		feature(t, goADBC, "parameters")
		for _, c := range []struct {
			kind arrow.DataType
			text string
		}{
			{arrow.FixedWidthTypes.Boolean, "true"}, {arrow.PrimitiveTypes.Int8, "-128"}, {arrow.PrimitiveTypes.Int16, "7"}, {arrow.PrimitiveTypes.Int32, "7"},
			{arrow.PrimitiveTypes.Int64, "-9223372036854775808"}, {arrow.PrimitiveTypes.Uint8, "255"}, {arrow.PrimitiveTypes.Uint64, "18446744073709551615"},
			{arrow.PrimitiveTypes.Float32, "1.5"}, {arrow.PrimitiveTypes.Float64, "0.1"}, {arrow.BinaryTypes.String, "zażółć 🎈"}, {arrow.BinaryTypes.Binary, "AP8="},
			{arrow.FixedWidthTypes.Date32, "2024-02-29"}, {arrow.FixedWidthTypes.Time64us, "12:34:56.000001"}, {arrow.FixedWidthTypes.Timestamp_us, "2024-02-29T01:02:03.000000Z"},
			{&arrow.Decimal128Type{Precision: 10, Scale: 2}, "123.45"}, {arrow.FixedWidthTypes.Duration_s, "5s"},
		} {
			for _, text := range []string{c.text, `\N`} {
				batch := one(c.kind, text)
				want := batch.Column(0).ValueStr(0)
				if text == `\N` {
					want = text
				}
				rows, schema, err := cellsOf(conn, "SELECT $1 AS v", batch)
				if err != nil {
					t.Fatalf("%s %s: %v", c.kind, text, err)
				}
				equal(t, rows[0][0], want)
				equal(t, arrow.TypeEqual(schema.Field(0).Type, c.kind), true)
			}
		}
	})
	t.Run("many-rows-bound", func(t *testing.T) {
		feature(t, goADBC, "many-rows-bound")
		builder := array.NewRecordBuilder(memory.DefaultAllocator, arrow.NewSchema([]arrow.Field{{Name: "1", Type: arrow.PrimitiveTypes.Int64}}, nil))
		builder.Field(0).(*array.Int64Builder).AppendValues([]int64{1, 2, 9}, nil)
		rows, _, err := cellsOf(conn, "SELECT a FROM t WHERE a = ?", builder.NewRecordBatch())
		must(t, err)
		equal(t, len(rows), 2)
	})
}

func TestADBCTypes(t *testing.T) {
	conn := connected(t)
	for table, name := range map[string]string{"types": "types", "rare": "rare-types", "ipc_types": "rare-types"} {
		t.Run(table, func(t *testing.T) {
			feature(t, goADBC, name)
			rows, schema, err := cellsOf(conn, "SELECT * FROM "+table+" ORDER BY id", nil)
			must(t, err)
			equal(t, len(rows), 4)
			for i, cell := range rows[3][1:] {
				if cell != `\N` && cell != array.NullValueStr {
					t.Errorf("%s is not NULL: %s", schema.Field(i+1).Name, cell)
				}
			}
			if table == "types" {
				equal(t, rows[1][8], "-0.01")
				equal(t, rows[1][10], "zażółć 🎈")
			}
		})
	}
}

func TestADBCEmptyWideMillion(t *testing.T) {
	conn := connected(t)
	t.Run("empty", func(t *testing.T) {
		feature(t, goADBC, "empty")
		rows, schema, err := cellsOf(conn, "SELECT * FROM empty", nil)
		must(t, err)
		equal(t, len(rows), 0)
		equal(t, schema.NumFields() > 10, true)
	})
	t.Run("wide", func(t *testing.T) {
		feature(t, goADBC, "wide")
		_, schema, err := cellsOf(conn, "SELECT * FROM wide", nil)
		must(t, err)
		equal(t, schema.NumFields(), 1000)
	})
	t.Run("million", func(t *testing.T) {
		feature(t, goADBC, "million")
		reader, end, err := run(conn, "SELECT id, name FROM big", nil)
		must(t, err)
		defer end()
		rows := int64(0)
		for reader.Next() {
			rows += reader.RecordBatch().NumRows()
		}
		must(t, reader.Err())
		equal(t, rows, 1_000_000)
	})
}

func TestADBCTpch(t *testing.T) {
	feature(t, goADBC, "tpch")
	conn := connected(t)
	for name, query := range queries(t) {
		t.Run(name, func(t *testing.T) {
			rows, _, err := cellsOf(conn, query[0], nil)
			must(t, err)
			sameRows(t, rows, query[1])
		})
	}
}

func TestADBCMetadata(t *testing.T) {
	conn := connected(t)
	t.Run("metadata", func(t *testing.T) {
		feature(t, goADBC, "metadata")
		for _, depth := range []adbc.ObjectDepth{adbc.ObjectDepthCatalogs, adbc.ObjectDepthDBSchemas, adbc.ObjectDepthTables, adbc.ObjectDepthColumns} {
			reader, err := conn.GetObjects(ctx, depth, nil, nil, nil, nil, nil)
			must(t, err)
			equal(t, reader.Next(), true)
			reader.Release()
		}
		schema, err := conn.GetTableSchema(ctx, nil, nil, "t")
		must(t, err)
		equal(t, fmt.Sprint(schema.Field(0).Name, schema.Field(1).Name), "ab")
		reader, err := conn.GetTableTypes(ctx)
		must(t, err)
		equal(t, reader.Next(), true)
		reader.Release()
	})
	t.Run("info", func(t *testing.T) {
		feature(t, goADBC, "info")
		reader, err := conn.GetInfo(ctx, nil)
		must(t, err)
		equal(t, reader.Next(), true)
		reader.Release()
	})
	t.Run("schema-only", func(t *testing.T) {
		feature(t, goADBC, "schema-only")
		stmt, err := conn.NewStatement()
		must(t, err)
		defer stmt.Close()
		must(t, stmt.SetSqlQuery(long))
		schema, err := stmt.(adbc.StatementExecuteSchema).ExecuteSchema(ctx)
		must(t, err)
		equal(t, schema.Field(0).Name, "s")
	})
}

func TestADBCStopping(t *testing.T) {
	conn := connected(t)
	stopped := func(t *testing.T, ctx context.Context, want adbc.Status) {
		stmt, err := conn.NewStatement()
		must(t, err)
		defer stmt.Close()
		must(t, stmt.SetSqlQuery(longRows))
		within(t, 10*time.Second, func() {
			reader, _, err := stmt.ExecuteQuery(ctx)
			if err == nil {
				for reader.Next() {
				}
				err = reader.Err()
				reader.Release()
			}
			says(t, err)
			var detail adbc.Error
			if errors.As(err, &detail) {
				equal(t, detail.Code, want)
			}
		})
	}
	t.Run("cancel", func(t *testing.T) {
		feature(t, goADBC, "cancel")
		ctx, cancel := context.WithCancel(ctx)
		time.AfterFunc(500*time.Millisecond, cancel)
		stopped(t, ctx, adbc.StatusCancelled)
	})
	t.Run("timeout", func(t *testing.T) {
		feature(t, goADBC, "timeout")
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		stopped(t, ctx, adbc.StatusTimeout)
	})
}

func TestADBCErrors(t *testing.T) {
	feature(t, goADBC, "errors")
	conn := connected(t)
	for query, want := range map[string]adbc.Status{"SELECT * FROM": adbc.StatusInvalidArgument, "SELECT * FROM nowhere": adbc.StatusNotFound} {
		_, _, err := cellsOf(conn, query, nil)
		var detail adbc.Error
		if !errors.As(err, &detail) {
			t.Fatalf("%s: %v", query, err)
		}
		equal(t, detail.Code, want)
	}
}

func TestADBCSession(t *testing.T) {
	feature(t, goADBC, "session")
	conn, err := connect(t, "grpc://"+address("PORT"), map[string]string{flightsql.OptionCookieMiddleware: "true"})
	must(t, err)
	options := conn.(adbc.PostInitOptions)
	must(t, options.SetOption(adbc.OptionKeyCurrentDbSchema, "nested"))
	rows, _, err := cellsOf(conn, "SELECT x FROM inner", nil)
	must(t, err)
	equal(t, fmt.Sprint(rows), "[[1]]")
	says(t, options.SetOption(flightsql.OptionSessionOptionPrefix+"nonsense", "1"), "nonsense")
}

func TestADBCLogin(t *testing.T) {
	pem := func(name string) string {
		text, err := os.ReadFile(env(name))
		must(t, err)
		return string(text)
	}
	login := map[string]string{adbc.OptionKeyUsername: env("USER"), adbc.OptionKeyPassword: env("PASSWORD")}
	for _, c := range []struct {
		feature, uri string
		options      map[string]string
	}{
		{"password", "grpc://" + address("LOGIN_PORT"), login},
		{"token", "grpc://" + address("LOGIN_PORT"), map[string]string{flightsql.OptionAuthorizationHeader: "Bearer " + env("TOKEN")}},
		{"tls", "grpc+tls://" + address("TLS_PORT"), map[string]string{adbc.OptionKeyUsername: env("USER"), adbc.OptionKeyPassword: env("PASSWORD"), flightsql.OptionSSLRootCerts: pem("CA")}},
		{"mtls", "grpc+tls://" + address("MTLS_PORT"), map[string]string{flightsql.OptionSSLRootCerts: pem("CA"), flightsql.OptionMTLSCertChain: pem("CERT"), flightsql.OptionMTLSPrivateKey: pem("KEY")}},
	} {
		t.Run(c.feature, func(t *testing.T) {
			feature(t, goADBC, c.feature)
			conn, err := connect(t, c.uri, c.options)
			must(t, err)
			_, _, err = cellsOf(conn, "SELECT 1", nil)
			must(t, err)
		})
	}
	t.Run("refused", func(t *testing.T) {
		feature(t, goADBC, "refused")
		_, err := connect(t, "grpc://"+address("LOGIN_PORT"), map[string]string{adbc.OptionKeyUsername: env("USER"), adbc.OptionKeyPassword: "wrong"})
		var detail adbc.Error
		equal(t, errors.As(err, &detail), true)
		equal(t, detail.Code, adbc.StatusUnauthenticated)
	})
}

func TestADBCRefusals(t *testing.T) {
	feature(t, goADBC, "refusals")
	conn := connected(t)
	says(t, conn.(adbc.PostInitOptions).SetOption(adbc.OptionKeyAutoCommit, adbc.OptionValueDisabled))
	stmt, err := conn.NewStatement()
	must(t, err)
	defer stmt.Close()
	must(t, stmt.SetSqlQuery("CREATE TABLE x (a INT)"))
	_, err = stmt.ExecuteUpdate(ctx)
	says(t, err)
}
