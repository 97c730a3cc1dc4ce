"""What a connection, a session and a statement cost, and what busy clients do to each other.

Memory: connections that are only open, that have asked once, and that have a session each; prepared statements. The time that each of
these takes. Then many idle and many busy clients together, a client that counts beside one that streams, and a hundred that stream at
once.
"""

import concurrent.futures
import contextlib
import resource
import ssl
import threading
import time

from pyarrow import flight

import contenders
import fsql
import harness
import peers
import raw
import secure
import tables
from beside import bystander
from lab import mib, ms, note, percentile
from server import serving

# `queries`: prepared statements. `clients`: idle ones, busy ones, and those that stream at once.
DEFAULTS = {"rows": [10**6], "clients": [2_000, 200, 100], "queries": 10_000, "seconds": 10.0}
COUNT, SCAN = f"SELECT count(*) AS n FROM {tables.TEN}", f"SELECT * FROM {tables.TEN}"
SETTLE_SECONDS = 1.0
# Connections that are made and closed first, so that what is made once is there.
FIRST = 50
# How often each is done that is timed.
TIMED = 1_000
# How often it is looked at what each of many streams has.
LOOK_SECONDS = 0.01
# Of streams that run side by side, the last has at least so much of what the middle one has, when half is sent. Only of long ones: a
# short one is a few messages.
FAIR_SHARE, FAIR_BYTES = 0.25, 32 << 20


def handles(wanted):
    """Raises the number of files that this process and its children may have open."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard if hard != resource.RLIM_INFINITY else wanted, hard))
    return hard == resource.RLIM_INFINITY or hard >= wanted


def started(arguments, folder, idle, more=()):
    """A server that lets in so many, its table hot."""
    own = contenders.settings(flight__limits__max_connections=idle * 2 + 512, engine__sessions_max=idle * 2, engine__prepared_max=arguments.queries + 10, engine__prepared_per_session_max=arguments.queries + 10)
    return serving(contenders.setup(arguments, folder, more=(*own, *more)))


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


def totals_below(number):
    return f"SELECT category, sum(amount) AS total FROM {tables.TEN} WHERE qty < {number} GROUP BY category"


def prepared(arguments, folder):
    """Bytes of the server for one prepared statement: all of the same text, and all of different ones."""
    texts = {"one text": lambda number: totals_below(50), "texts of their own": totals_below}
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


def prepare_and_close(connection, sql):
    action = lambda kind, subject: fsql.message(f1=kind, f2=fsql.any_(f"Action{kind}Request", f1=subject))  # noqa: E731
    (result,) = connection.call("DoAction", action("CreatePreparedStatement", sql))
    handle = fsql.unpack(fsql.parse(result)[1][0])[1][0]
    connection.answer("DoAction", action("ClosePreparedStatement", handle))


def times(arguments, folder):
    """How long it takes a client to begin: the same things as above, one after the other."""
    count, certs, found = min(TIMED, arguments.queries), secure.Certs(harness.WORK / "certs"), {}
    tls = ssl.create_default_context(cafile=certs.ca)
    tls.set_alpn_protocols(["h2"])

    def measure(kind, do):
        for number in range(min(FIRST, count)):
            do(number)
        taken = []
        for number in range(count):
            begin = time.perf_counter()
            do(number)
            taken.append(time.perf_counter() - begin)
        found[kind] = {"n": count, "p50_ms": ms(percentile(taken, 0.5)), "p99_ms": ms(percentile(taken, 0.99))}
        note(f"{kind}: p50 {found[kind]['p50_ms']} ms, p99 {found[kind]['p99_ms']} ms")

    def connects_and_asks(server, tls=None):
        with contextlib.closing(raw.Connection(server, tls=tls)) as connection:
            connection.query("SELECT 1")

    with started(arguments, folder, 2 * TIMED) as server, contextlib.closing(raw.Connection(server)) as connection:
        measure("`SELECT 1` over an open connection", lambda _: connection.query("SELECT 1"))
        measure("the same over a new one", lambda _: connects_and_asks(server))
        measure("a session: SetSessionOptions", lambda _: session(connection))
        measure("a statement prepared and closed", lambda number: prepare_and_close(connection, totals_below(number)))
    settings = (f"flight.tls.certificate={certs.server}", f"flight.tls.key={certs.server_key}")
    with started(arguments, folder, 2 * TIMED, more=settings) as server:
        measure("`SELECT 1` over a new connection with TLS", lambda _: connects_and_asks(server, tls))
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


def streams(arguments, folder, count, let_in=None):
    """So many clients that each ask for the whole table at once, of whom so many are let in at a time: the server's memory, what each has
    when half of all is sent, and one that counts meanwhile."""
    more = contenders.settings(engine__max_concurrent_queries=let_in) if let_in else ()
    with started(arguments, folder, count, more) as server:
        if contenders.hot(server) is not None:
            contenders.call(server, f"/hot/preload/{tables.TEN}")
        got, seen, ended = [0] * count, [], threading.Event()

        def drained(number):
            rows = 0
            with flight.FlightClient(server.uri) as client:
                for endpoint in client.get_flight_info(fsql.statement(SCAN)).endpoints:
                    for chunk in client.do_get(endpoint.ticket):
                        rows += chunk.data.num_rows
                        got[number] += chunk.data.nbytes
            return rows

        def look():
            while not ended.wait(LOOK_SECONDS):
                seen.append(list(got))

        rows, got[0] = drained(0), 0
        before, watch = server.watch.reset(), threading.Thread(target=look)
        with bystander(server, "count", COUNT) as fared, concurrent.futures.ThreadPoolExecutor(count) as pool:
            watch.start()
            begin = time.perf_counter()
            wrong = sum(each != rows for each in pool.map(drained, range(count)))
            seconds = time.perf_counter() - begin
            ended.set()
            watch.join()
        peak = server.watch.settled_peak()
    half = next((each for each in seen if sum(each) >= sum(got) / 2), got)
    spread = {"min": min(half), "p50": percentile(half, 0.5), "max": max(half)}
    note(f"{count} streams at once: {seconds:.1f} s, {mib(peak - before)} more, count p99 {fared['p99_ms']} ms; at half {' '.join(f'{name} {mib(value)}' for name, value in spread.items())}")
    return {"clients": count, "seconds": round(seconds, 2), "before": before, "peak": peak, "wrong": wrong, "bytes": max(got), "half": spread, "count": fared}


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
        "times": times(arguments, folder),
        "crowd": crowd(arguments, folder, held, busy),
        "fairness": fairness(arguments, folder),
        "streams": streams(arguments, folder, streaming),
        "at once": streams(arguments, folder, streaming, let_in=streaming),
    }
    problems = [f"connections, {kind}: {of['errors']} errors, such as {of['first_error']}" for kind, of in figures["crowd"].items() if kind != "absent" and of["errors"]]
    problems += [f"connections, {kind}: {what}: {of['errors'][0]}" for kind, each in figures["fairness"].items() for what, of in each.items() if of["errors"]]
    problems += [f"connections: {of['wrong']} streams with other rows" for of in (figures["streams"], figures["at once"]) if of["wrong"]]
    one, half = figures["at once"]["bytes"], figures["at once"]["half"]
    if one >= FAIR_BYTES and half["min"] < FAIR_SHARE * half["p50"]:
        problems.append(f"connections: with half of all sent, one of {streaming} streams had {mib(half['min'])}, the middle one {mib(half['p50'])}")
    return figures | {"problems": problems}
