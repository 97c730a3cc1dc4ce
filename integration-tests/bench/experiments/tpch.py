"""The 22 queries of TPC-H, hot."""

import contenders
import tables
from race import broken, median, race
from statements import tpch_at

DEFAULTS = {"scale": 1.0, "rounds": 3, "seconds": 0.0}


def total(rows, name):
    """Milliseconds of all statements that a contender answers, those of Updraft for the same, and how many these are."""
    both = [(median(row, name), median(row, "updraft")) for row in rows]
    both = [pair for pair in both if None not in pair]
    theirs, ours = (round(sum(side), 2) for side in zip(*both, strict=True)) if both else (None, None)
    return {"ms": theirs, "updraft_ms": ours, "statements": len(both), "ratio": round(theirs / ours, 3) if ours else None}


def run(arguments):
    folder = tables.tpch(arguments.scale)
    with contenders.oracle(folder) as oracle, contenders.field(arguments, folder) as (server, field, absent):
        figures = race(field, tpch_at(arguments.scale), oracle, arguments, lambda: contenders.hot(server))
        memory = {contender.name: contender.memory() for contender in field if contender.memory}
    totals = {contender.name: total(figures["rows"], contender.name) for contender in field}
    return figures | {"scale": arguments.scale, "totals": totals, "memory": memory, "absent": absent, "problems": broken(figures["rows"])}
