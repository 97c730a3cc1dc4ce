"""pyarrow.flight: the protocol itself, with Flight SQL messages written by hand (fsql.py)."""

import threading
import time

import pyarrow as pa
import pytest
from pyarrow import flight

import data
import fsql

pytestmark = pytest.mark.timeout(120)
CLIENT = "pyarrow.flight"
feature = lambda name: pytest.mark.feature(CLIENT, name)  # noqa: E731
# Runs for minutes unless it is stopped, and holds next to no memory.
LONG = "SELECT sum((a.id * b.id) % 7) AS s FROM big AS a CROSS JOIN big AS b"
# The same, but rows come all the time.
LONG_ROWS = "SELECT a.id * b.id AS v FROM big AS a CROSS JOIN big AS b"


@feature("connect")
def test_connect_and_list(client):
    assert fsql.query(client, "SELECT 1 AS one").to_pydict() == {"one": [1]}
    actions = {kind for kind, _ in client.list_actions()}
    assert {"CreatePreparedStatement", "ClosePreparedStatement", "CancelFlightInfo", "CancelQuery", "RenewFlightEndpoint"} <= actions
    assert {"SetSessionOptions", "GetSessionOptions", "CloseSession"} <= actions
    assert not {"BeginTransaction", "EndTransaction", "BeginSavepoint", "EndSavepoint"} & actions
    list(client.list_flights())


@feature("statements")
@pytest.mark.parametrize(
    ("sql", "want"),
    [
        ("SELECT 1 AS x, 'a' AS y", {"x": [1], "y": ["a"]}),
        ("SELECT * FROM t ORDER BY a NULLS LAST", {"a": [1, 2, None], "b": ["x", None, "z"]}),
        ("SELECT x FROM nested.inner", {"x": [1]}),
        ("SELECT x, s FROM texts ORDER BY x", {"x": [1, 2], "s": ["one", "two"]}),
        ("SELECT x, s FROM lines ORDER BY x", {"x": [1, 2], "s": ["one", None]}),
        ("SELECT count(*) AS n FROM generate_series(1, 1000)", {"n": [1000]}),
        ("WITH q AS (SELECT count(*) AS n FROM big) SELECT n FROM q", {"n": [data.BIG]}),
    ],
)
def test_statement(client, sql, want):
    assert fsql.query(client, sql).to_pydict() == want


@feature("statements")
@pytest.mark.parametrize("sql", ["EXPLAIN SELECT * FROM t", "EXPLAIN ANALYZE SELECT * FROM t", "SHOW TABLES", "DESCRIBE t", "SHOW ALL"])
def test_statements_about_statements(client, sql):
    assert fsql.query(client, sql).num_rows > 0


@feature("statements")
def test_plain_sql_as_descriptor(client):
    info = client.get_flight_info(flight.FlightDescriptor.for_command(b"SELECT 42 AS x"))
    assert client.do_get(info.endpoints[0].ticket).read_all().to_pydict() == {"x": [42]}


@feature("prepared")
def test_prepared_runs_again_and_again(client):
    prepared = fsql.Prepared(client, "SELECT count(*) AS n FROM t")
    assert prepared.dataset_schema.names == ["n"]
    for _ in range(3):
        assert prepared.fetch().to_pydict() == {"n": [3]}
    prepared.close()
    with pytest.raises((flight.FlightError, pa.ArrowException)):
        prepared.fetch()


@feature("parameters")
@pytest.mark.parametrize("sql", ["SELECT b FROM t WHERE a = ?", "SELECT b FROM t WHERE a = $1", "SELECT b FROM t WHERE a = :a"])
def test_parameter_styles(client, sql):
    prepared = fsql.Prepared(client, sql)
    assert len(prepared.parameter_schema) == 1
    assert prepared.parameter_schema.field(0).type == pa.int64()
    name = prepared.parameter_schema.field(0).name
    assert prepared.bind(pa.table({name: pa.array([1], pa.int64())})).fetch().to_pydict() == {"b": ["x"]}


@feature("parameters")
def test_question_marks_in_quotes_and_comments_are_no_parameters(client):
    prepared = fsql.Prepared(client, "SELECT '?' AS q, \"a\" /* ? */ FROM t WHERE b = ? -- ?\n AND a = ?")
    assert [field.type for field in prepared.parameter_schema] == [pa.string(), pa.int64()]
    bound = prepared.bind(pa.table([pa.array(["x"]), pa.array([1], pa.int64())], names=["1", "2"]))
    assert bound.fetch().to_pydict() == {"q": ["?"], "a": [1]}


@feature("parameters")
@pytest.mark.parametrize("column", [c for c in [*data.TYPES, *data.RARE_TYPES, *data.IPC_TYPES]], ids=lambda c: c[0])
def test_parameter_of_every_type(client, column):
    """What is bound comes back: as its wire type, both a value and NULL."""
    _, kind, values, sent = column
    array = pa.array([values[1]], kind)
    prepared = fsql.Prepared(client, "SELECT $1 AS v")
    got = prepared.bind(pa.table([array], names=["$1"])).fetch()
    assert got["v"].combine_chunks().equals(array.cast(sent) if sent else array), f"{got} {array}"
    assert prepared.bind(pa.table([pa.array([None], kind)], names=["$1"])).fetch()["v"].null_count == 1


@feature("many-rows-bound")
def test_several_bound_rows_are_one_answer(client):
    prepared = fsql.Prepared(client, "SELECT a, b FROM t WHERE a = $1 OR b = $2")
    rows = pa.table([pa.array([1, 2, 7], pa.int64()), pa.array(["z", None, None], pa.string())], names=["$1", "$2"])
    assert sorted(prepared.bind(rows).fetch().to_pylist(), key=str) == sorted([{"a": 1, "b": "x"}, {"a": None, "b": "z"}, {"a": 2, "b": None}], key=str)


@feature("empty")
@pytest.mark.parametrize("sql", ["SELECT * FROM empty", "SELECT * FROM t WHERE a > 100", "SELECT 1 AS x WHERE false", "SELECT * FROM t LIMIT 0"])
def test_empty_results_keep_their_schema(client, sql):
    table = fsql.query(client, sql)
    assert table.num_rows == 0
    assert len(table.schema) > 0
    if "empty" in sql:
        assert table.schema.equals(data.typed(data.TYPES, wire=True).schema)


@feature("wide")
def test_wide(client):
    table = fsql.query(client, "SELECT * FROM wide")
    assert table.num_columns == data.WIDE
    assert table["c999"].to_pylist() == [999, None]


@feature("million")
def test_million_rows(client):
    table = fsql.query(client, "SELECT id, name FROM big ORDER BY id")
    assert table.num_rows == data.BIG
    assert table["id"][0].as_py() == 0 and table["id"][data.BIG - 1].as_py() == data.BIG - 1


@feature("schema-only")
@pytest.mark.parametrize("sql", ["SELECT * FROM types", "SELECT * FROM rare", "SELECT * FROM ipc_types", "SHOW TABLES", "EXPLAIN SELECT 1", LONG])
def test_schema_is_the_same_everywhere(client, sql):
    descriptor = fsql.statement(sql)
    schema = client.get_schema(descriptor).schema
    assert schema.equals(client.get_flight_info(descriptor).schema, check_metadata=True)
    prepared = fsql.Prepared(client, sql)
    assert prepared.dataset_schema.equals(schema, check_metadata=True)
    assert client.get_schema(prepared.descriptor()).schema.equals(schema, check_metadata=True)
    prepared.close()


METADATA = [
    ("CommandGetCatalogs", {}, ["catalog_name"]),
    ("CommandGetDbSchemas", {}, ["catalog_name", "db_schema_name"]),
    ("CommandGetTables", {}, ["catalog_name", "db_schema_name", "table_name", "table_type"]),
    ("CommandGetTables", {"f5": True}, ["catalog_name", "db_schema_name", "table_name", "table_type", "table_schema"]),
    ("CommandGetTableTypes", {}, ["table_type"]),
    ("CommandGetSqlInfo", {}, ["info_name", "value"]),
    ("CommandGetXdbcTypeInfo", {}, None),
    ("CommandGetPrimaryKeys", {"f3": "t"}, ["catalog_name", "db_schema_name", "table_name", "column_name", "key_sequence", "key_name"]),
    ("CommandGetExportedKeys", {"f3": "t"}, None),
    ("CommandGetImportedKeys", {"f3": "t"}, None),
    ("CommandGetCrossReference", {"f3": "t", "f6": "t"}, None),
]


@feature("metadata")
@pytest.mark.parametrize(("name", "fields", "columns"), METADATA, ids=lambda v: v if isinstance(v, str) else None)
def test_metadata_schemas(client, name, fields, columns):
    descriptor = fsql.command(name, **fields)
    assert client.get_schema(descriptor).schema.equals(client.get_flight_info(descriptor).schema)
    table = fsql.fetch(client, descriptor)
    if columns:
        assert table.schema.names == columns


@feature("metadata")
def test_tables_and_their_columns(client):
    (table,) = fsql.fetch(client, fsql.command("CommandGetTables", f3="types", f5=True)).to_pylist()
    assert table["table_name"] == "types" and table["table_type"] in ("TABLE", "BASE TABLE")
    schema = fsql.schema(table["table_schema"])
    assert schema.names == ["id", *(c[0] for c in data.TYPES)]
    decimal = schema.field("c_d9").metadata
    assert decimal[b"ARROW:FLIGHT:SQL:TYPE_NAME"].upper().startswith(b"DECIMAL") and b"(" not in decimal[b"ARROW:FLIGHT:SQL:TYPE_NAME"]
    assert (decimal[b"ARROW:FLIGHT:SQL:PRECISION"], decimal[b"ARROW:FLIGHT:SQL:SCALE"]) == (b"9", b"2")
    assert decimal[b"ARROW:FLIGHT:SQL:TABLE_NAME"] == b"types"


@feature("metadata")
@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"f3": "t"}, {"t"}),
        ({"f3": "ty%s"}, {"types"}),
        ({"f3": "_"}, {"t"}),
        ({"f3": "nothing"}, set()),
        ({"f2": "nested"}, {"inner"}),
        ({"f1": "no such catalog"}, set()),
        ({"f4": ["VIEW"], "f3": "t"}, set()),
    ],
)
def test_table_filters(client, fields, names):
    assert {row["table_name"] for row in fsql.fetch(client, fsql.command("CommandGetTables", **fields)).to_pylist()} == names


@feature("info")
def test_sql_info_is_complete_and_truthful(client):
    info = dict(zip(*fsql.fetch(client, fsql.command("CommandGetSqlInfo")).to_pydict().values(), strict=True))
    assert info[0].lower() == "updraft" and info[3] is True and info[4] is True
    assert info[8] == 0, "no transactions"
    assert info[10] is False and info[11] is False, "no ingest"
    assert info[9] is True
    assert set(range(500, 577)) <= set(info) and max(info) < 10_000
    assert info[504] == '"'
    one = fsql.fetch(client, fsql.command("CommandGetSqlInfo", f1=[0, 8]))
    assert one["info_name"].to_pylist() == [0, 8]


@feature("keys-and-types")
def test_xdbc_types(client):
    table = fsql.fetch(client, fsql.command("CommandGetXdbcTypeInfo"))
    assert table.num_columns == 19 and table.num_rows >= 10
    order = list(zip(table["data_type"].to_pylist(), table["type_name"].to_pylist(), strict=True))
    assert order == sorted(order)
    kind = table["data_type"][0].as_py()
    assert set(fsql.fetch(client, fsql.command("CommandGetXdbcTypeInfo", f1=kind))["data_type"].to_pylist()) == {kind}


@feature("keys-and-types")
@pytest.mark.parametrize("name", ["CommandGetPrimaryKeys", "CommandGetExportedKeys", "CommandGetImportedKeys"])
def test_keys_are_empty_with_a_schema(client, name):
    table = fsql.fetch(client, fsql.command(name, f3="t"))
    assert table.num_rows == 0 and table.num_columns in (6, 13)


@feature("cancel")
def test_cancel_flight_info(client, server):
    info = client.get_flight_info(fsql.statement(LONG_ROWS))
    reader = client.do_get(info.endpoints[0].ticket)
    reader.read_chunk()
    assert fsql.cancel(client, info) in (fsql.CANCELLED, fsql.CANCELLING)
    with pytest.raises((flight.FlightCancelledError, pa.ArrowCancelled)):
        while True:
            reader.read_chunk()
    assert server.idle()


@feature("cancel")
def test_cancel_by_client(client, server):
    info = client.get_flight_info(fsql.statement(LONG))
    reader = client.do_get(info.endpoints[0].ticket)
    threading.Timer(0.5, reader.cancel).start()
    with pytest.raises((flight.FlightError, pa.ArrowException)):
        reader.read_chunk()  # Not read_all: it takes a cancel for Ctrl-C.
    assert server.idle()


@feature("cancel")
def test_cancelled_is_gone(client):
    info = client.get_flight_info(fsql.statement(LONG))
    assert fsql.cancel(client, info) == fsql.CANCELLED  # Planned, and never fetched.
    with pytest.raises((flight.FlightError, pa.ArrowException, KeyError), match="(?i)no such query"):
        fsql.cancel(client, info)


@feature("cancel")
def test_client_that_never_fetches_leaves_nothing(client, server):
    for _ in range(200):
        client.get_flight_info(fsql.statement(LONG))
    assert server.idle(within=3)


@feature("timeout")
def test_deadline_of_the_call(client, server):
    options = flight.FlightCallOptions(timeout=1.0)
    begin = time.monotonic()
    with pytest.raises(flight.FlightTimedOutError):
        fsql.query(client, LONG, options)
    assert time.monotonic() - begin < 10
    assert server.idle()


@feature("timeout")
def test_statement_timeout_of_the_session(server):
    cookies = fsql.Cookies()
    with flight.FlightClient(server.uri, middleware=[cookies]) as client:
        assert fsql.set_session(client, None, statement_timeout="1s") == {}
        begin = time.monotonic()
        with pytest.raises((flight.FlightTimedOutError, pa.ArrowException), match="(?i)timeout|deadline|time"):
            fsql.query(client, LONG)
        assert time.monotonic() - begin < 10
    assert server.idle()


@feature("session")
def test_session_options(server):
    with flight.FlightClient(server.uri, middleware=[fsql.Cookies()]) as client:
        fsql.get_session(client, None)  # A new session is no error.
        assert fsql.set_session(client, None, batch_size=1000, time_zone="Europe/Berlin") == {}
        options = fsql.get_session(client, None)
        assert str(options["batch_size"]) == "1000" and options["time_zone"] == "Europe/Berlin"
        assert fsql.set_session(client, None, nonsense="1", batch_size="many") == {"nonsense": 1, "batch_size": 2}
        info = client.get_flight_info(fsql.statement("SELECT id FROM big LIMIT 5000"))
        sizes = [chunk.data.num_rows for chunk in client.do_get(info.endpoints[0].ticket)]
        assert max(sizes) <= 1000
        # Unset: the server's own value again.
        assert fsql.set_session(client, None, batch_size=None) == {}
        assert str(fsql.get_session(client, None).get("batch_size")) != "1000"
        fsql.action(client, "CloseSession", b"")
    with flight.FlightClient(server.uri, middleware=[fsql.Cookies()]) as client:
        assert fsql.get_session(client, None).get("time_zone") != "Europe/Berlin"


@feature("session")
def test_set_statement_and_what_it_refuses(server):
    with flight.FlightClient(server.uri, middleware=[fsql.Cookies()]) as client:
        fsql.get_session(client, None)
        fsql.query(client, "SET target_partitions = 1")
        assert str(fsql.get_session(client, None)["target_partitions"]) == "1"
        for refused in ["SET datafusion.runtime.memory_limit = '100G'", "SET datafusion.execution.parquet.pushdown_filters = true", "SET nonsense = 1"]:
            with pytest.raises(pa.ArrowInvalid, match="target_partitions"):
                fsql.query(client, refused)


@feature("compression")
@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_compression(server, codec):
    with flight.FlightClient(server.uri, middleware=[fsql.Cookies()]) as client:
        plain = fsql.query(client, "SELECT * FROM types ORDER BY id")
        assert fsql.set_session(client, None, wire_compression=codec) == {}
        assert fsql.query(client, "SELECT * FROM types ORDER BY id").equals(plain)


@feature("errors")
@pytest.mark.parametrize(
    ("sql", "error", "says"),
    [
        ("SELECT * FROM", pa.ArrowInvalid, "(?i)syntax|expected"),
        ("SELECT * FROM nowhere", KeyError, "nowhere"),
        ("SELECT nothing FROM t", pa.ArrowInvalid, "nothing"),
        ("SELECT no_such_function(1)", pa.ArrowInvalid, "no_such_function"),
        ("SELECT 1/0", pa.ArrowInvalid, "(?i)divide"),
        ("SELECT CAST('x' AS INT)", pa.ArrowInvalid, "x"),
        ("SELECT a + b FROM t WHERE b = 'x'", pa.ArrowInvalid, "."),
        ("SELECT " + "(" * 5000 + "1" + ")" * 5000, pa.ArrowInvalid, "(?i)deep|nest|recursion"),
        ("", pa.ArrowInvalid, "."),
        ("SELECT 1; SELECT 2", pa.ArrowInvalid, "(?i)one statement|single|statement"),
    ],
)
def test_error(client, sql, error, says):
    with pytest.raises(error, match=says):
        fsql.query(client, sql)


@feature("errors")
@pytest.mark.parametrize("descriptor", [flight.FlightDescriptor.for_path("a", "b"), flight.FlightDescriptor.for_command(b""), flight.FlightDescriptor.for_command(b"\xff\x01\x02")])
def test_nonsense_descriptor(client, descriptor):
    with pytest.raises((pa.ArrowException, flight.FlightError, KeyError)) as raised:
        client.get_flight_info(descriptor)
    assert not isinstance(raised.value, flight.FlightInternalError)


@feature("errors")
@pytest.mark.parametrize("ticket", [b"", b"\xff" * 40, fsql.any_("TicketStatementQuery", f1=b"forged")])
def test_forged_ticket(client, ticket):
    with pytest.raises((pa.ArrowException, flight.FlightError, KeyError)) as raised:
        client.do_get(flight.Ticket(ticket)).read_all()
    assert not isinstance(raised.value, flight.FlightInternalError)


@feature("refusals")
@pytest.mark.parametrize(
    "sql",
    ["CREATE TABLE x (a INT)", "INSERT INTO t VALUES (1, 'a')", "DROP TABLE t", "COPY t TO '/tmp/x.parquet'", "DELETE FROM t", "UPDATE t SET a = 1",
     "CREATE EXTERNAL TABLE x STORED AS CSV LOCATION '/etc/passwd'", "CREATE VIEW v AS SELECT 1"],
)  # fmt: skip
def test_writing_statements_are_refused(client, sql):
    with pytest.raises((NotImplementedError, pa.ArrowInvalid, pa.ArrowNotImplementedError)) as raised:
        fsql.query(client, sql)
    assert len(str(raised.value)) > 20


@feature("refusals")
def test_transactions_are_refused(client):
    with pytest.raises((NotImplementedError, pa.ArrowNotImplementedError)):
        fsql.action(client, "BeginTransaction", fsql.any_("ActionBeginTransactionRequest"))


def test_an_update_is_answered_before_the_upload_ends(client):
    """As the C++ client of Flight SQL wants it."""
    writer, reader = client.do_put(fsql.command("CommandStatementUpdate", f1="SET batch_size = 2048"), pa.schema([]), flight.FlightCallOptions(timeout=20))
    assert reader.read() is not None
    writer.close()


@feature("refusals")
@pytest.mark.parametrize("descriptor", [fsql.command("CommandStatementUpdate", f1="DELETE FROM t"), fsql.command("CommandStatementIngest", f2="x")], ids=["update", "ingest"])
def test_updates_are_refused(client, descriptor):
    with pytest.raises((NotImplementedError, pa.ArrowNotImplementedError)):
        table = pa.table({"a": [1]})
        writer, reader = client.do_put(descriptor, table.schema)
        with writer:
            writer.write_table(table)
            writer.done_writing()
            reader.read()
