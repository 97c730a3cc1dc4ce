"""The 22 TPC-H queries and DuckDB's answers to them over the very same Parquet files."""

import datetime as dt
import decimal
import functools
import math

import duckdb

import harness

FOLDER = harness.ROOT / "integration-tests/tpch"
QUERIES = {path.stem: path.read_text() for path in sorted(FOLDER.glob("q*.sql"))}
TABLES = ["customer", "lineitem", "nation", "orders", "part", "partsupp", "region", "supplier"]
# The ORDER BY of these names each row, so that their order is part of the answer.
ORDERED = {"q01", "q02", "q04", "q07", "q08", "q09", "q12", "q13", "q15", "q16", "q20", "q21", "q22"}


@functools.cache
def oracle(folder):
    connection = duckdb.connect()
    for table in TABLES:
        files = folder / f"{table}.parquet" if (folder / f"{table}.parquet").exists() else folder / table / "*.parquet"
        connection.execute(f"CREATE VIEW {table} AS SELECT * FROM read_parquet('{files}')")
    return connection


def answer(folder, name):
    return [tuple(map(plain, row)) for row in oracle(folder).execute(QUERIES[name]).fetchall()]


def plain(value):
    """Numbers as float, everything else as text: what is left of a value in every client."""
    match value:
        case bool() | None:
            return value
        case int() | float() | decimal.Decimal():
            return float(value)
        case dt.datetime():
            return value.date().isoformat()
        case dt.date():
            return value.isoformat()
        case _:
            return str(value)


def rows(table):
    """The rows of an Arrow table, in the form of `answer`."""
    return [tuple(map(plain, row)) for row in zip(*(column.to_pylist() for column in table.columns), strict=True)]


def near(a, b):
    # DuckDB averages and divides decimals as doubles, DataFusion as decimals of six digits.
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-4)
    return a == b


def check(name, got, want):
    assert len(got) == len(want), f"{name}: {len(got)} rows, DuckDB has {len(want)}"
    if name not in ORDERED:
        key = lambda row: [(value is None, f"{value:.3f}" if isinstance(value, float) else str(value)) for value in row]  # noqa: E731
        got, want = sorted(got, key=key), sorted(want, key=key)
    for number, (g, w) in enumerate(zip(got, want, strict=True)):
        assert len(g) == len(w) and all(map(near, g, w)), f"{name}, row {number}: {g}, DuckDB has {w}"


def write_answers(folder, target):
    """One file per query for the suites that are not Python: tab-separated, `\\N` is NULL, no header."""
    target.mkdir(parents=True, exist_ok=True)
    for name in QUERIES:
        path = target / f"{name}.tsv"
        if not path.exists():
            text = lambda v: "\\N" if v is None else repr(v) if isinstance(v, float) else str(v)  # noqa: E731
            path.write_text("".join("\t".join(map(text, row)) + "\n" for row in answer(folder, name)))
    return target
