"""The cache under a skewed load over four times more than fits: hit rate and bytes, with and without scans of everything between.

64 tables are asked for by Zipf's law, the first 64 times as often as the last. What a cache of a quarter of them can reach is the
share of the 16 that are asked for most.
"""

import itertools
import random

import answers
import contenders
import tables
from lab import mib, note, percent
from server import serving

DEFAULTS = {"rows": [200_000], "queries": 2_000}
TABLES, SHARE = 64, 4
# A scan of all tables after so many queries: what an import, a backup or a curious person does.
SCAN_EVERY = 200
SQL = "SELECT count(*) AS n, sum(amount) AS total, max(score) AS best FROM {table} WHERE qty <> 50"
WEIGHTS = [1 / rank for rank in range(1, TABLES + 1)]


def names(seed):
    """The tables, the one asked for most first."""
    drawn = [f"{tables.TEN}{number:02}" for number in range(TABLES)]
    random.Random(seed).shuffle(drawn)
    return drawn


def load(arguments, folder, limit, scans):
    """Asks, half of the queries unmeasured; returns the cache's figures over the rest."""
    order, popular = random.Random(arguments.seed + 1), names(arguments.seed)
    asked = [[name] for name in order.choices(popular, WEIGHTS, k=arguments.queries)]
    if scans:
        asked = [query for number, query in enumerate(asked) for query in ([query, sorted(popular)] if number % SCAN_EVERY == 0 else [query])]
    wrong, most = 0, 0
    with contenders.oracle(folder) as oracle, serving(contenders.setup(arguments, folder, hot=limit)) as server, contenders.updraft(server) as (ours,):
        right = {name: answers.answer(oracle(SQL.format(table=name)), True) for name in popular}
        counted = {"hits": 0, "misses": 0}
        for number, query in enumerate(asked):
            before = contenders.hot(server)
            for name in query:
                wrong += answers.difference(ours.query(SQL.format(table=name)), right[name]) is not None
            after = contenders.hot(server)
            most = max(most, after["bytes"])
            # A scan's own misses are no fault of the cache; what it pushes out shows in the queries after it.
            if number >= len(asked) // 2 and len(query) == 1:
                counted = {key: counted[key] + after[key] - before[key] for key in counted}
        return counted | {"limit": limit, "bytes_most": most, "rate": rate(counted), "wrong": wrong}


def rate(counted):
    return round(counted["hits"] / max(1, sum(counted.values())), 4)


def working_set(arguments, folder):
    """Bytes of all that the queries ask for, in a cache that holds it; None if the server has no cache."""
    with serving(contenders.setup(arguments, folder)) as server, contenders.updraft(server) as (ours,):
        for name in itertools.chain(names(arguments.seed), names(arguments.seed)):
            ours.query(SQL.format(table=name))
        found = contenders.hot(server)
        return found and found["bytes"]


def run(arguments):
    (rows,) = arguments.rows
    folder = tables.many(TABLES, rows)
    everything = working_set(arguments, folder)
    if everything is None:
        return {"absent": "the server has no cache of hot tables", "problems": []}
    if everything == 0:
        return {"absent": "the cache is empty after queries", "problems": ["skew: the cache is empty after each table was asked for twice"]}
    best = sum(WEIGHTS[: TABLES // SHARE]) / sum(WEIGHTS)
    figures = {"working_set": everything, "best_rate": round(best, 4), "tables": TABLES, "queries": arguments.queries}
    for kind, scans in (("plain", False), ("scans", True)):
        figures[kind] = found = load(arguments, folder, everything // SHARE, scans)
        note(f"{kind}: hit rate {percent(found['rate'])} of at best {percent(best)}, at most {mib(found['bytes_most'])} of {mib(found['limit'])}")
    wrong = sum(figures[kind]["wrong"] for kind in ("plain", "scans"))
    over = [kind for kind in ("plain", "scans") if figures[kind]["bytes_most"] > figures[kind]["limit"]]
    problems = [f"skew: {wrong} wrong answers"] * bool(wrong) + [f"skew, {kind}: the cache held more than its limit" for kind in over]
    return figures | {"problems": problems}
