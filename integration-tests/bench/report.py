"""docs/performance.md, written from the results under docs/performance: no figure in it is typed by hand.

Only docs/performance/limits.md is: what a profile says about each target that is missed. It becomes part of the page.
"""

import json
import pathlib

import contenders
import harness
import plots
import wired
from cells import cell, holes, names_in, others, races, time_of
from lab import mib, note, percent, table
from race import median
from targets import TARGETS

DOCS = harness.ROOT / "docs"
KEPT, PAGE = DOCS / "performance", DOCS / "performance.md"
LIMITS = KEPT / "limits.md"

INTRO = """# Performance

Written by `integration-tests/bench/run.py render` from the results in `docs/performance/`; change those by running an experiment
anew, never by hand. `integration-tests/bench/README.md` says how it is measured and how to do it again.

All times are the client's: from sending a statement until a Python program holds the answer as a `pyarrow.Table`. Updraft, DuckDB by
Flight and ROAPI are servers on the loopback of the same machine; DuckDB and DataFusion run in the client's own process and hand over
what they have. Medians of interleaved runs, three in a row of each, after two that are not counted. Every answer is compared with DuckDB's over the same
files: that of ten columns as pyarrow writes it (snappy, row groups of 1 Mi rows), TPC-H as `updraft sample` does (zstd).
Updraft's cache of results is off, unless a section says so.
A number beside a time is how many times longer than Updraft that took: above 1, Updraft is faster.

**Bold** reaches the aim, plain holds what must hold, *missed* says what part or multiple of that was measured.
"""


def load():
    """{experiment: result}"""
    results = (json.loads(path.read_text()) for path in sorted(KEPT.glob("*.json")))
    return {result["experiment"]: result for result in results}


def render(paths, check):
    for path in paths:
        KEPT.mkdir(exist_ok=True)
        result = json.loads(pathlib.Path(path).read_text())
        (KEPT / f"{result['experiment']}.json").write_text(json.dumps(result, indent=1) + "\n")
    results = load()
    files = {PAGE: page(results), **{KEPT / f"{name}.svg": svg for name, svg in drawn(results).items()}}
    if not check:
        for path, content in files.items():
            path.write_text(content)
        return 0
    stale = [path for path, content in files.items() if not path.exists() or path.read_text() != content]
    for path in stale:
        note(f"{path.relative_to(harness.ROOT)} is not what docs/performance says: run integration-tests/bench/run.py render")
    return 1 if stale else 0


def page(results):
    parts = [INTRO, promises(results)]
    if LIMITS.exists():
        parts.append("## What limits the rest\n\n" + LIMITS.read_text())
    plotted = drawn(results)
    for name, result in sorted(results.items(), key=lambda item: list(SECTIONS).index(item[0])):
        parts += section(result)
        parts += [f"![{name}](performance/{name}.svg)\n"] if name in plotted else []
        limits = " and ".join(f"`{key}` {mib(result[name])}" for key, name in (("engine.memory_limit", "budget"), ("hot.memory_limit", "hot")))
        parts.append(f"Made by `{result['command'].removeprefix('integration-tests/bench/')}` with {limits}.\n")
    return "\n".join(part for part in (*parts, sources(results)) if part)


def promises(results):
    shown = lambda target: target.shown(results[target.experiment]["figures"]) if target.experiment in results else "-"  # noqa: E731
    rows = [[target.what, target.bound(target.must), target.bound(target.aim), shown(target)] for target in TARGETS]
    return "## What is promised\n\n" + table(["what", "must", "aim", "measured"], rows)


def section(result):
    """The parts of the page that one result makes."""
    figures = result["figures"]
    if "death" in figures:
        return [f"## {result['experiment']}\n\nThe server died.\n"]
    if isinstance(figures.get("absent"), str):
        return [f"## {result['experiment']}\n\nNot measured: {figures['absent']}.\n"]
    return SECTIONS[result["experiment"]](result, figures)


def eight(_, figures):
    parts = ["## Eight queries\n\nA table of ten columns, hot: two ids, three numbers, three strings, a timestamp, a flag.\n"]
    for size, of in figures["sizes"].items():
        average = lambda name: f"{of['ratios'][name]['mean']:.2f}" if name in of["ratios"] else ""  # noqa: B023, E731
        parts += [f"### {size} rows\n\n" + races(of["rows"], "geometric mean", average), others(of)]
    return [*parts, holes(figures)]


def tpch(_, figures):
    totals = figures["totals"]

    def last(name):
        of = totals.get(name)
        if not of or of["ms"] is None:
            return ""
        against = f" ({of['ratio']:.2f})" if name != "updraft" else ""
        missing = len(figures["rows"]) - of["statements"]
        return time_of(of["ms"]) + against + (f", {missing} missing" if missing else "")

    return [f"## TPC-H\n\nThe 22 queries at scale {figures['scale']:g}, hot.\n\n{races(figures['rows'], 'total', last)}", others(figures), holes(figures)]


def growth(head, steps, memory):
    """Statements down, steps across: median and first run of Updraft, and of DuckDB over Parquet; then what `memory` says."""
    rows = []
    for number, row in enumerate(next(iter(steps.values()))["rows"]):
        times = [of["rows"][number] for of in steps.values()]
        both = lambda row: with_first(row, "updraft") + (f"; DuckDB {with_first(row, 'duckdb-parquet')}" if median(row, "duckdb-parquet") else "")  # noqa: E731
        rows.append([row["statement"], *map(both, times)])
    rows += [[what, *(value(of) for of in steps.values())] for what, value in memory.items()]
    return table([head, *steps], rows)


def with_first(row, name):
    """A contender's median and first run; or why it has none."""
    value = median(row, name)
    return f"{time_of(value)}, first {time_of(row['times'][name]['first_ms'])}" if value else cell(row, name)


def rows(_, figures):
    memory = {"on disk": lambda of: mib(of["file_bytes"]), "in the cache": held, "peak of the server": lambda of: mib(of["rss_peak"])}
    text = "## Growth with the number of rows\n\nThe median, and the first run, which reads the files (the kernel holds their pages); then those of DuckDB over the same files.\n\n"
    return [text + growth("rows", figures["sizes"], memory)]


def files(_, figures):
    memory = {"in the cache": held, "peak of the server": lambda of: mib(of["rss_peak"])}
    text = f"## Growth with the number of files\n\n{figures['rows']:,} rows in so many files. Files may change at any time, so each query looks at all of them first.\n\n"
    return [text + growth("files", {f"{int(count):,}": of for count, of in figures["files"].items()}, memory)]


def held(of):
    return mib(of["cache"]["bytes"]) if of["cache"] else "-"


def skew(_, figures):
    kinds = {"plain": "queries only", "scans": "a scan of all tables between, each 200 queries"}
    lines = [[text, percent(figures[kind]["rate"]), mib(figures[kind]["bytes_most"]), mib(figures[kind]["limit"])] for kind, text in kinds.items()]
    text = f"""## The cache when four times more is asked for than fits

{figures["queries"]:,} queries over {figures["tables"]} tables by Zipf's law, {mib(figures["working_set"])} in all. Keeping the tables asked for most, and nothing else,
would give a hit rate of {percent(figures["best_rate"])}. Counted over the second half of the queries, without the scans' own columns.

"""
    return [text + table(["load", "hit rate", "held at most", "limit"], lines)]


def preload(_, figures):
    seconds = figures["seconds"]
    text = f"## Loading several tables\n\n{figures['tables']} tables of {figures['rows']:,} rows into the cache ({mib(figures['bytes'])}), files in the page cache.\n\n"
    return [text + table([*seconds, "ratio"], [[*(f"{taken:.2f} s" for taken in seconds.values()), f"{figures['ratio']:.2f}"]])]


def memory(_, figures):
    lines = [[f"`{of['table']}`", mib(of["bytes"]), mib(of["plain_bytes"]), f"{of['ratio']:.2f}"] for of in figures["tables"]]
    text = f"""## Memory of a cached table

Against the same as plain Arrow in pyarrow. `events` has two numbers and six strings of 5 to 5,000 values, {figures["rows"]:,} rows; `t` is the table
of ten columns, as long, with a string that is different in each row; `lineitem` is TPC-H's at scale {figures["scale"]:g}.

"""
    return [text + table(["table", "in the cache", "plain Arrow", "ratio"], lines)]


def repeated(_, figures):
    lines = [[row["statement"], cell(row, "updraft"), time_of(value) if (value := median(row, "cached")) else "-"] for row in figures["rows"]]
    mean = f"Geometric mean of the gain: {figures['mean']:.2f}.\n" if figures["mean"] else ""
    return [f"## The same statement again\n\n{figures['size']:,} rows, with the cache of results on.\n\n" + table(["", "without", "with"], lines), mean]


# In the order of the page.
SECTIONS = {"eight": eight, "tpch": tpch, "rows": rows, "files": files, "skew": skew, "preload": preload, "memory": memory, "repeated": repeated, **wired.SECTIONS}


def drawn(results):
    """{name: SVG} of what is clearer as a picture."""
    found = {}
    measured = lambda name: results[name]["figures"] if name in results and "death" not in results[name]["figures"] else None  # noqa: E731
    if (figures := measured("eight")) and figures["sizes"]:
        size, of = list(figures["sizes"].items())[-1]
        found["eight"] = bars(f"Eight queries, {size} rows", of["rows"])
    if figures := measured("tpch"):
        found["tpch"] = bars("TPC-H", figures["rows"])
    if figures := measured("rows"):
        statements = [row["statement"] for row in next(iter(figures["sizes"].values()))["rows"]]
        series = {name: [(float(size), median(of["rows"][number], "updraft")) for size, of in figures["sizes"].items()] for number, name in enumerate(statements)}
        found["rows"] = plots.lines("Time and number of rows", "ms", series)
    return {name: svg for name, svg in found.items() if svg}


def bars(title, rows):
    series = {contenders.NAMES[name]: [median(row, name) for row in rows] for name in names_in(rows)}
    return plots.bars(title, "ms", [row["statement"] for row in rows], series)


def sources(results):
    """Where the figures come from; results of one machine and state share a line."""
    lines = {}
    for name, result in results.items():
        machine, versions = result["machine"], result["versions"]
        packages = ", ".join(f"{package} {version}" for package, version in versions.items() if package not in ("updraft", "commit"))
        where = f"{machine['cpu']}, {machine['cores']} cores, {mib(machine['memory'])}, Linux {machine['kernel']}; {versions['updraft']} ({versions['commit']}), {packages}; {result['day']}"
        lines.setdefault(where, []).append(name)
    if not lines:
        return "No experiment has been run yet.\n"
    return "## Where these figures come from\n\n" + "".join(f"- {where}: {', '.join(names)}\n" for where, names in lines.items())


def aligned(text):
    """Markdown for a terminal: the columns of its tables padded to one width."""
    out, block = [], []
    for line in [*text.splitlines(), ""]:
        if line.startswith("| "):
            block.append(line[2:-2].split(" | "))
            continue
        widths = [max(map(len, column)) for column in zip(*block, strict=False)]
        out += ["  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=False)) for cells in block]
        out.append(line)
        block = []
    return "\n".join(out)
