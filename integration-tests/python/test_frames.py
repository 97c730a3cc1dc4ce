"""polars and pandas, on top of ADBC."""

import adbc_driver_flightsql.dbapi as adbc
import pandas as pd
import polars as pl
import pytest

import data

POLARS = lambda name: pytest.mark.feature("polars", name)  # noqa: E731
PANDAS = lambda name: pytest.mark.feature("pandas", name)  # noqa: E731


def polars(conn, sql, **kwargs):
    return pl.read_database(sql, conn, **kwargs)


def pandas(conn, sql, **kwargs):
    # Without its pyarrow types, pandas makes floats of integers that can be NULL.
    return pd.read_sql(sql, conn, dtype_backend="pyarrow", **kwargs)



def both(feature):
    return pytest.mark.parametrize("read", [pytest.param(polars, id="polars", marks=POLARS(feature)), pytest.param(pandas, id="pandas", marks=PANDAS(feature))])


@both("connect")
def test_connect(conn, read):
    assert list(read(conn, "SELECT 1 AS x")["x"]) == [1]


@both("statements")
def test_statements(conn, read):
    frame = read(conn, "SELECT n_name, n_nationkey FROM nation ORDER BY n_nationkey LIMIT 3")
    assert list(frame.columns) == ["n_name", "n_nationkey"]
    assert list(frame["n_name"]) == ["ALGERIA", "ARGENTINA", "BRAZIL"]


@POLARS("parameters")
def test_polars_parameters(conn):
    assert polars(conn, "SELECT b FROM t WHERE a = ?", execute_options={"parameters": (1,)})["b"].to_list() == ["x"]


@PANDAS("parameters")
@pytest.mark.xfail(strict=True, raises=NotImplementedError, reason="pandas passes no parameters to ADBC connections")
def test_pandas_parameters(conn):
    assert list(pandas(conn, "SELECT b FROM t WHERE a = ?", params=(1,))["b"]) == ["x"]


@both("types")
def test_types(conn, read):
    frame = read(conn, "SELECT * FROM types ORDER BY id")
    want = data.typed(data.TYPES)
    for name in ("c_bool", "c_i64", "c_f64", "c_d9", "c_utf8", "c_binary", "c_tsus", "c_tsutc", "c_date32"):
        values = frame[name].to_list() if read is polars else list(frame[name])
        assert values[3] is None or pd.isna(values[3])
        assert values[:3] == want[name].to_pylist()[:3], name


@POLARS("rare-types")
def test_polars_rare_types(conn):
    frame = polars(conn, "SELECT c_u64, c_list, c_struct, c_dict, c_duration FROM rare ORDER BY id")
    assert frame["c_u64"].to_list() == [0, 2**64 - 1, 1, None]
    assert frame["c_list"].to_list() == [[], [1, None, 3], [2], None]


@PANDAS("rare-types")
def test_pandas_rare_types(conn):
    frame = pandas(conn, "SELECT c_u64, c_list, c_struct, c_dict, c_duration FROM rare WHERE id < 4 ORDER BY id")
    assert list(frame["c_u64"]) == [0, 2**64 - 1, 1]


@both("empty")
def test_empty(conn, read):
    frame = read(conn, "SELECT * FROM empty")
    assert len(frame) == 0 and "c_d38" in frame.columns


@both("wide")
def test_wide(conn, read):
    assert read(conn, "SELECT * FROM wide").shape == (2, data.WIDE)


@both("million")
def test_million(conn, read):
    frame = read(conn, "SELECT id, name FROM big")
    assert len(frame) == data.BIG and frame["id"].sum() == data.BIG * (data.BIG - 1) // 2


@both("errors")
def test_errors(conn, read):
    with pytest.raises((adbc.Error, pd.errors.DatabaseError), match="nowhere"):
        read(conn, "SELECT * FROM nowhere")


@POLARS("connect")
def test_polars_batches(conn):
    batches = list(polars(conn, "SELECT id FROM big", iter_batches=True, batch_size=100_000))
    assert sum(len(b) for b in batches) == data.BIG
