"""What is resident before load, and ten seconds after it."""

import time

import load
import queries
from common import oracle_of, setup_of
from lab import MIB, note
from server import serving

DEFAULTS = {"queries": 200, "clients": 8, "scale": 0.2}
SECONDS = 10
# Once each before the load: the code and the threads of a first query stay, and are no memory of a query.
WARM = ("SELECT 1", "SELECT l_shipmode, count(*) FROM lineitem GROUP BY 1", "SELECT max(o_comment) FROM orders JOIN customer ON o_custkey = c_custkey WHERE o_orderkey < 1000")


def run(arguments):
    oracle = oracle_of(arguments)
    statements = [queries.make(arguments.seed, number) for number in range(arguments.queries)]
    oracle.prepare(statements)
    # What is cached is there to stay; here it would hide what is left behind.
    arguments.set = [*arguments.set, "hot.memory_limit=0B"]
    with serving(setup_of(arguments)) as server:
        time.sleep(1)
        fresh = server.watch.now
        with server.client() as (client, _):
            for sql in WARM:
                load.fetch(client, sql)
        time.sleep(SECONDS)
        idle = server.watch.now
        outcomes = load.run(server.client, statements, oracle, arguments.clients)
        peak = server.watch.peak
        time.sleep(SECONDS)
        after = server.watch.now
    note(f"fresh {fresh / MIB:.0f} MiB, idle {idle / MIB:.0f} MiB, peak {peak / MIB:.0f} MiB, {SECONDS} s later {after / MIB:.0f} MiB")
    return {"fresh": fresh, "idle": idle, "peak": peak, "after": after, "over_idle": round(after / idle - 1, 3), "verdicts": load.counts(outcomes)}
