"""What more rows cost: time of a first and of a later run, and the server's memory, from 1e5 to 1e8 rows."""

import contenders
import tables
from lab import mib, note, size
from race import broken, race
from statements import BY_NAME

from experiments.eight import label

DEFAULTS = {"rows": [10**5, 10**6, 10**7, 10**8], "rounds": 3, "seconds": 2.0, "budget": size("12GiB"), "hot": size("9GiB")}
# A full scan of the largest size does not fit into the client.
ASKED = [BY_NAME[name] for name in ("count", "point lookup", "20 groups", "complex", "n/10 groups, top 10", "projection")]


def run(arguments):
    sizes, problems = {}, []
    for rows in arguments.rows:
        note(f"-- {rows:,} rows")
        folder = tables.ten(rows)
        with contenders.oracle(folder) as oracle, contenders.field(arguments, folder, ("updraft", "duckdb-parquet")) as (server, field, _):
            fresh = server.watch.now
            figures = race(field, ASKED, oracle, arguments, lambda: contenders.hot(server))
            figures |= {"rss_fresh": fresh, "rss_peak": server.watch.settled_peak(), "cache": contenders.hot(server)}
        note(f"peak {mib(figures['rss_peak'])}")
        figures["file_bytes"] = sum(path.stat().st_size for path in folder.rglob("*.parquet"))
        problems += broken(figures["rows"])
        sizes[label(rows)] = figures
    return {"sizes": sizes, "problems": problems}
