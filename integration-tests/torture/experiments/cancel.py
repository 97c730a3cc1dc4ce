"""From cancelling a heavy query, at a random moment, until the server has released all it held.

Three ways to cancel: the client's own call, the CancelFlightInfo action, and the death of the client's process. Released means that
the server says so (`/status`): nothing runs, nothing is reserved that was not before, nothing is on disk. The processors must come
to rest too: an operator that goes on computing for nobody may hold none of that.
"""

import contextlib
import pathlib
import random
import subprocess
import sys
import threading
import time

import fsql
import load
from common import setup_of, spread
from heavy import HEAVY
from lab import note
from server import serving

DEFAULTS = {"queries": 300, "scale": 0.5}
SECONDS_MAX = 30
# Of one core, for a server that does nothing for anybody, and how soon it must come down to that. What was held is given back to the
# system first, which takes a moment.
REST_SHARE, REST_SECONDS = 0.2, 2
CLIENT = pathlib.Path(__file__).parents[1] / "client.py"


def run(arguments):
    rng, times, restless, missed = random.Random(arguments.seed), {way: [] for way in STARTED}, [], 0
    slowest = []
    with serving(setup_of(arguments)) as server:
        with server.client() as (client, _):
            load.fetch(client, "SELECT count(*) FROM nation")
        idle = server.settled()
        for number in range(arguments.queries):
            query, way = rng.choice(HEAVY), list(STARTED)[number % len(STARTED)]
            seconds = cancel(server, query, way, rng.uniform(0.01, 1.0), idle)
            if seconds is None:
                missed += 1
                continue
            times[way].append(seconds)
            slowest.append({"shape": query.shape, "way": way, "ms": round(seconds * 1e3, 1)})
            if server.busy(0.1) > REST_SHARE and not server.idle(REST_SECONDS, REST_SHARE):
                restless.append(query.shape)
                note(f"STILL BUSY {REST_SECONDS} s AFTER ITS CANCEL: {query.shape}, {way}")
            if seconds > 0.25:
                note(f"{query.shape}, {way}: {seconds * 1e3:.0f} ms")
    slowest.sort(key=lambda row: -row["ms"])
    return {
        "cancelled": len(slowest),
        "ended_before": missed,
        "all": spread(sum(times.values(), [])),
        "ways": {way: spread(values) for way, values in times.items() if values},
        "restless": restless,
        "slowest": slowest[:10],
    }


def cancel(server, query, way, after, idle):
    """Seconds until all is released; None when the query had ended before it was cancelled."""
    with STARTED[way](server, query.sql) as stop:
        time.sleep(after)
        server.ended()
        begin = time.monotonic()
        with contextlib.suppress(*load.ERRORS):  # An action comes too late when the query has ended.
            stop()
        seconds = released(server, begin, idle)
    return seconds if any(line["status"] == "cancelled" for line in server.ended()) else None


@contextlib.contextmanager
def child(server, sql):
    """A client in a process of its own that runs the statement."""
    process = subprocess.Popen([sys.executable, CLIENT, server.uri, sql], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    process.stdout.readline()
    yield process
    process.kill()
    process.communicate()


@contextlib.contextmanager
def by_call(server, sql):
    def stop():
        client.stdin.write("cancel\n")
        client.stdin.flush()

    with child(server, sql) as client:
        yield stop


@contextlib.contextmanager
def by_death(server, sql):
    with child(server, sql) as client:
        yield client.kill


@contextlib.contextmanager
def by_action(server, sql):
    def read():
        with contextlib.suppress(StopIteration, *load.ERRORS):
            reader = client.do_get(info.endpoints[0].ticket)
            while True:
                reader.read_chunk()

    with server.client() as (client, _):
        info = client.get_flight_info(fsql.statement(sql))
        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        yield lambda: fsql.cancel(client, info)
        thread.join()


STARTED = {"call": by_call, "action": by_action, "death": by_death}


def released(server, begin, idle):
    while True:
        status = server.status()
        now = time.monotonic()
        if status["running"] == 0 and status["spilled_bytes"] == 0 and status["memory_reserved_bytes"] <= idle:
            return now - begin
        if now - begin > SECONDS_MAX:
            raise SystemExit(f"NOT RELEASED {SECONDS_MAX} s AFTER A CANCEL: {status}")
        # To a tenth of the time: who asks a thousand times a second takes a core from what is to be released.
        time.sleep(min(0.01, max(0.001, (now - begin) / 10)))
