"""Loading several tables into the cache at once, against one after the other."""

import concurrent.futures
import time

import contenders
import tables
from lab import note, percentile
from server import serving

DEFAULTS = {"rows": [10**6], "rounds": 3}
TABLES = 8


def timed(server, load):
    """Seconds that `load` takes with an empty cache."""
    contenders.call(server, "/hot/clear")
    begin = time.perf_counter()
    load()
    return time.perf_counter() - begin


def run(arguments):
    (rows,) = arguments.rows
    folder = tables.many(TABLES, rows)
    names = list(tables.sources(folder))
    with serving(contenders.setup(arguments, folder)) as server:
        if contenders.hot(server) is None:
            return {"absent": "the server has no cache of hot tables", "problems": []}
        one = lambda name: contenders.call(server, f"/hot/preload/{name}")  # noqa: E731

        def together():
            with concurrent.futures.ThreadPoolExecutor(TABLES) as pool:
                list(pool.map(one, names))

        ways = {"one after the other": lambda: [one(name) for name in names], "at once": together}
        timed(server, together)  # The files come into the page cache.
        runs = {way: [] for way in ways}
        for _ in range(arguments.rounds):
            for way, load in ways.items():
                runs[way].append(timed(server, load))
        loaded = contenders.hot(server)["bytes"]
    seconds = {way: round(percentile(times, 0.5), 3) for way, times in runs.items()}
    note(", ".join(f"{way}: {taken:.2f} s" for way, taken in seconds.items()))
    return {"tables": TABLES, "rows": rows, "bytes": loaded, "seconds": seconds, "ratio": round(seconds["one after the other"] / seconds["at once"], 3), "problems": []}
