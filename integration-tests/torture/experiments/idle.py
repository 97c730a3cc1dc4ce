"""What is resident before load, ten seconds after it, and ten seconds after the same load once more.

Pages of the program are counted apart from the rest: code that ran for the first time stays mapped until the system wants the page,
and a server that has answered three statements has touched less of it than one that has answered them all. So does what the allocator
needs to keep account of as much memory as there was at a time. The second load finds all that done: what it leaves behind would grow
with every load. The promise is held against both.
"""

import time

import load
import queries
from common import oracle_of, setup_of
from lab import MIB, note
from server import NO_CACHE, serving

DEFAULTS = {"queries": 200, "clients": 8, "scale": 0.2}
SECONDS = 10
# What is kept for the next time is there to stay, within bounds of its own; here it would hide what is left behind.
NOTHING_KEPT = (NO_CACHE, "engine.plan_cache_limit=0B", "engine.planned_max=16")
# Once each before the load: the code and the threads of a first query stay, and are no memory of a query.
WARM = ("SELECT 1", "SELECT l_shipmode, count(*) FROM lineitem GROUP BY 1", "SELECT max(o_comment) FROM orders JOIN customer ON o_custkey = c_custkey WHERE o_orderkey < 1000")


def run(arguments):
    oracle = oracle_of(arguments)
    statements = [queries.make(arguments.seed, number) for number in range(arguments.queries)]
    oracle.prepare(statements)
    arguments.set = [*arguments.set, *NOTHING_KEPT]
    with serving(setup_of(arguments)) as server:
        time.sleep(1)
        fresh, fresh_own = server.watch.now, server.watch.anonymous
        with server.client() as (client, _):
            for sql in WARM:
                load.fetch(client, sql)
        time.sleep(SECONDS)
        idle, idle_own = server.watch.now, server.watch.anonymous
        outcomes = load.run(server.client, statements, oracle, arguments.clients)
        time.sleep(SECONDS)
        after, after_own = server.watch.now, server.watch.anonymous
        outcomes += load.run(server.client, statements, oracle, arguments.clients)
        peak = server.watch.peak
        time.sleep(SECONDS)
        again, again_own = server.watch.now, server.watch.anonymous
    note(f"fresh {fresh / MIB:.0f} MiB, idle {idle / MIB:.0f} MiB, peak {peak / MIB:.0f} MiB, {SECONDS} s later {after / MIB:.0f} MiB, again {again / MIB:.0f} MiB")
    return {
        "fresh": fresh,
        "idle": idle,
        "peak": peak,
        "after": after,
        "again": again,
        "over_idle": round(after / idle - 1, 3),
        "over_after": round(again / after - 1, 3),
        # Of these, what is not the program.
        "own": {"fresh": fresh_own, "idle": idle_own, "after": after_own, "again": again_own},
        "verdicts": load.counts(outcomes),
    }
