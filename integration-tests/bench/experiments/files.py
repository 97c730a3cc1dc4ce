"""What more files cost: the same million rows in 1 to 10,000 of them."""

import contenders
import tables
from lab import mib, note
from race import broken, race
from statements import BY_NAME

DEFAULTS = {"rows": [10**6], "files": [1, 10, 100, 1_000, 10_000], "rounds": 5, "seconds": 2.0}
ASKED = [BY_NAME[name] for name in ("count", "point lookup", "20 groups")]


def run(arguments):
    (rows,), counts, problems = arguments.rows, {}, []
    for files in arguments.files:
        note(f"-- {rows:,} rows in {files:,} files")
        folder = tables.ten(rows, files)
        with contenders.oracle(folder) as oracle, contenders.field(arguments, folder, ("updraft", "duckdb-parquet")) as (server, field, _):
            figures = race(field, ASKED, oracle, arguments, lambda: contenders.hot(server))
            figures |= {"rss_peak": server.watch.settled_peak(), "cache": contenders.hot(server)}
        note(f"peak {mib(figures['rss_peak'])}")
        problems += broken(figures["rows"])
        counts[str(files)] = figures
    return {"rows": rows, "files": counts, "problems": problems}
