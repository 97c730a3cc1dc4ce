"""Each heavy statement with a budget of a tenth of its working set.

The working set is what the server's memory grows by when the statement runs alone with as much as the machine has: what it really
took, whatever a pool counted. It is measured with the pool under test's rivals too, so it is kept, once for each data.
"""

import json

import load
import tables
from common import oracle_of, setup_of
from heavy import HEAVY
from lab import MIB, host_memory, note
from server import serving, smallest_budget

DEFAULTS = {"queries": len(HEAVY), "scale": 1.0}
SECONDS_MAX = 300


def run(arguments):
    oracle = oracle_of(arguments)
    statements = HEAVY[: arguments.queries]
    oracle.prepare(statements)
    sets = working_sets(arguments, oracle, statements)
    smallest = smallest_budget(arguments.pool)
    rows = [at_a_tenth(arguments, oracle, query, sets[query.shape], smallest) for query in statements]
    tenths = [row for row in rows if row["is_tenth"]]
    return {
        "statements": len(rows),
        "smallest_budget": smallest,
        "verdicts": load.counts(rows),
        "finished": share(rows),
        "tenths": len(tenths),
        "finished_at_a_tenth": share(tenths),
        "oom_kills": sum(row["oom_kills"] or 0 for row in rows),
        "rows": rows,
    }


def share(rows):
    return round(sum(row["verdict"] == "ok" for row in rows) / len(rows), 4) if rows else None


def at_a_tenth(arguments, oracle, query, working_set, smallest):
    budget = max(working_set // 10, smallest)
    setup = setup_of(arguments, budget=budget)
    with serving(setup, may_die=True) as server, server.client() as (client, died):
        outcome = load.judge(client, query, oracle.answer(query.sql), 0, SECONDS_MAX, died)
        log = server.last_ended()
    left = server.left
    note(f"{outcome.verdict:9} {query.shape}: {working_set / MIB:.0f} MiB at {budget / MIB:.0f} MiB, {outcome.seconds} s, peak {left['rss_peak'] / MIB:.0f} MiB {outcome.message[:200]}")
    return {
        "shape": query.shape,
        "working_set": working_set,
        "budget": budget,
        # The server's least budget can be more than a tenth of a small working set.
        "is_tenth": budget * 9 <= working_set,
        "verdict": outcome.verdict,
        "message": outcome.message,
        "seconds": outcome.seconds,
        "rss_peak": left["rss_peak"],
        "within_bound": left["rss_peak"] <= setup.bound(1.25, 256),
        "oom_kills": left["cgroup"]["oom_kills"] if left["cgroup"] else None,
        **log,
    }


def working_sets(arguments, oracle, statements):
    """{shape: bytes}; measured where it is not known for this data."""
    folder = tables.folder(arguments.scale)
    path = folder.with_name(f"{folder.name}.working-sets.json")
    stamp = tables.stamp(folder)
    known = json.loads(path.read_text()) if path.exists() else {}
    sets = known.get(stamp, {})
    # The plainest pool: it hands out what is asked for.
    ample = setup_of(arguments, budget=int(host_memory() * 0.7), pool="greedy", in_cgroup=False)
    for query in statements:
        if query.shape in sets:
            continue
        with serving(ample) as server, server.client() as (client, died):
            load.fetch(client, "SELECT count(*) FROM nation")
            before = server.watch.reset()
            outcome = load.judge(client, query, oracle.answer(query.sql), 0, SECONDS_MAX, died)
            server.watch.sample()
            sets[query.shape] = server.watch.peak - before
        note(f"working set of {query.shape}: {sets[query.shape] / MIB:.0f} MiB ({outcome.verdict}, {outcome.seconds} s)")
        path.write_text(json.dumps({stamp: sets}, indent=1))
    return sets
