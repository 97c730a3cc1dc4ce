"""ADBC: the dbapi of adbc-driver-flightsql, as most Python programs use Updraft."""

import datetime as dt
import threading
import time
from decimal import Decimal as D

import adbc_driver_flightsql.dbapi as adbc
import adbc_driver_manager
import pyarrow as pa
import pytest
from adbc_driver_flightsql import ConnectionOptions, DatabaseOptions

import data
from test_pyarrow import LONG, LONG_ROWS

pytestmark = pytest.mark.timeout(120)
feature = lambda name: pytest.mark.feature("ADBC (Python)", name)  # noqa: E731
Status = adbc_driver_manager.AdbcStatusCode


@feature("connect")
def test_connect(cur):
    cur.execute("SELECT 1")
    assert cur.fetchone() == (1,)


@feature("statements")
def test_statements(cur):
    cur.execute("SELECT a, b FROM t ORDER BY a NULLS LAST")
    assert [column[0] for column in cur.description] == ["a", "b"]
    assert cur.fetchall() == [(1, "x"), (2, None), (None, "z")]
    for sql in ["EXPLAIN SELECT 1", "SHOW TABLES", "DESCRIBE t", "SHOW ALL"]:
        cur.execute(sql)
        assert cur.fetchall()


@feature("statements")
def test_many_cursors_of_one_connection(conn):
    cursors = [conn.cursor() for _ in range(8)]
    for number, cursor in enumerate(cursors):
        cursor.execute(f"SELECT {number} AS n")
    assert [cursor.fetchone()[0] for cursor in cursors] == list(range(8))
    for cursor in cursors:
        cursor.close()


@feature("statements")
def test_partitions_travel_to_another_connection(server, cur):
    parts, schema = cur.adbc_execute_partitions("SELECT id FROM big")
    assert schema.names == ["id"] and len(parts) >= 1
    rows = 0
    with adbc.connect(server.uri, autocommit=True) as other, other.cursor() as reader:
        for part in parts:
            reader.adbc_read_partition(part)
            rows += reader.fetch_arrow_table().num_rows
    assert rows == data.BIG


@feature("prepared")
def test_prepare(cur):
    schema = cur.adbc_prepare("SELECT b FROM t WHERE a = ? AND b = ?")
    assert [field.type for field in schema] == [pa.int64(), pa.string()]
    for _ in range(3):
        cur.execute("SELECT b FROM t WHERE a = ? AND b = ?", (1, "x"))
        assert cur.fetchall() == [("x",)]


PARAMETERS = [
    True, 7, -(2**63), 1.5, "zażółć", "", b"\x00\xff", D("123.45"), dt.date(2024, 2, 29), dt.time(12, 34, 56), dt.datetime(2024, 2, 29, 1, 2, 3, 4),
    dt.datetime(2024, 2, 29, 1, 2, 3, tzinfo=dt.timezone.utc), None, [1, 2],
]  # fmt: skip


@feature("parameters")
@pytest.mark.parametrize("value", PARAMETERS, ids=lambda v: type(v).__name__ + str(v)[:12])
def test_parameter_of_every_python_type(cur, value):
    cur.execute("SELECT ? AS v", (value,))
    (got,) = cur.fetchone()
    assert got == value


@feature("parameters")
@pytest.mark.parametrize("column", [*data.TYPES, *data.RARE_TYPES, *data.IPC_TYPES], ids=lambda c: c[0])
def test_parameter_of_every_arrow_type(cur, column):
    _, kind, values, sent = column
    for array in (pa.array([values[1]], kind), pa.array([None], kind)):
        cur.execute("SELECT $1 AS v", pa.record_batch([array], names=["0"]))
        got = cur.fetch_arrow_table()["v"].combine_chunks()
        assert got.equals(array.cast(sent) if sent else array)


@feature("parameters")
@pytest.mark.parametrize(
    ("sql", "values", "want"),
    [
        ("SELECT b FROM t WHERE a = $1", (1,), [("x",)]),
        ("SELECT a FROM t WHERE b = $2 AND a = $1", (1, "x"), [(1,)]),
        ("SELECT a FROM t WHERE b LIKE ?", ("x%",), [(1,)]),
        ("SELECT count(*) FROM big WHERE id BETWEEN ? AND ?", (10, 19), [(10,)]),
        ("SELECT a + ? FROM t WHERE a = 1", (41,), [(42,)]),
        ("SELECT a FROM t WHERE a = :v", (2,), [(2,)]),
        ("SELECT a FROM t WHERE a IN (?, ?) ORDER BY a", (1, 2), [(1,), (2,)]),
        ("SELECT a FROM t ORDER BY a LIMIT ?", (1,), [(1,)]),
        ("SELECT a FROM t WHERE a = CAST(? AS BIGINT)", ("2",), [(2,)]),
    ],
)
def test_parameters(cur, sql, values, want):
    cur.execute(sql, values)
    assert cur.fetchall() == want


@feature("parameters")
@pytest.mark.parametrize("values", [(), (1, 2)])
def test_wrong_number_of_parameters(cur, values):
    with pytest.raises(adbc.Error, match="(?i)parameter"):
        cur.execute("SELECT a FROM t WHERE a = ?", pa.record_batch([pa.array([v]) for v in values], names=[str(i) for i in range(len(values))]) if values else None)
        cur.fetchall()


@feature("many-rows-bound")
def test_several_bound_rows(cur):
    cur.execute("SELECT a, b FROM t WHERE a = ?", pa.record_batch([pa.array([1, 2, 9])], names=["0"]))
    assert sorted(cur.fetchall()) == [(1, "x"), (2, None)]


@feature("empty")
@pytest.mark.parametrize("sql", ["SELECT * FROM empty", "SELECT * FROM t WHERE a > 100", "SELECT * FROM t LIMIT 0"])
def test_empty(cur, sql):
    cur.execute(sql)
    table = cur.fetch_arrow_table()
    assert table.num_rows == 0 and table.num_columns >= 2


@feature("wide")
def test_wide(cur):
    cur.execute("SELECT * FROM wide")
    assert cur.fetch_arrow_table().num_columns == data.WIDE


@feature("million")
def test_million_rows(cur):
    cur.execute("SELECT id, name FROM big ORDER BY id")
    table = cur.fetch_arrow_table()
    assert table.num_rows == data.BIG and table["id"][-1].as_py() == data.BIG - 1


@feature("metadata")
@pytest.mark.parametrize("depth", ["catalogs", "db_schemas", "tables", "columns"])
def test_get_objects(conn, depth):
    catalogs = conn.adbc_get_objects(depth=depth).read_all().to_pylist()
    assert catalogs and all(c["catalog_name"] for c in catalogs)
    if depth == "catalogs":
        return
    schemas = [s for c in catalogs for s in c["catalog_db_schemas"] or []]
    assert {"nested", "public"} <= {s["db_schema_name"] for s in schemas}
    if depth == "db_schemas":
        return
    tables = {t["table_name"]: t for s in schemas for t in s["db_schema_tables"] or []}
    assert {"t", "types", "lineitem", "inner"} <= set(tables)
    if depth == "columns":
        columns = tables["t"]["table_columns"]
        assert [(c["column_name"], c["ordinal_position"]) for c in columns] == [("a", 1), ("b", 2)]
        assert columns[0]["xdbc_type_name"]


@feature("metadata")
@pytest.mark.parametrize(
    ("filters", "names"),
    [
        ({"table_name_filter": "t"}, {"t"}),
        ({"table_name_filter": "ty%"}, {"types"}),
        ({"table_name_filter": "nothing"}, set()),
        ({"db_schema_filter": "nested"}, {"inner"}),
        ({"catalog_filter": "no such catalog"}, set()),
        ({"table_types_filter": ["VIEW"], "db_schema_filter": "nested"}, set()),
        ({"column_name_filter": "x", "db_schema_filter": "nested"}, {"inner"}),
    ],
)
def test_get_objects_filters(conn, filters, names):
    catalogs = conn.adbc_get_objects(depth="columns", **filters).read_all().to_pylist()
    assert {t["table_name"] for c in catalogs for s in c["catalog_db_schemas"] or [] for t in s["db_schema_tables"] or []} == names


@feature("metadata")
def test_table_schema_and_types(conn):
    assert conn.adbc_get_table_schema("t").names == ["a", "b"]
    assert conn.adbc_get_table_schema("inner", db_schema_filter="nested").names == ["x"]
    assert conn.adbc_get_table_schema("types").equals(data.typed(data.TYPES, wire=True).schema)
    assert conn.adbc_get_table_schema("ipc_types").names[1] == "c_interval"  # `_` is no wildcard for the exact name
    with pytest.raises(adbc.Error):
        conn.adbc_get_table_schema("nowhere")
    assert {"BASE TABLE", "TABLE"} & set(conn.adbc_get_table_types())


@feature("info")
def test_get_info(conn):
    info = conn.adbc_get_info()
    assert info["vendor_name"].lower() == "updraft" and info["vendor_version"]


@feature("schema-only")
@pytest.mark.parametrize("sql", ["SELECT * FROM rare", "SHOW TABLES", LONG])
def test_execute_schema(cur, sql):
    schema = cur.adbc_execute_schema(sql)
    if sql != LONG:
        cur.execute(sql)
        assert cur.fetch_arrow_table().schema.equals(schema)


@feature("cancel")
@pytest.mark.parametrize("sql", [LONG, LONG_ROWS])
def test_cancel(server, cur, sql):
    timer = threading.Timer(0.7, cur.adbc_cancel)
    timer.start()
    # An error of ADBC while it waits for the first batch, of pyarrow between batches.
    with pytest.raises((adbc.Error, OSError), match="(?i)cancel"):
        cur.execute(sql)
        for _ in cur.fetch_record_batch():
            pass
    timer.join()
    assert server.idle()


@feature("cancel")
def test_closed_cursor_stops_the_query(server, conn):
    with conn.cursor() as cur:
        cur.execute(LONG_ROWS)
        reader = cur.fetch_record_batch()
        reader.read_next_batch()
        reader.close()
    assert server.idle()


@feature("timeout")
@pytest.mark.parametrize("option", [ConnectionOptions.TIMEOUT_FETCH])
def test_timeout_of_the_client(server, option):
    with adbc.connect(server.uri, conn_kwargs={option.value: "1.0"}, autocommit=True) as conn, conn.cursor() as cur:
        begin = time.monotonic()
        with pytest.raises(adbc.Error) as raised:
            cur.execute(LONG)
            cur.fetchall()
        assert raised.value.status_code == Status.TIMEOUT
        assert time.monotonic() - begin < 10
    assert server.idle()


@feature("timeout")
def test_timeout_of_the_server(server):
    kwargs = {DatabaseOptions.WITH_COOKIE_MIDDLEWARE.value: "true"}
    with adbc.connect(server.uri, db_kwargs=kwargs, autocommit=True) as conn, conn.cursor() as cur:
        cur.execute("SET statement_timeout = '1s'")
        cur.fetchall()
        with pytest.raises(adbc.Error, match="(?i)timeout|time") as raised:
            cur.execute(LONG)
            cur.fetchall()
        assert raised.value.status_code == Status.TIMEOUT
    assert server.idle()


@feature("errors")
@pytest.mark.parametrize(
    ("sql", "status", "says"),
    [
        ("SELECT * FROM", Status.INVALID_ARGUMENT, "(?i)expected|syntax"),
        ("SELECT * FROM nowhere", Status.NOT_FOUND, "nowhere"),
        ("SELECT nothing FROM t", Status.INVALID_ARGUMENT, "nothing"),
        ("SELECT 1/0", Status.INVALID_ARGUMENT, "(?i)divide"),
        ("SELECT CAST(b AS INT) FROM t", Status.INVALID_ARGUMENT, "."),
        ("CREATE TABLE x (a INT)", None, "."),
        ("SELECT 1; SELECT 2", Status.INVALID_ARGUMENT, "(?i)statement"),
    ],
)
def test_errors(cur, sql, status, says):
    with pytest.raises(adbc.Error, match=says) as raised:
        cur.execute(sql)
        cur.fetchall()
    assert status is None or raised.value.status_code == status
    cur.execute("SELECT 1")  # The connection is as good as before.
    assert cur.fetchone() == (1,)


@feature("session")
def test_session(server):
    kwargs = {DatabaseOptions.WITH_COOKIE_MIDDLEWARE.value: "true"}
    with adbc.connect(server.uri, db_kwargs=kwargs, autocommit=True) as conn, conn.cursor() as cur:
        catalog, schema = conn.adbc_current_catalog, conn.adbc_current_db_schema
        assert catalog and schema
        conn.adbc_current_db_schema = "nested"
        assert conn.adbc_current_db_schema == "nested"
        cur.execute("SELECT x FROM inner")
        assert cur.fetchall() == [(1,)]
        conn.adbc_current_db_schema = schema
        conn.adbc_current_catalog = catalog
        with pytest.raises(adbc.Error):
            conn.adbc_current_catalog = "nowhere"
        prefix = ConnectionOptions.OPTION_SESSION_OPTION_PREFIX.value
        conn.adbc_connection.set_options(**{prefix + "time_zone": "Europe/Berlin"})
        assert conn.adbc_connection.get_option(prefix + "time_zone") == "Europe/Berlin"
        with pytest.raises(adbc.Error):
            conn.adbc_connection.set_options(**{prefix + "nonsense": "1"})
        cur.execute("SET batch_size = 500")
        cur.fetchall()
        cur.execute("SELECT id FROM big LIMIT 3000")
        assert max(batch.num_rows for batch in cur.fetch_record_batch()) <= 500


@feature("session")
def test_without_cookies_settings_of_one_do_not_reach_another(server):
    with adbc.connect(server.uri, autocommit=True) as one, adbc.connect(server.uri, autocommit=True) as other:
        with one.cursor() as cur:
            try:
                cur.execute("SET batch_size = 77")
                cur.fetchall()
            except adbc.Error:
                pass  # Without cookies or a login there is no session to set; refusing is as good.
        with other.cursor() as cur:
            cur.execute("SELECT id FROM big LIMIT 3000")
            assert max(batch.num_rows for batch in cur.fetch_record_batch()) > 77


@feature("progress")
@pytest.mark.parametrize("prepared", [False, True])
def test_incremental_execution(cur, prepared):
    sql = "SELECT count(*) AS n FROM big WHERE name <> 'n1'"
    if prepared:
        cur.adbc_prepare(sql)
    cur.adbc_statement.set_options(**{"adbc.statement.exec.incremental": "true"})
    rows, progress = 0, []
    # Each call gives the endpoints that are new since the call before; none is the end.
    while True:
        parts, _ = cur.adbc_execute_partitions(sql)
        if not parts:
            break
        progress.append(cur.adbc_statement.get_option_float("adbc.statement.exec.progress"))
        rows += len(parts)
    assert rows >= 1 and progress[-1] == 1.0


@feature("compression")
@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_compression(server, codec):
    kwargs = {DatabaseOptions.WITH_COOKIE_MIDDLEWARE.value: "true"}
    with adbc.connect(server.uri, db_kwargs=kwargs, autocommit=True) as conn, conn.cursor() as cur:
        conn.adbc_connection.set_options(**{ConnectionOptions.OPTION_SESSION_OPTION_PREFIX.value + "wire_compression": codec})
        cur.execute("SELECT * FROM types ORDER BY id")
        assert cur.fetch_arrow_table().num_rows == 4


@feature("refusals")
def test_updates_ingest_and_transactions(server, conn):
    for act in (
        lambda cur: cur.adbc_ingest("fresh", pa.table({"a": [1]}), mode="create"),
        lambda cur: cur.executescript("CREATE TABLE x (a INT)"),
        lambda cur: cur.executemany("INSERT INTO t VALUES (?, ?)", [(1, "a")]),
    ):
        with pytest.raises(adbc.Error) as raised, conn.cursor() as cur:
            act(cur)
        assert raised.value.status_code in (Status.NOT_IMPLEMENTED, Status.INVALID_ARGUMENT)
    with pytest.warns(Warning, match="(?i)autocommit"), adbc.connect(server.uri) as conn, conn.cursor() as cur:
        cur.execute("SELECT 1")
        assert cur.fetchone() == (1,)


@feature("statements")
def test_latency_of_select_one(server, cur):
    """The figure is for the reader; only a server that waits for something (40 ms is Nagle's delay) fails here."""
    from conftest import record

    times = []
    for _ in range(200):
        begin = time.perf_counter()
        cur.execute("SELECT 1")
        cur.fetchall()
        times.append(time.perf_counter() - begin)
    times.sort()
    record("select_1_adbc", p50_ms=round(times[100] * 1e3, 2), p99_ms=round(times[197] * 1e3, 2), binary=str(server.process.args[0]))
    assert times[100] < 0.04


