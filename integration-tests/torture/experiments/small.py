"""How long small queries take while heavy ones run all the time, against an idle server.

DataFusion's pools run without the cache of hot tables, which makes some of these queries much quicker. So our own pool is measured
without it too: that is what theirs is to be compared with.
"""

import contextlib
import threading
import time

import fsql
import load
from common import POOLS, setup_of, spread
from heavy import HEAVY
from lab import note, percentile
from server import NO_CACHE, serving

DEFAULTS = {"queries": 300, "clients": 4, "scale": 0.5}
SMALL = {
    "SELECT 1": "SELECT 1 AS one",
    "one row by its key": "SELECT * FROM orders WHERE o_orderkey = 7",
    "count(*)": "SELECT count(*) AS n FROM lineitem",
}
# One of each kind that holds a processor and memory for long.
LOADS = ("sort: lineitem by comment", "group: every row its own group", "join: then groups", "window: sums over few rows")


def run(arguments):
    figures = measured(arguments, setup_of(arguments))
    if arguments.pool == POOLS[0]:
        figures["without_cache"] = measured(arguments, setup_of(arguments, settings=(*arguments.set, NO_CACHE)))
    return figures


def measured(arguments, setup):
    with serving(setup) as server, server.client() as (client, _):
        measure(client, 20)
        idle = measure(client, arguments.queries)
        with heavies(server, arguments.clients) as finished:
            time.sleep(3)
            busy = measure(client, arguments.queries)
            log = server.ended()
        peak = server.watch.peak
    everything = {"idle": sum(idle.values(), []), "busy": sum(busy.values(), [])}
    figures = {
        "heavy_clients": arguments.clients,
        "heavy_finished": len(finished),
        "heavy_verdicts": load.counts(finished),
        "idle": {name: spread(times) for name, times in idle.items()} | {"all": spread(everything["idle"])},
        "busy": {name: spread(times) for name, times in busy.items()} | {"all": spread(everything["busy"])},
        "p50_ratio": round(percentile(everything["busy"], 0.5) / percentile(everything["idle"], 0.5), 2),
        "p99_ratio": round(percentile(everything["busy"], 0.99) / percentile(everything["idle"], 0.99), 2),
        "rss_peak": peak,
        "queued_ms_max": max((line.get("queue_ms", 0) for line in log), default=0),
    }
    note(f"p99 {figures['idle']['all']['p99_ms']} ms idle, {figures['busy']['all']['p99_ms']} ms busy")
    return figures


def measure(client, times):
    """{name: seconds of each run}, the kinds taking turns."""
    taken = {name: [] for name in SMALL}
    for _ in range(times):
        for name, sql in SMALL.items():
            begin = time.monotonic()
            fsql.query(client, sql)
            taken[name].append(time.monotonic() - begin)
    return taken


@contextlib.contextmanager
def heavies(server, clients):
    """Heavy statements without a pause for as long as the block lasts. Yields the list of their outcomes."""
    stop, finished = threading.Event(), []
    queries = [query for query in HEAVY if query.shape in LOADS]

    def work(number):
        with server.client() as (client, died):
            while not stop.is_set():
                # No answer to compare with: here only time counts. The digest is asked for, so that the answer is read.
                query = queries[number % len(queries)]
                finished.append(load.judge(client, query, None, 0, died=died))

    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield finished
    finally:
        stop.set()
        for thread in threads:
            thread.join()
