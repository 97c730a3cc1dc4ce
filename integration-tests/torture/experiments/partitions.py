"""The operator's table: a GROUP BY of 250,000 groups with a wide state, split into more and into fewer partitions.

The data is twenty files, and each holds every group, so that each partition gathers the state of all groups: memory in proportion to
the partitions is what the query asks for.
"""

import load
import tables
from common import POOLS, setup_of
from lab import MIB, host_memory, note
from oracle import Oracle
from queries import Query
from server import serving

DEFAULTS = {"queries": 5}
GROUPS, FILES, COLUMNS = 250_000, 20, 8
PARTITIONS = ("20", "10", "4", "2", "auto")
BUDGET = 3 << 30


def run(arguments):
    # --scale makes it smaller, for a first look.
    groups = int(GROUPS * (arguments.scale or 1))
    file_rows = 2 * groups
    # Two rows in a row for each group of a file: a lower ratio of groups to rows makes no engine skip its first aggregation.
    columns = [f"i % {file_rows} // 2 AS k", *(f"'state {n} ' || lpad(CAST({tables.below(n, 1000)} AS VARCHAR), 24, '0') AS s{n}" for n in range(COLUMNS))]
    recipe = f"{groups} {FILES} {columns}"
    folder = tables.made("groups", recipe, lambda target: tables.alone(target, "groups", file_rows * FILES, columns, FILES))
    state = ", ".join(f"min(s{n}) AS a{n}, max(s{n}) AS b{n}" for n in range(COLUMNS))
    checks = ", ".join(f"sum(length(a{n}) + length(b{n})) AS c{n}" for n in range(COLUMNS))
    query = Query(0, "group by", f"SELECT count(*) AS n, {checks} FROM (SELECT k, {state} FROM groups GROUP BY k) AS g")
    want = answer_of(folder, query.sql)
    rows = []
    # Without a budget the pools do not differ.
    for budget in (int(host_memory() * 0.7), BUDGET) if arguments.pool == POOLS[0] else (BUDGET,):
        for partitions in PARTITIONS[-arguments.queries :]:
            setup = setup_of(arguments, data=folder, budget=budget, partitions=partitions, in_cgroup=budget == BUDGET)
            with serving(setup, may_die=True) as server, server.client() as (client, died):
                outcome = load.judge(client, query, want, 0, died=died)
                log = server.last_ended()
            rows.append(
                {
                    "partitions": partitions,
                    "budget": budget if budget == BUDGET else None,
                    "verdict": outcome.verdict,
                    "seconds": outcome.seconds,
                    "rss_peak": server.left["rss_peak"],
                    "message": outcome.message,
                    **log,
                }
            )
            note(f"{partitions} partitions, budget {budget / MIB:.0f} MiB: {outcome.verdict}, {outcome.seconds} s, peak {rows[-1]['rss_peak'] / MIB:.0f} MiB {outcome.message[:200]}")
    return {"groups": groups, "rows_read": file_rows * FILES, "rows": rows}


def answer_of(folder, sql):
    oracle = Oracle(folder, tables.stamp(folder))
    try:
        return oracle.answer(sql)
    finally:
        oracle.close()
