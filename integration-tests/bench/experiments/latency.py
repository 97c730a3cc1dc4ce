"""What a statement costs that has nothing to compute: `SELECT 1` over Flight, against pyarrow's C++ server with a fixed table of one
row; and through an ADBC cursor, against ROAPI."""

import contextlib
import gc
import random
import time

import adbc_driver_flightsql.dbapi as adbc
from pyarrow import flight

import contenders
import peers
import tables
from lab import ms, note, percentile
from server import serving

DEFAULTS = {"rows": [10**5], "rounds": 1_000}
SQL = "SELECT 1 AS x"
WARM_UPS = 50


def by_cursor(connection):
    """Opened, executed (which prepares), fetched, closed."""

    def query():
        with connection.cursor() as cursor:
            cursor.execute(SQL)
            return cursor.fetch_arrow_table()

    return query


def interleaved(asks, rounds, seed):
    """{name: times in milliseconds} of all of `asks`, each once in each round; and what is wrong."""
    order, runs, wrong = random.Random(seed), {name: [] for name in asks}, set()
    gc.collect()
    gc.disable()
    for number in range(-min(WARM_UPS, rounds), rounds):
        order.shuffle(drawn := list(asks))
        for name in drawn:
            begin = time.perf_counter()
            table = asks[name]()
            seconds = time.perf_counter() - begin
            if table.num_rows != 1 or table.column(0)[0].as_py() != 1:
                wrong.add(f"latency, {name}: {table.to_pydict()}")
            if number >= 0:
                runs[name].append(seconds)
    gc.enable()
    return {name: {"n": rounds, "p50_ms": ms(percentile(found, 0.5)), "p99_ms": ms(percentile(found, 0.99))} for name, found in runs.items()}, sorted(wrong)


def run(arguments):
    (rows,), absent = arguments.rows, {}
    folder = tables.ten(rows)
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        server = enter(serving(contenders.setup(arguments, folder)))
        arrow, _ = enter(contenders.script("arrow_flight", folder))
        connect = lambda uri: enter(flight.FlightClient(uri))  # noqa: E731
        ours, fixed = contenders.over_flight(connect(server.uri)), contenders.over_flight(connect(arrow), contenders.text)
        by_flight, wrong = interleaved({"updraft": lambda: ours(SQL), "arrow": lambda: fixed(peers.wanted("one"))}, arguments.rounds, arguments.seed)
        cursors = {"updraft": by_cursor(enter(adbc.connect(server.uri, autocommit=True)))}
        try:
            roapi, _ = enter(contenders.roapi_server(folder))
            cursors["roapi"] = by_cursor(enter(adbc.connect(f"grpc://{roapi}", autocommit=True)))
        except (OSError, RuntimeError, adbc.Error) as error:
            absent["roapi"] = str(error).splitlines()[0][:200]
        by_adbc, also_wrong = interleaved(cursors, arguments.rounds, arguments.seed)
    for way, found in (("Flight", by_flight), ("ADBC", by_adbc)):
        note(f"{way}: " + ", ".join(f"{name} {of['p50_ms']} ms, p99 {of['p99_ms']} ms" for name, of in found.items()))
    return {"flight": by_flight, "adbc": by_adbc, "absent": absent, "problems": [words for words in wrong + also_wrong if ", updraft:" in words]}
