"""Clients that misbehave: what they cost, for how long, and what another client notices of them.

A client beside counts all the while. The budget is small, so that what is held for a client that does not read shows. What waits for
its reader is ended after 3 s here, who does not answer is closed after 4 s, and a ticket is good for 5 s, so that the end of each can
be seen.
"""

import contextlib
import functools
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
IDLE_STREAM_SECONDS, KEEPALIVE_SECONDS, TICKET_SECONDS = 3, 2, 5
SETTINGS = {
    "engine__idle_stream_timeout": f"{IDLE_STREAM_SECONDS}s",
    "engine__ticket_ttl": f"{TICKET_SECONDS}s",
    "flight__limits__keepalive_interval": f"{KEEPALIVE_SECONDS}s",
    "flight__limits__keepalive_timeout": f"{KEEPALIVE_SECONDS}s",
}
# What is not over so long after its limit is held for ever, as far as this experiment can tell.
GRACE_SECONDS = 15
# A server that bears a thousand resets has nothing more to say.
RESET_SECONDS = 3
# How often the server looks for tickets that are no longer good.
SWEEP_SECONDS = 30
# What misuse may leave: less than a client's share of the budget. What the client beside may wait: many times what it waits here, and
# still less than it would behind a queue.
AFTER_MAX, BESIDE_P99_MAX_MS = 128 << 20, 1_000


class Held(Exception):
    """The server holds what it should have let go of."""


def connected(server, stack, **how):
    connection = raw.Connection(server, **how)
    stack.callback(connection.close)
    connection.greeted()
    return connection


def asked(connection, sql):
    """The stream of a whole answer that was asked for, of which nothing is read yet."""
    frames, stream = connection.request("DoGet", connection.ticket(sql))
    connection.send(frames)
    return stream


def streaming(server, arguments, stack):
    """Clients that have asked for the whole table and read nothing of it yet."""
    connections = [connected(server, stack, receive_buffer=4096) for _ in range(arguments.clients[0])]
    for connection in connections:
        asked(connection, SCAN)
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
        connection = connected(server, stack, window=raw.WINDOW_DEFAULT)
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
    """Nothing answers, nothing closes. The server has to close by itself."""
    connections = [connected(server, stack) for _ in range(arguments.clients[0])]
    for connection in connections:
        connection.query("SELECT 1")
    end = time.monotonic() + 2 * KEEPALIVE_SECONDS + GRACE_SECONDS
    left = connections
    while (left := [connection for connection in left if not connection.closed()]) and time.monotonic() < end:
        time.sleep(0.1)
    if left:
        raise Held(f"{len(left)} of {len(connections)} not closed")


def is_gone_in_the_middle_of_an_answer(server, arguments, stack):
    for _ in range(arguments.clients[0]):
        connection = connected(server, stack)
        connection.begun(asked(connection, SCAN))
        connection.deafen()


def resets(server, arguments, stack):
    """A thousand streams on each of several connections, each reset at once."""
    sent = refused = 0
    for _ in range(5):
        connection = connected(server, stack)
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


def takes_the_first_bytes_and_resets(server, arguments, stack):
    """What no limit of streams that are reset before they are looked at can see: each answer has begun."""
    times = arguments.queries // 5
    for connection in [connected(server, stack) for _ in range(5)]:
        for _ in range(times // 5):
            connection.begun(stream := asked(connection, SCAN))
            connection.send(connection.reset(stream))
    return f"{times // 5 * 5:,} answers"


def never_fetches(server, arguments, stack, endpoints=1):
    connection = connected(server, stack)
    for number in range(arguments.queries):
        connection.ticket(f"SELECT id, name FROM {tables.TEN} WHERE qty < {number % 100} AND id > {number}", endpoints=endpoints)
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
    "is gone in the middle of an answer": is_gone_in_the_middle_of_an_answer,
    "resets its streams": resets,
    "takes the first bytes and resets": takes_the_first_bytes_and_resets,
    "asks and never fetches": never_fetches,
    "asks for 8 endpoints and never fetches": functools.partial(never_fetches, endpoints=8),
}
# Those that leave tickets: they are over when the server has forgotten these.
LEAVE_TICKETS = ("asks and never fetches", "asks for 8 endpoints and never fetches")


def over(server):
    """Waits until nothing runs or waits to be read, not even the count beside, which comes and goes. Whether that happens."""
    end = time.monotonic() + 2 * IDLE_STREAM_SECONDS + GRACE_SECONDS
    while (status := server.status())["running"] + status["sending"] > 0:
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def forgotten(server):
    """Waits until no ticket is good any more; those of the count beside are, until it ends. Whether that happens."""
    end = time.monotonic() + TICKET_SECONDS + SWEEP_SECONDS + GRACE_SECONDS
    while server.status()["planned"]["entries"] > 0:
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def misuse(server, arguments, kind):
    with contextlib.ExitStack() as stack:
        before, busy = server.watch.reset(), sum(server.usage.cpu_times()[:2])
        with bystander(server, "count", COUNT) as beside:
            begin = time.monotonic()
            try:
                said = KINDS[kind](server, arguments, stack)
                ended = over(server)
            except Held as held:
                said, ended = str(held), False
            end = time.monotonic()
        if kind in LEAVE_TICKETS and ended:
            ended, end = forgotten(server), time.monotonic()
        peak, cpu = server.watch.settled_peak(), sum(server.usage.cpu_times()[:2]) - busy
    time.sleep(1)
    return {"said": said, "before": before, "peak": peak, "after": server.rss(), "cpu_s": round(cpu, 2), "held_s": round(end - begin, 2) if ended else None, "beside": beside}


def run(arguments):
    (rows,) = arguments.rows
    handles(1_000)
    folder, found, problems = tables.ten(rows), {}, []
    with serving(contenders.setup(arguments, folder, more=contenders.settings(**SETTINGS))) as server:
        if contenders.hot(server) is not None:
            contenders.call(server, f"/hot/preload/{tables.TEN}")
        for kind in KINDS:
            found[kind] = of = misuse(server, arguments, kind)
            note(f"{kind}: {mib(of['peak'] - of['before'])} more at most, {mib(of['after'] - of['before'])} after, over in {of['held_s']} s, {of['said'] or ''}; beside it p99 {of['beside']['p99_ms']} ms")
            if of["held_s"] is None:
                problems.append(f"misuse, {kind}: not over: {of['said'] or 'its queries still run'}")
            if of["peak"] > server.setup.bound():
                problems.append(f"misuse, {kind}: {mib(of['peak'])} resident, may be {mib(server.setup.bound())}")
            if of["after"] - of["before"] > AFTER_MAX:
                problems.append(f"misuse, {kind}: {mib(of['after'] - of['before'])} more after it is over")
            if of["beside"]["p99_ms"] > BESIDE_P99_MAX_MS:
                problems.append(f"misuse, {kind}: another client waits {of['beside']['p99_ms']} ms (p99)")
            problems += [f"misuse, {kind}: another client: {error}" for error in of["beside"]["errors"][:1]]
    return {"rows": rows, "clients": arguments.clients[0], "kinds": found, "problems": problems}
