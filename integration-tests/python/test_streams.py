"""Streams side by side: the endpoints of one result, compression of one and not of the other, and a hundred readers of any pace."""

import concurrent.futures
import contextlib
import random
import threading
import time

import adbc_driver_flightsql.dbapi as adbc
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from adbc_driver_flightsql import ConnectionOptions, DatabaseOptions
from pyarrow import flight

import data
import fsql
import harness
from conftest import record

MIB = 1 << 20
ROWS = 1_000_000
READERS = 100
# Readers that all take what they can.
FELLOWS = 6
# What may wait for one of them: in the engine, with HTTP/2, and a message that is made beside one that is on its way.
STREAM_BUFFER, SEND_BUFFER, MESSAGE = MIB, MIB // 2, 2 * MIB
# What a hundred connections and queries take beside.
BESIDE = 64 * MIB


def header(**values):
    return flight.FlightCallOptions(headers=[(f"x-updraft-{name}".encode(), str(value).encode()) for name, value in values.items()])


def read(uri, ticket):
    with flight.FlightClient(uri) as client:
        return client.do_get(ticket).read_all()


@pytest.mark.parametrize("endpoints", [2, 8])
def test_endpoints_read_side_by_side_are_the_result(server, client, endpoints):
    sql = "SELECT id, name FROM big"
    info = client.get_flight_info(fsql.statement(sql), header(endpoints=endpoints))
    assert 1 < len(info.endpoints) <= endpoints and not info.ordered
    with concurrent.futures.ThreadPoolExecutor(endpoints) as pool:
        parts = list(pool.map(lambda endpoint: read(server.uri, endpoint.ticket), info.endpoints))
    table = pa.concat_tables(parts)
    assert table.sort_by("id").equals(fsql.query(client, sql + " ORDER BY id")), "each row is in one part"
    # A part is fetched once.
    with pytest.raises((pa.ArrowInvalid, pa.ArrowException), match="run (it|the query) again"):
        read(server.uri, info.endpoints[0].ticket)
    assert server.idle()


def test_endpoints_of_a_join_one_after_the_other(client):
    info = client.get_flight_info(fsql.statement("SELECT a.id FROM big a JOIN big b ON a.id = b.id"), header(endpoints=2))
    assert len(info.endpoints) == 2
    in_time = flight.FlightCallOptions(timeout=60)
    parts = [client.do_get(endpoint.ticket, in_time).read_all() for endpoint in info.endpoints]
    assert pc.count_distinct(pa.concat_tables(parts)["id"]).as_py() == data.BIG


def test_endpoints_through_adbc(server):
    kwargs = {DatabaseOptions.WITH_COOKIE_MIDDLEWARE.value: "true"}
    with adbc.connect(server.uri, db_kwargs=kwargs, autocommit=True) as conn, conn.cursor() as cur:
        conn.adbc_connection.set_options(**{ConnectionOptions.OPTION_SESSION_OPTION_PREFIX.value + "endpoints": "2"})
        # All endpoints at once, over one connection.
        cur.execute("SELECT id FROM big")
        ids = cur.fetch_arrow_table()["id"]
        assert len(ids) == data.BIG == pc.count_distinct(ids).as_py()
        parts, _ = cur.adbc_execute_partitions("SELECT id FROM big")
        assert len(parts) == 2


def test_endpoints_that_nobody_fetches_cost_nothing(server, client):
    for _ in range(50):
        client.get_flight_info(fsql.statement("SELECT * FROM big"), header(endpoints=8))
    assert server.idle()


def test_compression_is_of_one_stream(server, client):
    sql = "SELECT * FROM types ORDER BY id"
    plain = fsql.query(client, sql)
    readers = []
    for codec in ("lz4", "none", "zstd"):
        info = client.get_flight_info(fsql.statement(sql), header(wire_compression=codec))
        readers.append(client.do_get(info.endpoints[0].ticket))
    for reader in readers:
        assert reader.read_all().equals(plain)


@pytest.mark.timeout(300)
def test_a_hundred_readers_of_any_pace_disturb_nobody(tmp_path):
    """Most read as fast as they can, some stop after the first batch. The server keeps a bounded amount for each, and answers small
    queries meanwhile."""
    ids = pa.array(range(ROWS), pa.int64())
    numbers = ids.cast(pa.float64())
    folder = tmp_path / "data"
    folder.mkdir()
    # Numbers are sent from where they are; texts are put together for each reader.
    pq.write_table(pa.table({"id": ids, "v": numbers, "text": ids.cast(pa.string())}), folder / "rows.parquet", row_group_size=250_000)
    bounds = [f"engine.stream_buffer={STREAM_BUFFER}", f"flight.limits.max_send_buffer={SEND_BUFFER}", f"flight.message_size={MESSAGE}"]
    # The table stays in memory, so that the scans themselves take next to nothing: with less, what queries reserve takes its place.
    settings = ["engine.memory_limit=4GiB", 'hot.preload=["rows"]', "engine.target_partitions=2", f"engine.max_concurrent_queries={READERS}", *bounds]
    done = threading.Event()
    failures = []

    def reader(server, number):
        try:
            with flight.FlightClient(server.uri) as client:
                info = client.get_flight_info(fsql.statement("SELECT * FROM rows"))
                rows = 0
                for chunk in client.do_get(info.endpoints[0].ticket):
                    rows += chunk.data.num_rows
                    if number % 5 == 0:
                        done.wait()  # It holds its stream open and takes nothing.
                        break
                    if number % 5 == 1:
                        time.sleep(random.uniform(0, 0.02))
                assert number % 5 == 0 or rows == ROWS, rows
        except Exception as error:  # noqa: BLE001
            failures.append(f"{number}: {error}")

    with harness.serve(folder, settings=settings, log=tmp_path / "log") as server, flight.FlightClient(server.uri) as client:
        fsql.query(client, "SELECT * FROM rows LIMIT 1")
        before, most, waits = server.rss(), 0, []
        threads = [threading.Thread(target=reader, args=(server, number)) for number in range(READERS)]
        with contextlib.ExitStack() as ended:
            ended.callback(lambda: [thread.join() for thread in threads])
            ended.callback(done.set)
            for thread in threads:
                thread.start()
            busy = [thread for number, thread in enumerate(threads) if number % 5]
            while any(thread.is_alive() for thread in busy):
                begin = time.monotonic()
                assert fsql.query(client, "SELECT count(*) AS n FROM rows").to_pydict() == {"n": [ROWS]}
                waits.append(time.monotonic() - begin)
                most = max(most, server.rss())
                time.sleep(0.05)
        record("hundred_readers", rss_before_mib=before // MIB, rss_max_mib=most // MIB, small_query_seconds=[round(max(waits), 3), round(sorted(waits)[len(waits) // 2], 4)])
        assert not failures, failures[:5]
        assert most - before < READERS * (STREAM_BUFFER + SEND_BUFFER + 2 * MESSAGE) + BESIDE, most // MIB
        # The machine is busy with a hundred readers, in this process; a queue behind them would be all of their time.
        assert sorted(waits)[len(waits) // 2] < 2, waits
        assert server.idle()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("connections", [1, FELLOWS])
def test_readers_of_one_pace_come_along_together(tmp_path, connections):
    """Whoever comes first does not have all of the way to the clients, nor do those that came before keep out who comes last."""
    (tmp_path / "data").mkdir()
    read = [0] * FELLOWS
    begin, first_is_done = threading.Barrier(FELLOWS), threading.Event()

    def reader(client, number):
        info = client.get_flight_info(fsql.statement("SELECT value FROM generate_series(1, 20000000)"))
        begin.wait(60)
        for chunk in client.do_get(info.endpoints[0].ticket):
            if first_is_done.is_set():
                return
            read[number] += chunk.data.num_rows
        first_is_done.set()

    settings = [f"engine.max_concurrent_queries={FELLOWS}"]
    with harness.serve(tmp_path / "data", settings=settings, log=tmp_path / "log") as server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(flight.FlightClient(server.uri)) for _ in range(connections)]
        pool = stack.enter_context(concurrent.futures.ThreadPoolExecutor(FELLOWS))
        for done in [pool.submit(reader, clients[number % connections], number) for number in range(FELLOWS)]:
            done.result(100)
    record(f"readers_of_one_pace_{connections}", shares=[round(rows / max(read), 2) for rows in sorted(read)])
    assert min(read) > max(read) / 4, read


@pytest.mark.timeout(120)
def test_a_slow_reader_leaves_its_turn_to_others(tmp_path):
    """It takes each message within a second, and so slowly that its query only waits for it: with a small window, as clients in other
    languages have, it never stops for longer."""
    (tmp_path / "data").mkdir()
    small_window = [("grpc.http2.lookahead_bytes", 64 << 10), ("grpc.http2.bdp_probe", 0)]
    stop = threading.Event()

    def read_slowly(uri):
        with flight.FlightClient(uri, generic_options=small_window) as client:
            info = client.get_flight_info(fsql.statement("SELECT value FROM generate_series(1, 100000000)"))
            read, begin = 0, time.monotonic()
            for chunk in client.do_get(info.endpoints[0].ticket):
                read += chunk.data.nbytes
                if stop.wait(max(0, begin + read / 2e6 - time.monotonic())):
                    return read
        raise AssertionError("it has read all")

    settings = ["engine.max_concurrent_queries=1", "engine.queue_timeout=40s"]
    with harness.serve(tmp_path / "data", settings=settings, log=tmp_path / "log") as server, flight.FlightClient(server.uri) as client:
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            reader = pool.submit(read_slowly, server.uri)
            try:
                time.sleep(2)
                heavy = "SELECT count(*) AS n FROM (SELECT DISTINCT value % 300000 FROM generate_series(1, 1000000) t(value))"
                assert fsql.query(client, heavy).to_pydict() == {"n": [300_000]}
            finally:
                stop.set()
            assert reader.result() > 0
        assert server.idle()
