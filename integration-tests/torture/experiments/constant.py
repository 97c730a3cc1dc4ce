"""Peak memory of aggregating and of streaming 1e5 to 1e8 rows: more rows must not take more memory."""

import load
import tables
from common import setup_of
from lab import MIB, note
from server import serving

# `queries` is how many sizes.
DEFAULTS = {"queries": 4}
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
            with serving(setup_of(arguments, data=folder)) as server, server.client() as (client, _):
                before = server.watch.now
                seconds, read = load.drain(client, sql)
                peak = server.watch.settled_peak()
            assert read == (size if name == "stream" else 1000), f"{name} of {size} rows gave {read}"
            rows.append({"rows": size, "what": name, "rss_before": before, "rss_peak": peak, "seconds": round(seconds, 2)})
            note(f"{name} {size:.0e} rows: peak {peak / MIB:.0f} MiB, {seconds:.1f} s")
    flat = {}
    for name in STATEMENTS:
        peaks = [row["rss_peak"] for row in rows if row["what"] == name and row["rows"] >= 10**6]
        flat[name] = round(max(peaks) / min(peaks) - 1, 3) if peaks else None
    return {"rows": rows, "spread_from_1e6": flat}
