"""Whether two Arrow tables are the same answer.

Engines differ in the types they give and in the order they add floats in, so types are made alike and floats compared with a
tolerance. Large answers are rows of the table as they lie there: these are compared by a hash, to the bit.
"""

import dataclasses

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

# More rows than this are compared by their hash.
SORTED_ROWS_MAX = 100_000
RELATIVE, ABSOLUTE = 1e-6, 1e-4  # DuckDB averages and divides decimals as doubles, DataFusion as decimals of six digits.


@dataclasses.dataclass(frozen=True)
class Answer:
    """What is kept of the right answer: the rows of a small one, the hash of a large one."""

    rows: int
    bytes: int
    ordered: bool
    table: pa.Table | None
    hash: int | None


def answer(table, ordered):
    small = table.num_rows <= SORTED_ROWS_MAX
    assert small or not ordered, "a large answer has to do without an order"
    return Answer(table.num_rows, table.nbytes, ordered, alike(table) if small else None, None if small else hashed(table))


def difference(got, want):
    """What is wrong with the table `got`, in words; None if nothing is."""
    if got.num_rows != want.rows:
        return f"{got.num_rows} rows, DuckDB has {want.rows}"
    if want.table is None:
        return None if hashed(got) == want.hash else "the rows have another hash than DuckDB's"
    got = alike(got)
    if got.num_columns != want.table.num_columns:
        return f"{got.num_columns} columns, DuckDB has {want.table.num_columns}"
    got, expected = floats_where_either_is(got, want.table), floats_where_either_is(want.table, got)
    if got.schema.types != expected.schema.types:
        return f"types {got.schema.types}, DuckDB has {expected.schema.types}"
    if not want.ordered:
        got, expected = in_order(got), in_order(expected)
    for name in got.column_names:
        same = equal(got[name].combine_chunks(), expected[name].combine_chunks())
        if not same.all():
            row = int(np.argmin(same))
            return f"column {name}, row {row}: {got[name][row].as_py()!r}, DuckDB has {expected[name][row].as_py()!r}"
    return None


def alike(table):
    """The table with one type for each kind of value, and columns named by their place."""
    columns = [column.cast(common(column.type)) for column in table.columns]
    return pa.table(columns, names=[f"c{number}" for number in range(len(columns))])


def common(kind):
    if pa.types.is_dictionary(kind):
        return common(kind.value_type)
    if pa.types.is_integer(kind):
        return pa.int64()
    if pa.types.is_decimal(kind) or pa.types.is_floating(kind):
        return pa.float64()
    if pa.types.is_timestamp(kind):
        return pa.timestamp("us")
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.large_string()
    return kind


def floats_where_either_is(table, other):
    """Engines disagree on whether the sum of whole numbers is one."""
    either = (pa.types.is_floating(kind) and pa.types.is_integer(column.type) for column, kind in zip(table.columns, other.schema.types, strict=True))
    columns = [column.cast(pa.float64()) if cast else column for column, cast in zip(table.columns, either, strict=True)]
    return pa.table(columns, names=table.column_names)


def in_order(table):
    """Sorted by all columns, those with a tolerance last: the others nearly always name the row."""
    names = sorted(table.column_names, key=lambda name: pa.types.is_floating(table[name].type))
    return table.sort_by([(name, "ascending") for name in names])


def equal(got, want):
    """One bool for each row."""
    if pa.types.is_floating(got.type):
        a, b = (np.asarray(pc.fill_null(side, 0.0)) for side in (got, want))
        same = np.isclose(a, b, rtol=RELATIVE, atol=ABSOLUTE, equal_nan=True)
    else:
        same = np.asarray(pc.fill_null(pc.equal(got, want), True))
    return same & (np.asarray(got.is_null()) == np.asarray(want.is_null()))


def hashed(table):
    """A hash of the rows that ignores their order."""
    names = [f"c{number}" for number in range(table.num_columns)]
    casts = ", ".join(canonical(name, kind) for name, kind in zip(names, table.schema.types, strict=True))
    with duckdb.connect() as db:
        db.register("answer", table.rename_columns(names))
        return db.execute(f"SELECT sum(hash({casts})) FROM answer").fetchone()[0]


def canonical(name, kind):
    """SQL for the value of a column, the same whichever engine it comes from."""
    if pa.types.is_integer(kind):
        return f"CAST({name} AS BIGINT)"
    if pa.types.is_decimal(kind) or pa.types.is_floating(kind):
        return f"CAST({name} AS DOUBLE) + 0.0"
    if pa.types.is_timestamp(kind):
        return f"CAST({name} AS TIMESTAMP)"
    if pa.types.is_date(kind) or pa.types.is_boolean(kind):
        return name
    return f"CAST({name} AS VARCHAR)"
