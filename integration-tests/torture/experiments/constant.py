"""Peak memory of aggregating and of streaming 1e5 to 1e8 rows: more rows must not take more memory.

One peak is chance: it is what waits for the client, and what the allocator has not given back yet, at the worst moment of a run. So
each size runs several times, by a server of its own each time, and the median counts.
"""

import statistics

import load
import tables
from common import setup_of
from lab import MIB, note
from server import serving

# `queries` is how many sizes.
DEFAULTS = {"queries": 4, "repeat": 3}
SIZES = (10**5, 10**6, 10**7, 10**8)
# As DuckDB writes them by default. With a million rows in each, 1e6 would be one, which only one partition can read: not only the
# number of rows would differ.
GROUP_ROWS = 122_880
STATEMENTS = {"aggregate": "SELECT v, count(*) AS n, sum(id) AS s, max(id) AS m FROM rows GROUP BY v", "stream": "SELECT id, v FROM rows"}


def run(arguments):
    rows = []
    for size in SIZES[: arguments.queries]:
        columns = ["i AS id", f"CAST({tables.below(1, 1000)} AS INTEGER) AS v"]
        make = lambda target: tables.alone(target, "rows", size, columns, 1, GROUP_ROWS, ", PARQUET_VERSION v2")  # noqa: B023, E731
        folder = tables.made(f"rows-{size:.0e}", f"{size} {columns} {GROUP_ROWS}", make)
        for name, sql in STATEMENTS.items():
            runs = [once(setup_of(arguments, data=folder), sql, size if name == "stream" else 1000) for _ in range(arguments.repeat)]
            rows.append({"rows": size, "what": name} | summary(runs))
            note(f"{name} {size:.0e} rows: peak {rows[-1]['rss_peak'] / MIB:.0f} MiB ({rows[-1]['rss_peak_min'] / MIB:.0f} to {rows[-1]['rss_peak_max'] / MIB:.0f}), {rows[-1]['seconds']} s")
    flat = {}
    for name in STATEMENTS:
        peaks = [row["rss_peak"] for row in rows if row["what"] == name and row["rows"] >= 10**6]
        flat[name] = round(max(peaks) / min(peaks) - 1, 3) if peaks else None
    return {"rows": rows, "spread_from_1e6": flat}


def once(setup, sql, expected):
    with serving(setup) as server, server.client() as (client, _):
        before = server.watch.now
        seconds, read = load.drain(client, sql)
        peak = server.watch.settled_peak()
    assert read == expected, f"{sql} gave {read} rows"
    return {"rss_before": before, "rss_peak": peak, "seconds": round(seconds, 2)}


def summary(runs):
    """The medians of some runs, and how far apart their peaks lie."""
    peaks = [run["rss_peak"] for run in runs]
    # Of an even number the lower of the two in the middle: a size that was measured.
    return {name: statistics.median_low(run[name] for run in runs) for name in runs[0]} | {"rss_peak_min": min(peaks), "rss_peak_max": max(peaks), "runs": len(runs)}
