"""An object store that is slow, or fails now and then: the answers are right, and the requests few."""

import contextlib
import time

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from pyarrow import flight

import fsql
import harness
import slow_s3

pytestmark = pytest.mark.timeout(180)
ROWS = 120_000
GROUPS = 12
CONFIG = """
[catalog]
data = ["s3://lake/"]
[catalog.stores.slow]
url = "s3://lake"
endpoint = "{endpoint}"
region = "us-east-1"
allow_http = true
anonymous = true
"""


@pytest.fixture(scope="module")
def lake(tmp_path_factory):
    """`many`: two files of twelve row groups. `text`: a CSV of several megabytes."""
    folder = tmp_path_factory.mktemp("lake")
    (folder / "many").mkdir()
    for part in range(2):
        ids = range(part * ROWS, (part + 1) * ROWS)
        # Of no two rows alike, so that they are not packed to nothing.
        rows = pa.table({"id": ids, "words": [f"{i * 2654435761 % 2**32:x}" for i in ids], "value": [i * 7919 % 1000 for i in ids]})
        pq.write_table(rows, folder / "many" / f"{part}.parquet", row_group_size=ROWS // GROUPS)
    text = pa.table({"n": range(ROWS), "filler": ["x" * 60] * ROWS})
    pyarrow.csv.write_csv(text, folder / "text.csv")
    return folder


@contextlib.contextmanager
def reading(lake, tmp_path, settings=(), **manners):
    """A server over the bucket: (client, the bucket)."""
    with slow_s3.serving(lake, **manners) as store:
        (config := tmp_path / "slow.toml").write_text(CONFIG.format(endpoint=store.endpoint))
        with harness.serve(None, config=config, settings=settings, log=tmp_path / "server.log") as server, flight.FlightClient(server.uri) as client:
            yield client, store


def one(client, sql):
    (row,) = fsql.query(client, sql).to_pylist()
    return tuple(row.values())


MANY = ("SELECT count(*), sum(id), sum(value), max(words) FROM many WHERE value >= 0", (2 * ROWS, ROWS * (2 * ROWS - 1), sum(i * 7919 % 1000 for i in range(2 * ROWS))))
TEXT = ("SELECT count(*), sum(n), max(length(filler)) FROM text", (ROWS, ROWS * (ROWS - 1) // 2, 60))


@pytest.mark.parametrize("hot", ["0B", "256MiB"])
def test_right_answers_of_a_store_that_is_slow_and_fails(lake, tmp_path, hot):
    manners = {"latency": 0.005, "slow_fraction": 0.05, "slow_latency": 0.5, "fail_fraction": 0.05}
    with reading(lake, tmp_path, [f"hot.memory_limit={hot}"], **manners) as (client, store):
        for sql, expected in (MANY, TEXT) * 3:
            assert one(client, sql)[: len(expected)] == expected
        counts = store.ask("counts")
        assert counts["failed"] > 0, "it was no test"


def test_few_requests_at_the_same_time_and_no_byte_twice(lake, tmp_path):
    size = sum(path.stat().st_size for path in (lake / "many").iterdir())
    # None is asked twice for being slow: on a busy machine any may be.
    with reading(lake, tmp_path, ["catalog.stores.slow.hedge_after=0s"], latency=0.02) as (client, store):
        sql, expected = MANY
        assert one(client, sql)[:3] == expected
        counts = store.ask("counts")
        # Two footers, and one request for the three columns of each row group.
        assert counts["get"] <= 2 + 2 * GROUPS + 2, counts
        assert counts["bytes"] <= size + (256 << 10), counts
        assert counts["together"] >= 4, counts
        assert one(client, sql)[:3] == expected


def test_reads_that_hang_are_sent_again(lake, tmp_path):
    hangs, sql, expected = 3, *MANY
    with reading(lake, tmp_path, ["hot.memory_limit=0B", "catalog.stores.slow.hedge_after=1s"], slow_latency=25) as (client, store):
        # One read of 20 may be sent twice: it takes some until three may.
        for _ in range(4):
            store.ask("reset")
            assert one(client, sql)[:3] == expected
        quiet = store.ask("counts")["get"]
        store.ask("reset")
        store.ask("set", slow_next=hangs)
        started = time.monotonic()
        assert one(client, sql)[:3] == expected
        took, counts = time.monotonic() - started, store.ask("counts")
        assert took < 10, f"{took:.1f} s: it waited for those that hang"
        # Those that hang were not answered; all else was.
        assert counts["slowed"] == hangs, counts
        assert quiet <= counts["get"] <= quiet + hangs, (quiet, counts)


def test_a_store_that_fails_for_good_is_said_to_be_away(lake, tmp_path):
    with reading(lake, tmp_path) as (client, store):
        sql, expected = MANY
        store.ask("set", fail_fraction=1)
        with pytest.raises(flight.FlightUnavailableError, match="s3://lake"):
            fsql.query(client, sql)
        store.ask("set", fail_fraction=0)
        assert one(client, sql)[:3] == expected
