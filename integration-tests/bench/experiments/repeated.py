"""The same statement again and again with the cache of results, which all else here runs without."""

import contextlib

import contenders
import tables
from lab import size
from race import broken, mean, race, ratio
from server import serving
from statements import EIGHT

DEFAULTS = {"rows": [10**6], "rounds": 4, "seconds": 2.0}
LIMIT = size("512MiB")


def run(arguments):
    (rows,) = arguments.rows
    if not contenders.settings(engine__result_cache_limit=LIMIT):
        return {"absent": "the server has no cache of results", "problems": []}
    folder = tables.ten(rows)
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        oracle, without, cached = enter(contenders.oracle(folder)), enter(serving(contenders.setup(arguments, folder))), enter(serving(contenders.setup(arguments, folder, results=LIMIT)))
        (ours,), (theirs,) = enter(contenders.updraft(without)), enter(contenders.updraft(cached))
        figures = race([ours, contenders.Contender("cached", theirs.query)], EIGHT, oracle, arguments)
    gain = [1 / value for row in figures["rows"] if (value := ratio(row, "cached"))]
    return figures | {"size": rows, "mean": round(mean(gain), 3) if gain else None, "problems": broken(figures["rows"])}
