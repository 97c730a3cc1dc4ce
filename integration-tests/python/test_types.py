"""Every type there and back: files holding values and NULLs, and SQL expressions, compared with what is known to be in them."""

import datetime as dt
from decimal import Decimal as D

import pyarrow as pa
import pytest

import data
import fsql

TABLES = {"types": ("types", data.TYPES), "rare": ("rare-types", data.RARE_TYPES), "ipc_types": ("rare-types", data.IPC_TYPES)}
# arrow-go 18 has no reader for these; found by this suite and shown in docs/clients.md.
ADBC_LIMITS = {}

DAY = pa.month_day_nano_interval()
EXPRESSIONS = [
    ("NULL", pa.null(), None),
    ("true", pa.bool_(), True),
    ("CAST(1 AS TINYINT)", pa.int8(), 1),
    ("CAST(1 AS SMALLINT)", pa.int16(), 1),
    ("CAST(1 AS INT)", pa.int32(), 1),
    ("1", pa.int64(), 1),
    ("CAST(1 AS INT UNSIGNED)", pa.uint32(), 1),
    ("CAST(1 AS BIGINT UNSIGNED)", pa.uint64(), 1),
    ("CAST(1.5 AS REAL)", pa.float32(), 1.5),
    ("CAST(1.5 AS DOUBLE)", pa.float64(), 1.5),
    ("CAST('NaN' AS DOUBLE) = CAST('NaN' AS DOUBLE)", pa.bool_(), True),
    ("CAST(1.25 AS DECIMAL(10, 2))", pa.decimal128(10, 2), D("1.25")),
    ("CAST('-12345678901234567890.5' AS DECIMAL(38, 1))", pa.decimal128(38, 1), D("-12345678901234567890.5")),
    ("'text'", pa.string(), "text"),
    ("CAST('text' AS VARCHAR)", pa.string(), "text"),
    ("arrow_cast('text', 'Utf8View')", pa.string(), "text"),
    ("arrow_cast('text', 'LargeUtf8')", pa.string(), "text"),
    ("arrow_cast('text', 'Dictionary(Int32, Utf8)')", pa.string(), "text"),
    ("arrow_cast(1.5, 'Float16')", pa.float32(), 1.5),
    ("X'00ff'", pa.binary(), b"\x00\xff"),
    ("arrow_cast(X'00ff', 'BinaryView')", pa.binary(), b"\x00\xff"),
    ("DATE '2024-02-29'", pa.date32(), dt.date(2024, 2, 29)),
    ("TIME '12:34:56.789'", pa.time64("ns"), dt.time(12, 34, 56, 789000)),
    ("TIMESTAMP '2024-02-29 01:02:03'", pa.timestamp("ns"), dt.datetime(2024, 2, 29, 1, 2, 3)),
    ("arrow_cast('2024-02-29T01:02:03Z', 'Timestamp(Microsecond, Some(\"UTC\"))')", pa.timestamp("us", "UTC"), dt.datetime(2024, 2, 29, 1, 2, 3, tzinfo=dt.timezone.utc)),
    ("INTERVAL '1 month 2 days 3 nanoseconds'", DAY, pa.MonthDayNano([1, 2, 3])),
    ("arrow_cast(5, 'Duration(Second)')", pa.duration("s"), dt.timedelta(seconds=5)),
    ("[1, 2, NULL]", pa.list_(pa.int64()), [1, 2, None]),
    ("[['a'], []]", pa.list_(pa.list_(pa.string())), [["a"], []]),
    ("struct(1 AS a, 'x' AS b)", pa.struct([("a", pa.int64()), ("b", pa.string())]), {"a": 1, "b": "x"}),
    ("map(['k'], [1])", None, [("k", 1)]),
    ("CAST(NULL AS INT)", pa.int32(), None),
    ("CAST(NULL AS VARCHAR)", pa.string(), None),
]


def same_type(a, b):
    """Equal but for nullability and the names of list items, which DataFusion chooses."""
    if pa.types.is_list(a) and pa.types.is_list(b):
        return same_type(a.value_type, b.value_type)
    if pa.types.is_struct(a) and pa.types.is_struct(b):
        return a.num_fields == b.num_fields and all(a[i].name == b[i].name and same_type(a[i].type, b[i].type) for i in range(a.num_fields))
    return a.equals(b)


def check(column, got, want):
    assert same_type(got.type, want.type), f"{column}: {got.type}, expected {want.type}"
    left, right = (a.combine_chunks() if isinstance(a, pa.ChunkedArray) else a for a in (got, want))
    assert left.to_pylist() == right.to_pylist() if not pa.types.is_timestamp(got.type) else left.cast(pa.int64()).equals(right.cast(pa.int64())), f"{column}: {left}"


def cases():
    for table, (feature, columns) in TABLES.items():
        for column in columns:
            yield table, feature, column


def run_pyarrow(client, _, sql):
    return fsql.query(client, sql)


def run_adbc(_, cur, sql):
    cur.execute(sql)
    return cur.fetch_arrow_table()


CLIENTS = [("pyarrow.flight", run_pyarrow), ("ADBC (Python)", run_adbc)]


@pytest.mark.parametrize(
    ("run", "table", "column"),
    [
        pytest.param(
            run, table, column, id=f"{client}-{table}-{column[0]}",
            marks=[pytest.mark.feature(client, feature), *([pytest.mark.xfail(strict=True, reason=ADBC_LIMITS[column[0]])] if client.startswith("ADBC") and column[0] in ADBC_LIMITS else [])],
        )
        for client, run in CLIENTS for table, feature, column in cases()
    ],
)  # fmt: skip
def test_column(client, cur, run, table, column):
    name = column[0]
    want = data.typed([column], wire=True)[name]
    check(name, run(client, cur, f"SELECT {name} FROM {table} ORDER BY id")[name], want)


@pytest.mark.parametrize(
    ("run", "sql", "kind", "value"),
    [
        pytest.param(run, *case, id=f"{client}-{case[0]}", marks=pytest.mark.feature(client, "rare-types" if i > 18 else "types"))
        for client, run in CLIENTS
        for i, case in enumerate(EXPRESSIONS)
    ],
)
def test_expression(client, cur, run, sql, kind, value):
    got = run(client, cur, f"SELECT {sql} AS v")["v"]
    if kind is None:
        assert pa.types.is_map(got.type) and got.to_pylist() == [value]
        return
    check(sql, got, pa.array([value], kind))


@pytest.mark.feature("ADBC (Python)", "types")
@pytest.mark.parametrize("table", ["types", "rare", "ipc_types"])
def test_whole_table_through_rows(cur, table):
    """fetchall() goes through Python objects and must agree with the Arrow path."""
    cur.execute(f"SELECT * FROM {table} ORDER BY id")
    rows = cur.fetchall()
    assert len(rows) == 4 and all(value is None for value in rows[3][1:])


@pytest.mark.feature("pyarrow.flight", "types")
def test_text_formats_agree_with_duckdb(client, folder):
    import duckdb

    want = duckdb.sql(f"SELECT * FROM read_csv('{folder}/texts.csv') ORDER BY x").fetchall()
    got = fsql.query(client, "SELECT * FROM texts ORDER BY x")
    assert list(zip(*(c.to_pylist() for c in got.columns), strict=True)) == want
