"""The eight queries over the table of ten columns, hot, at each number of rows."""

import contenders
import tables
from lab import note
from race import broken, mean, race, ratio
from statements import EIGHT

DEFAULTS = {"rows": [10**5, 10**6, 10**7], "rounds": 4, "seconds": 3.0}


def label(rows):
    """1e5 of 100000."""
    return f"{rows:.0e}".replace("e+0", "e") if rows else "0"


def peers(rows):
    """For each peer: its time against Updraft's, statement by statement, and the geometric mean."""
    found = {}
    for peer in contenders.NAMES:
        each = {row["statement"]: round(value, 3) for row in rows if (value := ratio(row, peer))}
        if peer != "updraft" and each:
            found[peer] = {"each": each, "mean": round(mean(each.values()), 3)}
    return found


def run(arguments):
    sizes, absent, problems = {}, {}, []
    for rows in arguments.rows:
        note(f"-- {rows:,} rows")
        folder = tables.ten(rows)
        with contenders.oracle(folder) as oracle, contenders.field(arguments, folder) as (server, field, missing):
            figures = race(field, EIGHT, oracle, arguments, lambda: contenders.hot(server))
            memory = {contender.name: contender.memory() for contender in field if contender.memory}
        absent |= missing
        problems += broken(figures["rows"])
        sizes[label(rows)] = figures | {"ratios": peers(figures["rows"]), "memory": memory}
    return {"sizes": sizes, "absent": absent, "problems": problems}
