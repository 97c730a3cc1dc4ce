"""TPC-H at scale 0.1 through the Python clients."""

import pytest

import fsql
import tpch


@pytest.mark.parametrize("name", tpch.QUERIES)
@pytest.mark.feature("pyarrow.flight", "tpch")
def test_tpch_pyarrow(client, folder, name):
    tpch.check(name, tpch.rows(fsql.query(client, tpch.QUERIES[name])), tpch.answer(folder, name))


@pytest.mark.parametrize("name", tpch.QUERIES)
@pytest.mark.feature("ADBC (Python)", "tpch")
def test_tpch_adbc(cur, folder, name):
    cur.execute(tpch.QUERIES[name])
    tpch.check(name, tpch.rows(cur.fetch_arrow_table()), tpch.answer(folder, name))
