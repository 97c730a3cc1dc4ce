"""Many clients at once, and one that reads slowly."""

import concurrent.futures
import time

import adbc_driver_flightsql.dbapi as adbc
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import flight

import fsql
import harness
from conftest import record

CONNECTIONS, STATEMENTS = 100, 100
SLOW_ROWS = 10_000_000
MIB = 1 << 20


@pytest.mark.timeout(600)
def test_100_connections_of_100_statements(server):
    def one(number):
        failures = []
        with adbc.connect(server.uri, autocommit=True) as conn:
            for at in range(STATEMENTS):
                with conn.cursor() as cur:
                    try:
                        cur.execute(f"SELECT {number} AS n, count(*) AS c FROM nation WHERE n_nationkey < {at % 25}")
                        assert cur.fetchall() == [(number, at % 25)]
                    except Exception as error:  # noqa: BLE001
                        failures.append(f"{number}/{at}: {error}")
        return failures

    begin = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(CONNECTIONS) as pool:
        failures = [failure for result in pool.map(one, range(CONNECTIONS)) for failure in result]
    seconds = time.monotonic() - begin
    record("100_connections_100_statements", seconds=round(seconds, 1), per_second=round(CONNECTIONS * STATEMENTS / seconds), failures=len(failures), rss_mib=server.rss() // MIB)
    assert not failures, failures[:5]


@pytest.mark.timeout(600)
@pytest.mark.feature("pyarrow.flight", "million")
def test_slow_reader_of_ten_million_rows_keeps_memory_flat(tmp_path):
    """The reader pauses at every 2 % of the rows; the server's resident memory must not grow with what waits to be sent."""
    folder = tmp_path / "data"
    folder.mkdir()
    with pq.ParquetWriter(folder / "rows.parquet", pa.schema([("id", pa.int64()), ("v", pa.float64()), ("name", pa.string())])) as writer:
        for start in range(0, SLOW_ROWS, 500_000):
            ids = pa.array(range(start, start + 500_000), pa.int64())
            writer.write_table(pa.table([ids, ids.cast(pa.float64()), ids.cast(pa.string())], names=["id", "v", "name"]), row_group_size=100_000)
    # Without the cache of hot tables, which keeps what it is given to read.
    settings = ["engine.memory_limit=512MiB", "engine.target_partitions=2", "hot.memory_limit=0B"]
    with harness.serve(folder, settings=settings, log=tmp_path / "log") as server, flight.FlightClient(server.uri) as client:
        fsql.query(client, "SELECT count(*) AS n, max(v) AS m FROM rows")
        info = client.get_flight_info(fsql.statement("SELECT * FROM rows"))
        before, rows, sent, samples, next_pause = server.rss(), 0, 0, [], SLOW_ROWS // 50
        for chunk in client.do_get(info.endpoints[0].ticket):
            rows, sent = rows + chunk.data.num_rows, sent + chunk.data.nbytes
            if rows >= next_pause:
                next_pause += SLOW_ROWS // 50
                time.sleep(0.2)
                samples.append(server.rss())
        record("slow_reader_10m_rows", rows=rows, sent_mib=sent // MIB, rss_before_mib=before // MIB, rss_mib=[s // MIB for s in samples], rss_max_mib=max(samples) // MIB)
        assert rows == SLOW_ROWS
        # Flat: the second half is no higher than the first, and all of it is far below what was sent.
        half = len(samples) // 2
        assert max(samples[half:]) <= max(samples[:half]) + 48 * MIB, [s // MIB for s in samples]
        assert max(samples) - before < sent / 3, [s // MIB for s in samples]
