"""What clients cost that do nothing, and what busy ones do to each other.

Memory: connections that are only open, that have asked once, and that have a session each; prepared statements. Then many idle and
many busy clients together, a client that counts beside one that streams, and a hundred that stream at once.
"""

import concurrent.futures
import contextlib
import resource
import time

from pyarrow import flight

import contenders
import fsql
import peers
import raw
import tables
from beside import bystander
from lab import mib, note
from server import serving

# `queries`: prepared statements. `clients`: idle ones, busy ones, and those that stream at once.
DEFAULTS = {"rows": [10**6], "clients": [2_000, 200, 100], "queries": 10_000, "seconds": 10.0}
COUNT, SCAN = f"SELECT count(*) AS n FROM {tables.TEN}", f"SELECT * FROM {tables.TEN}"
SETTLE_SECONDS = 1.0
# Connections that are made and closed first, so that what is made once is there.
FIRST = 50


def handles(wanted):
    """Raises the number of files that this process and its children may have open."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard if hard != resource.RLIM_INFINITY else wanted, hard))
    return hard == resource.RLIM_INFINITY or hard >= wanted


def started(arguments, folder, idle):
    """A server that lets in so many, its table hot."""
    more = contenders.settings(flight__limits__max_connections=idle * 2 + 512, engine__sessions_max=idle * 2, engine__prepared_max=arguments.queries + 10, engine__prepared_per_session_max=arguments.queries + 10)
    return serving(contenders.setup(arguments, folder, more=more))


def resident(server):
    time.sleep(SETTLE_SECONDS)
    return server.rss()


def opened(server, stack, count):
    connections = []
    for _ in range(count):
        connection = raw.Connection(server)
        stack.callback(connection.close)
        connection.greeted()
        connections.append(connection)
    return connections


def session(connection):
    """A session with a setting of its own, by the action that makes one."""
    options = fsql.field(1, fsql.message(f1="time_zone", f2=fsql.session_value("Europe/Berlin")))
    connection.call("DoAction", fsql.message(f1="SetSessionOptions", f2=options))


def idle(arguments, folder, count):
    """Bytes of the server for one connection of each kind."""
    kinds = {"open": lambda connection: None, "asked once": lambda connection: connection.query("SELECT 1"), "with a session": session}
    found = {}
    for kind, do in kinds.items():
        with started(arguments, folder, count) as server, contextlib.ExitStack() as stack:
            with contextlib.ExitStack() as first:
                for connection in opened(server, first, min(FIRST, count)):
                    do(connection)
            before = resident(server)
            for connection in opened(server, stack, count):
                do(connection)
            found[kind] = round((resident(server) - before) / count)
        note(f"a connection, {kind}: {found[kind] / 1024:.1f} KiB")
    return found


def prepared(arguments, folder):
    """Bytes of the server for one prepared statement: all of the same text, and all of different ones."""
    texts = {
        "one text": lambda number: f"SELECT category, sum(amount) AS total FROM {tables.TEN} WHERE qty < 50 GROUP BY category",
        "texts of their own": lambda number: f"SELECT category, sum(amount) AS total FROM {tables.TEN} WHERE qty < {number} GROUP BY category",
    }
    found = {}
    for kind, text in texts.items():
        with started(arguments, folder, FIRST) as server, flight.FlightClient(server.uri) as client:
            for _ in range(FIRST):
                fsql.Prepared(client, text(0)).close()
            before = resident(server)
            for number in range(arguments.queries):
                fsql.Prepared(client, text(number))
            found[kind] = round((resident(server) - before) / arguments.queries)
        note(f"a prepared statement, {kind}: {found[kind] / 1024:.1f} KiB")
    return found


def crowd(arguments, folder, count, busy):
    """Busy clients alone, and beside idle ones."""
    try:
        peers.built("load")
    except RuntimeError as error:
        return {"absent": str(error)}
    asks, found = [(1, "SELECT 1 AS x"), (1, COUNT)], {}
    with started(arguments, folder, count) as server:
        for kind, held in (("alone", 0), ("beside idle ones", count)):
            with contextlib.ExitStack() as stack:
                opened(server, stack, held)
                found[kind] = peers.load(server.uri, busy, arguments.seconds, asks) | {"idle": held}
            note(f"{busy} busy clients, {held} idle: {found[kind]['per_second']:,.0f}/s, p99 {found[kind]['all']['p99_us']} us, {found[kind]['errors']} errors")
    return found


def fairness(arguments, folder):
    """One that counts and one that streams, each alone and both together."""
    with started(arguments, folder, FIRST) as server:
        if contenders.hot(server) is not None:
            contenders.call(server, f"/hot/preload/{tables.TEN}")
        found = {}
        for kind, counts, streams in (("count alone", True, False), ("stream alone", False, True), ("together", True, True)):
            with contextlib.ExitStack() as stack:
                fared = {what: stack.enter_context(bystander(server, what, sql)) for what, sql, wanted in (("count", COUNT, counts), ("stream", SCAN, streams)) if wanted}
                time.sleep(arguments.seconds)
            found[kind] = fared
            note(f"{kind}: {fared}")
    return found


def streams(arguments, folder, count):
    """So many clients that each read the whole table at once: the server's memory, and one that counts meanwhile."""
    with started(arguments, folder, count) as server:
        if contenders.hot(server) is not None:
            contenders.call(server, f"/hot/preload/{tables.TEN}")

        def drained(_):
            with flight.FlightClient(server.uri) as client:
                return sum(chunk.data.num_rows for endpoint in client.get_flight_info(fsql.statement(SCAN)).endpoints for chunk in client.do_get(endpoint.ticket))

        rows = drained(None)
        before = server.watch.reset()
        with bystander(server, "count", COUNT) as fared, concurrent.futures.ThreadPoolExecutor(count) as pool:
            begin = time.perf_counter()
            wrong = sum(got != rows for got in pool.map(drained, range(count)))
            seconds = time.perf_counter() - begin
        peak = server.watch.settled_peak()
    note(f"{count} streams at once: {seconds:.1f} s, {mib(peak - before)} more, count p99 {fared['p99_ms']} ms")
    return {"clients": count, "seconds": round(seconds, 2), "before": before, "peak": peak, "wrong": wrong, "count": fared}


def run(arguments):
    (rows,), (held, busy, streaming) = arguments.rows, arguments.clients
    if not handles(held + 1_000):
        return {"absent": f"this process may not have {held + 1_000:,} files open (ulimit -n)", "problems": []}
    folder = tables.ten(rows)
    figures = {
        "rows": rows,
        "held": held,
        "busy": busy,
        "statements": arguments.queries,
        "idle": idle(arguments, folder, held),
        "prepared": prepared(arguments, folder),
        "crowd": crowd(arguments, folder, held, busy),
        "fairness": fairness(arguments, folder),
        "streams": streams(arguments, folder, streaming),
    }
    problems = [f"connections, {kind}: {of['errors']} errors, such as {of['first_error']}" for kind, of in figures["crowd"].items() if kind != "absent" and of["errors"]]
    problems += [f"connections, {kind}: {what}: {of['errors'][0]}" for kind, each in figures["fairness"].items() for what, of in each.items() if of["errors"]]
    problems += [f"connections: {figures['streams']['wrong']} streams with other rows"] * bool(figures["streams"]["wrong"])
    return figures | {"problems": problems}
