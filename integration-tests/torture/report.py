"""docs/memory.md, written from the results under docs/memory: no figure in it is typed by hand."""

import json
import pathlib

import harness
from common import POOLS
from lab import MIB, mib, note, percent, table
from targets import TARGETS

DOCS = harness.ROOT / "docs"
KEPT, PAGE = DOCS / "memory", DOCS / "memory.md"
EXAMPLES = 3
WAYS = {"call": "the client cancels its call", "action": "CancelFlightInfo", "death": "the client's process is killed"}

INTRO = """# Memory

Written by `integration-tests/torture/run.py render` from the results in `docs/memory/`; change those by running an experiment anew,
never by hand. How the experiments work, and how one statement of a run is played again, is in `integration-tests/torture/README.md`.

`engine.memory_limit` is the one number: the *budget*. It bounds the whole process, not only what operators ask for. A query that does
not fit waits, runs with fewer partitions, or spills. It is refused when nothing smaller is left to try, and when memory runs out after
its first rows have gone to the client, as it cannot begin anew then; before either it waits up to ten seconds for what others hold.
`engine.memory_pool` selects who shares the budget out: `fair` is Updraft's own pool, `datafusion-fair` and `greedy` are DataFusion's
`FairSpillPool` and `GreedyMemoryPool` in the same server. They run without the cache of hot tables (`hot.memory_limit=0B`), which
cannot give back to them what it has: where a query is quicker in `fair`, a part of that may be the cache's. Their columns show what
the rest of the server cannot make up for. Commands are given without `--pool`, and with the pools that they were for where these
differ.

**Bold** reaches the aim, plain holds what must hold, *missed* says so.
"""


def load():
    """{(experiment, pool): result}"""
    results = (json.loads(path.read_text()) for path in sorted(KEPT.glob("*.json")))
    return {(result["experiment"], result["pool"]): result for result in results}


def keep(paths):
    """Takes results over into the repository, with a few examples of the statements that failed instead of all."""
    KEPT.mkdir(exist_ok=True)
    for path in paths:
        result = json.loads(pathlib.Path(path).read_text())
        for part in (result["figures"], result["figures"].get("serial", {}), result["figures"].get("concurrent", {})):
            if "failures" in part:
                part["failures"] = part["failures"][:EXAMPLES]
        (KEPT / f"{result['experiment']}-{result['pool']}.json").write_text(json.dumps(result, indent=1) + "\n")


def render(paths, check):
    keep(paths)
    text = page(load())
    if check:
        if not PAGE.exists() or PAGE.read_text() != text:
            note("docs/memory.md is not what docs/memory says: run integration-tests/torture/run.py render")
            return 1
        return 0
    PAGE.write_text(text)
    return 0


def page(results):
    parts = [INTRO, promises(results), partitions(results), constant(results), small(results), cancel(results), idle(results), tenth(results), shapes(results), origin(results)]
    return "\n".join(part for part in parts if part)


def pools(results, experiment):
    """The pools that have results of an experiment, our own first."""
    return [pool for pool in POOLS if (experiment, pool) in results]


def command(result):
    """The command of a result, for any pool."""
    words = result["command"].split()
    if "--pool" in words:
        at = words.index("--pool")
        words[at : at + 2] = []
    return f"`{' '.join(words).removeprefix('integration-tests/torture/')}`"


def commands(results, experiment):
    """The command of all pools that have results, or each with the pools that it was for."""
    by = {}
    for pool in pools(results, experiment):
        by.setdefault(command(results[experiment, pool]), []).append(pool)
    return " and ".join(text if len(by) == 1 else f"{text} ({', '.join(for_pools)})" for text, for_pools in by.items()) or "-"


def made_by(results, experiment):
    return f"Made by {commands(results, experiment)}.\n"


def promises(results):
    rows = []
    for target in TARGETS:
        cells = [cell(target, results.get((target.experiment, pool))) for pool in POOLS]
        rows.append([target.what, target.must, target.aim, *cells, commands(results, target.experiment)])
    return "## What is promised\n\n" + table(["what", "must", "aim", *POOLS, "made by"], rows)


def cell(target, result):
    if result is None:
        return "-"
    if "death" in result["figures"]:
        return "*missed*: the server died"
    value = target.value(result["figures"])
    return {"aim": f"**{value}**", "must": value, "missed": f"*missed*: {value}"}[target.level(result["figures"])]


def partitions(results):
    if not (names := pools(results, "partitions")):
        return ""
    first = results["partitions", names[0]]["figures"]
    if "death" in first:
        return ""
    wanted = list(dict.fromkeys(row["partitions"] for row in first["rows"]))
    head, rows = ["partitions", "without a budget", *(f"3 GiB, {pool}" for pool in names)], []
    for name in wanted:
        line = [name]
        for pool in names[:1]:
            line += [run_of(results, pool, name, False)]
        rows.append([*line, *(run_of(results, pool, name, True) for pool in names)])
    text = f"""## Memory and the number of partitions

`GROUP BY` over {first["groups"]:,} groups in {first["rows_read"]:,} rows, the least and the greatest of eight strings for each group, with
`engine.target_partitions` as in the first column: peak resident memory and time.

"""
    return text + table(head, rows) + "\n" + made_by(results, "partitions")


def run_of(results, pool, name, limited):
    for row in results["partitions", pool]["figures"].get("rows", []):
        if row["partitions"] == name and bool(row["budget"]) == limited:
            spilled = f", {mib(row['log_spilled_bytes'])} spilled" if row.get("log_spilled_bytes") else ""
            return f"{mib(row['rss_peak'])}, {row['seconds']:.1f} s{spilled}" if row["verdict"] == "ok" else f"*{row['verdict']}* after {row['seconds']:.1f} s, {mib(row['rss_peak'])}"
    return "-"


def constant(results):
    if not (names := pools(results, "constant")):
        return ""
    rows = {}
    for pool in names:
        for row in results["constant", pool]["figures"].get("rows", []):
            rows.setdefault((row["what"], row["rows"]), {})[pool] = f"{mib(row['rss_peak'])}{apart(row)}, {row['seconds']:.1f} s"
    lines = [[what, f"{size:.0e}".replace("e+0", "e"), *(found.get(pool, "-") for pool in names)] for (what, size), found in sorted(rows.items())]
    text = """## Memory and the number of rows

Peak resident memory of a server that does nothing else, and the time until the client has read the answer. Where a size ran several
times: the median, and in brackets the least and the greatest peak.

"""
    return text + table(["what", "rows", *names], lines) + "\n" + made_by(results, "constant")


def apart(row):
    return f" ({row['rss_peak_min'] / MIB:.0f} to {row['rss_peak_max'] / MIB:.0f})" if "runs" in row else ""


def small(results):
    names = [pool for pool in pools(results, "small") if "death" not in results["small", pool]["figures"]]
    if not names:
        return ""
    rows = []
    runs = [(pool, results["small", pool]["figures"]) for pool in names]
    runs[1:1] = [(f"{pool}, no cache", figures["without_cache"]) for pool, figures in runs if "without_cache" in figures]
    for name, figures in runs:
        for kind, idle in figures["idle"].items():
            busy = figures["busy"][kind]
            rows.append([name, kind, f"{idle['p50_ms']:.1f} ms", f"{idle['p99_ms']:.1f} ms", f"{busy['p50_ms']:.1f} ms", f"{busy['p99_ms']:.1f} ms"])
    return "## Small queries beside heavy ones\n\n" + table(["pool", "query", "p50 idle", "p99 idle", "p50 beside 4 heavy", "p99 beside 4 heavy"], rows) + "\n" + made_by(results, "small")


def cancel(results):
    names = [pool for pool in pools(results, "cancel") if "death" not in results["cancel", pool]["figures"]]
    if not names:
        return ""
    rows = []
    for pool in names:
        for way, spread in results["cancel", pool]["figures"]["ways"].items():
            rows.append([pool, WAYS[way], spread["n"], f"{spread['p50_ms']:.0f} ms", f"{spread['p99_ms']:.0f} ms", f"{spread['max_ms']:.0f} ms"])
    text = """## From a cancel until all is released

Released: the server runs nothing, holds no memory for queries, and has nothing on disk. Operators are dropped when they next give
others a turn. Two of DataFusion's take long over one: an aggregate that sorts its groups before it spills them, and a hash join that
copies its build side into one batch and hashes it. What an aggregate sorts is cut into slices where it has more than one partition; of
one partition it is all there is room for. A window function with `FILTER` gives none before it is through its partition,
because DataFusion lets nobody make such a function anew with one that looks.

"""
    text += f"Slowest here ({names[0]}): {', '.join(slowest(results['cancel', names[0]]['figures']))}.\n\n"
    return text + table(["pool", "how", "n", "p50", "p99", "max"], rows) + "\n" + made_by(results, "cancel")


def slowest(figures):
    return [f"`{row['shape']}` {row['ms']:.0f} ms" for row in figures["slowest"][:EXAMPLES]]


def idle(results):
    names = [pool for pool in pools(results, "idle") if "own" in results["idle", pool]["figures"]]
    if not names:
        return ""
    marks = {"fresh": "after its start", "idle": "after three statements", "after": "10 s after the load", "again": "10 s after the same load once more"}
    rows = []
    for pool in names:
        figures = results["idle", pool]["figures"]
        for mark, own in figures["own"].items():
            rows.append([pool, marks[mark], mib(figures[mark]), mib(own), mib(figures[mark] - own)])
    text = """## Memory after load

Resident memory of a server that keeps neither plans nor tables, which are there to stay, before and after 200 random heavy queries by
eight clients. Pages of the program stay once they ran, until the system wants them for something else; the allocator keeps what it
needs to account for as much memory as there was at a time.

"""
    return text + table(["pool", "when", "resident", "of it its own", "of it pages of the program"], rows) + "\n" + made_by(results, "idle")


def tenth(results):
    names = [pool for pool in pools(results, "tenth") if "death" not in results["tenth", pool]["figures"]]
    if not names:
        return ""
    by = {pool: {row["shape"]: row for row in results["tenth", pool]["figures"]["rows"]} for pool in names}
    rows = []
    for shape, row in by[names[0]].items():
        cells = [outcome_of(by[pool].get(shape)) for pool in names]
        rows.append([shape, mib(row["working_set"]), mib(row["budget"]) + ("" if row["is_tenth"] else " (least)"), *cells])
    least = mib(results["tenth", names[0]]["figures"]["smallest_budget"])
    text = f"""## A tenth of the working set

The working set is what the process grew by when the query ran alone without a budget. Where a tenth of it is less than the server's
least budget ({least}), the query ran with that. Beside a query that finished: its time and the peak of resident memory.

"""
    return text + table(["query", "working set", "budget", *names], rows) + "\n" + made_by(results, "tenth")


def outcome_of(row):
    if row is None:
        return "-"
    return f"{row['seconds']:.1f} s, {mib(row['rss_peak'])}" if row["verdict"] == "ok" else f"*{row['verdict']}*"


def shapes(results):
    names = [pool for pool in pools(results, "random") if "death" not in results["random", pool]["figures"]]
    if not names:
        return ""
    rows = []
    for shape, counts in results["random", names[0]]["figures"]["shapes"].items():
        cells = [described(results["random", pool]["figures"]["shapes"].get(shape, {})) for pool in names]
        rows.append([shape, sum(counts.values()), *cells])
    return "## Random queries by shape\n\n" + table(["shape", f"n ({names[0]})", *names], rows) + "\n" + made_by(results, "random")


def described(counts):
    if not counts:
        return "-"
    rest = [f"{n} {verdict}" for verdict, n in counts.items() if verdict != "ok"]
    return ", ".join([percent(counts.get("ok", 0) / sum(counts.values())), *rest])


def origin(results):
    """Where the figures come from; results of one machine and state share a line."""
    lines = {}
    for (experiment, pool), result in results.items():
        machine, versions = result["machine"], result["versions"]
        confined = result["figures"].get("no_cgroup")
        where = f"{machine['cpu']}, {machine['cores']} cores, {machine['memory'] / (1 << 30):.0f} GiB, Linux {machine['kernel']}; {versions['updraft']} ({versions['commit']}), DuckDB {versions['duckdb']}, pyarrow {versions['pyarrow']}; {result['day']}"
        lines.setdefault(where, []).append(f"{experiment} ({pool})" + (" without a cgroup" if confined else ""))
    if not lines:
        return "No experiment has been run yet.\n"
    return "## Where these figures come from\n\n" + "".join(f"- {where}: {', '.join(names)}\n" for where, names in lines.items())
