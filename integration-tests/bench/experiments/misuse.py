"""Clients that misbehave: what they cost, for how long, and what another client notices of them.

A client beside counts all the while. The budget is small, so that what is held for a client that does not read shows. What waits for
its reader is ended after 3 s here, and who does not answer is closed after 4 s, so that the end of each can be seen.
"""

import contextlib
import socket
import threading
import time

import contenders
import raw
import tables
from beside import bystander
from lab import mib, note, size
from server import serving

from experiments.connections import COUNT, SCAN, handles

# `clients`: of each kind. `seconds`: how long the client beside is measured alone.
DEFAULTS = {"rows": [10**6], "clients": [50], "queries": 5_000, "seconds": 5.0, "budget": size("512MiB"), "hot": size("256MiB")}
IDLE_STREAM_SECONDS, KEEPALIVE_SECONDS = 3, 2
SETTINGS = {
    "engine__idle_stream_timeout": f"{IDLE_STREAM_SECONDS}s",
    "flight__limits__keepalive_interval": f"{KEEPALIVE_SECONDS}s",
    "flight__limits__keepalive_timeout": f"{KEEPALIVE_SECONDS}s",
}
# What is not over so long after its limit is held for ever, as far as this experiment can tell.
GRACE_SECONDS = 15
# A server that bears a thousand resets has nothing more to say.
RESET_SECONDS = 3


class Held(Exception):
    """The server holds what it should have let go of."""


def streaming(server, arguments, stack, receive_buffer=4096):
    """Clients that have asked for the whole table and read nothing of it yet."""
    connections = []
    for _ in range(arguments.clients[0]):
        connection = raw.Connection(server, receive_buffer)
        stack.callback(connection.close)
        connection.greeted()
        frames, _ = connection.request("DoGet", connection.ticket(SCAN))
        connection.send(frames)
        connections.append(connection)
    return connections


def reads_one_byte_a_second(server, arguments, stack):
    connections, ended = streaming(server, arguments, stack), threading.Event()
    for connection in connections:  # One that is sent nothing yet must not keep the others waiting.
        connection.socket.setblocking(False)

    def read():
        while not ended.wait(1):
            for connection in connections:
                with contextlib.suppress(OSError):
                    connection.socket.recv(1)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    # The last in is the first out: it reads until the end, and is gone before its connections are.
    stack.callback(reader.join)
    stack.callback(ended.set)


def stops_reading(server, arguments, stack):
    streaming(server, arguments, stack)


def gives_no_window(server, stack, clients, streams, rows):
    """Reads all there is, and answers when it is asked whether it lives, but makes no room for more: nothing but the limit for what waits
    for its reader ends these streams."""
    for _ in range(clients):
        connection = raw.Connection(server, window=raw.WINDOW_DEFAULT)
        stack.callback(connection.close)
        connection.greeted()
        ticket = connection.ticket(f"{SCAN} LIMIT {rows}")
        for _ in range(streams):
            connection.send(connection.request("DoGet", ticket)[0])

        def read(connection=connection):
            with contextlib.suppress(raw.Gone):
                while True:
                    with contextlib.suppress(TimeoutError):
                        connection.read()

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        stack.callback(reader.join)
        stack.callback(lambda connection=connection: hang_up(connection))
    return f"{clients * streams:,} results"


def hang_up(connection):
    with contextlib.suppress(OSError):  # The server was first.
        connection.socket.shutdown(socket.SHUT_RDWR)


def gives_no_window_for_large_results(server, arguments, stack):
    return gives_no_window(server, stack, clients=4, streams=2 * arguments.clients[0], rows=25_000)


def gives_no_window_for_small_results(server, arguments, stack):
    return gives_no_window(server, stack, clients=arguments.clients[0], streams=20, rows=5_600)


def is_killed_while_it_reads(server, arguments, stack):
    for connection in streaming(server, arguments, stack):
        connection.vanish()


def is_gone_without_a_word(server, arguments, stack):
    """As a machine that lost its network: nothing answers, nothing closes. The server has to close by itself."""
    connections = []
    for _ in range(arguments.clients[0]):
        connection = raw.Connection(server)
        stack.callback(connection.close)
        connection.greeted()
        connection.query("SELECT 1")
        connections.append(connection)
    end = time.monotonic() + 2 * KEEPALIVE_SECONDS + GRACE_SECONDS
    left = connections
    while (left := [connection for connection in left if not connection.closed()]) and time.monotonic() < end:
        time.sleep(0.1)
    if left:
        raise Held(f"{len(left)} of {len(connections)} not closed")


def resets(server, arguments, stack):
    """A thousand streams on each of several connections, each reset at once."""
    sent = refused = 0
    for _ in range(5):
        connection = raw.Connection(server)
        stack.callback(connection.close)
        connection.greeted()
        ticket = connection.ticket(SCAN)
        connection.socket.settimeout(RESET_SECONDS)
        try:
            for _ in range(1_000):
                frames, stream = connection.request("DoGet", ticket)
                connection.send(frames + connection.reset(stream))
                sent += 1
            while connection.read()[0] != raw.GOAWAY:
                pass
            refused += 1
        except raw.Gone:
            refused += 1
        except TimeoutError:  # It bears them all.
            pass
    return f"{sent:,} streams reset, {refused} of 5 connections closed"


def never_fetches(server, arguments, stack):
    connection = raw.Connection(server)
    stack.callback(connection.close)
    connection.greeted()
    for number in range(arguments.queries):
        connection.ticket(f"SELECT category, sum(amount) AS total FROM {tables.TEN} WHERE qty < {number % 100} AND id > {number} GROUP BY category")
    return f"{arguments.queries:,} plans"


def does_nothing(server, arguments, stack):
    time.sleep(arguments.seconds)


KINDS = {
    "does nothing": does_nothing,
    "reads one byte a second": reads_one_byte_a_second,
    "stops reading": stops_reading,
    "gives no window for large results": gives_no_window_for_large_results,
    "gives no window for small results": gives_no_window_for_small_results,
    "is killed while it reads": is_killed_while_it_reads,
    "is gone without a word": is_gone_without_a_word,
    "resets its streams": resets,
    "asks and never fetches": never_fetches,
}


def over(server):
    """Waits until nothing runs or waits to be read, not even the count beside, which comes and goes. Whether that happens."""
    end = time.monotonic() + 2 * IDLE_STREAM_SECONDS + GRACE_SECONDS
    while (status := server.status())["running"] + status["sending"] > 0:
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def misuse(server, arguments, do):
    with contextlib.ExitStack() as stack:
        before, busy = server.watch.reset(), sum(server.usage.cpu_times()[:2])
        with bystander(server, "count", COUNT) as beside:
            begin = time.monotonic()
            try:
                said = do(server, arguments, stack)
                ended = over(server)
            except Held as held:
                said, ended = str(held), False
            held = round(time.monotonic() - begin, 2) if ended else None
        peak, cpu = server.watch.settled_peak(), sum(server.usage.cpu_times()[:2]) - busy
    time.sleep(1)
    return {"said": said, "before": before, "peak": peak, "after": server.rss(), "cpu_s": round(cpu, 2), "held_s": held, "beside": beside}


def run(arguments):
    (rows,) = arguments.rows
    handles(1_000)
    folder, found, problems = tables.ten(rows), {}, []
    with serving(contenders.setup(arguments, folder, more=contenders.settings(**SETTINGS))) as server:
        if contenders.hot(server) is not None:
            contenders.call(server, f"/hot/preload/{tables.TEN}")
        for kind, do in KINDS.items():
            found[kind] = of = misuse(server, arguments, do)
            note(f"{kind}: {mib(of['peak'] - of['before'])} more at most, {mib(of['after'] - of['before'])} after, over in {of['held_s']} s, {of['said'] or ''}; beside it p99 {of['beside']['p99_ms']} ms")
            if of["held_s"] is None:
                problems.append(f"misuse, {kind}: not over: {of['said'] or 'its queries still run'}")
            if of["peak"] > server.setup.bound():
                problems.append(f"misuse, {kind}: {mib(of['peak'])} resident, may be {mib(server.setup.bound())}")
            problems += [f"misuse, {kind}: another client: {error}" for error in of["beside"]["errors"][:1]]
    return {"rows": rows, "clients": arguments.clients[0], "kinds": found, "problems": problems}
