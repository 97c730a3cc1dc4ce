"""The sections of docs/performance.md on the wire, on cold files and on many clients."""

from cells import cell, others, races, time_of
from lab import mib, percentile, table
from race import median
from targets import processor_ratio

NAMES = {
    "updraft": "Updraft",
    "arrow-64k": "C++, batches of 64k rows",
    "arrow-8k": "C++, of 8k",
    "stock-64k": "arrow-flight, of 64k",
    "stock-8k": "arrow-flight, of 8k",
    "arrow": "pyarrow's C++ server",
    "roapi": "ROAPI",
    "plain-sql": "datafusion-flight-sql-server",
    "duckdb-flight": "DuckDB by Flight",
}


# Who reads what of an object store, in the order of the columns.
STORED = {"updraft": "Updraft, local", "s3": "Updraft, S3", "duckdb-s3": "DuckDB, S3"}


def named(found):
    """Those of NAMES that were measured, in their order."""
    return [name for name in NAMES if name in found]


def wire(_, figures):
    parts = [
        f"""## The way to the client

A hot table of {figures["rows"]:,} rows. `streams` are clients with connections of their own that each read all of it, `endpoints` parts of
it that one client reads side by side over one connection. GB/s of plain Arrow at the client, all together; behind it, how many seconds
of processor the server takes for a GB.
"""
    ]
    for shape, of in figures["shapes"].items():
        names = named(next(iter(of["ways"].values())))
        cell = lambda found: f"{found['p50']:.2f} GB/s, {found['cpu_s_per_gb']:.2f} s" if found else "-"  # noqa: E731
        lines = [[way, *(cell(found.get(name)) for name in names)] for way, found in of["ways"].items()]
        parts.append(f"### {shape[0].upper()}{shape[1:]}, {of['bytes'] / 1e6:,.0f} MB\n\n" + table(["", *(NAMES[name] for name in names)], lines))
        ratios = ", ".join(f"{ratio:.2f} by {way}" for way, found in of["ways"].items() if (ratio := processor_ratio(found)))
        parts += [f"Processor time for a GB, Updraft's / arrow-flight's with batches of 64k rows: {ratios}.\n"] if ratios else []
    return [*parts, missing(figures)]


def missing(figures):
    return "".join(f"{NAMES.get(name) or STORED.get(name, name)} is missing: {why}.\n" for name, why in figures["absent"].items())


def cold(_, figures):
    parts = [
        """## Cold files

Neither engine holds anything of the files: no columns, footers or plans of earlier runs. First with the files in the kernel's page
cache, then without.
"""
    ]
    for way, of_way in figures["ways"].items():
        what = {"warm": "Pages held by the kernel", "dropped": "Pages dropped"}[way]
        eight, tpch = of_way["eight"], of_way["tpch"]
        mean = lambda name: f"{eight['ratios'][name]['mean']:.2f}" if name in eight["ratios"] else ""  # noqa: B023, E731
        parts += [f"### {what}: eight queries, {figures['rows']:,} rows\n\n" + races(eight["rows"], "geometric mean", mean), others(eight)]
        of = tpch["total"]
        both = {"updraft": of["updraft_ms"], "duckdb-parquet": of["ms"]}
        last = lambda name: (time_of(both[name]) if both.get(name) else "") + (f" ({of['ratio']:.2f})" if name != "updraft" and of["ratio"] else "")  # noqa: B023, E731
        parts += [f"### {what}: TPC-H at scale {figures['scale']:g}\n\n" + races(tpch["rows"], "total", last), others(tpch)]
    return parts


def from_store(rows, what, last):
    """A table of statements from local files and from an object store. `last` is the cell of the store in a last line, which says `what`."""
    names = [name for name in STORED if any(name in row["times"] for row in rows)]
    asked = lambda row: [f"{row['asked']['requests']:,}", f"{row['asked']['bytes'] / 1e6:,.1f} MB"] if row["asked"] else ["-", "-"]  # noqa: E731
    lines = [[row["statement"], *(cell(row, name) for name in names), *asked(row)] for row in rows]
    lines.append([f"*{what}*", *(last.get(name, "") for name in names), "", ""])
    longer = sorted(median(row, "s3") - median(row, "updraft") for row in rows if median(row, "s3") and median(row, "updraft"))
    text = f"Longer from the store by {time_of(percentile(longer, 0.5))} (median; {time_of(longer[0])} to {time_of(longer[-1])}).\n" if longer else ""
    return table(["", *(STORED[name] for name in names), "requests", "read"], lines) + "\n" + text


def s3(_, figures):
    totals = figures["totals"]
    both = {"updraft": time_of(totals["local_ms"]), "s3": f"{time_of(totals['s3_ms'])} ({totals['ratio']:.2f})"} if totals["ratio"] else {}
    parts = [
        f"""## From an object store

From local files and from an S3 server on the loopback that answers each request {figures["latency"]} later. Nothing of the files is known
or held at any run. A number beside a time is how many times longer than from local files that took.
""",
        f"### TPC-H at scale {figures['scale']:g}\n\n" + from_store(figures["rows"], "total", both),
    ]
    if of := figures.get("eight"):
        parts.append(f"### Eight queries, {of['size']:,} rows\n\n" + from_store(of["rows"], "geometric mean", {"s3": f"{of['mean']:.2f}"} if of["mean"] else {}))
    return [*parts, missing({"absent": figures.get("absent", {})})]


def latency(_, figures):
    ways = {"flight": "pyarrow.flight: GetFlightInfo and DoGet", "adbc": "an ADBC cursor: opened, executed, fetched, closed"}
    lines = [[text, NAMES[name], time_of(of["p50_ms"]), time_of(of["p99_ms"])] for way, text in ways.items() for name, of in figures[way].items()]
    return ["## `SELECT 1`\n\n" + table(["by", "server", "p50", "p99"], lines), missing(figures)]


def us(value):
    return time_of(value / 1e3) if value else "-"


def clients(_, figures):
    names = named(next(iter(figures["clients"].values())))
    cell = lambda of: f"{of['per_second']:,.0f} /s, p50 {us(of['p50_us'])}, p99 {us(of['p99_us'])}" + (f", {of['errors']:,} errors" if of["errors"] else "")  # noqa: E731
    lines = [[count, *(cell(found[name]) for name in names)] for count, found in figures["clients"].items()]
    text = f"""## Small queries by many clients

`SELECT 1`, `count(*)`, a point lookup and 20 groups over {figures["rows"]:,} rows, in turn, for {figures["seconds"]:g} s by so many clients with a
connection each. The clients are written in Rust and share the cores with the server. No server had an error but where it says so.

"""
    return [text + table(["clients", *(NAMES[name] for name in names)], lines), missing(figures)]


def kib(count):
    return f"{count / 1024:.1f} KiB"


def streaming(of, how):
    """The line of one that counts beside many that stream."""
    count, half = of["count"], of.get("half")
    words = [f"p50 {time_of(count['p50_ms'])}, p99 {time_of(count['p99_ms'])}", f"all sent in {of['seconds']:.1f} s, {mib(of['peak'] - of['before'])} more memory"]
    words += [f"with half of all sent, of {mib(of['bytes'])} each has {mib(half['p50'])} ({mib(half['min'])} to {mib(half['max'])})"] if half else []
    return [f"one counts, {of['clients']} stream{how}", "; ".join(words)]


def began(times):
    """How long a client takes that begins."""
    lines = [[kind, time_of(of["p50_ms"]), time_of(of["p99_ms"])] for kind, of in times.items()]
    return ["What a client waits for that begins, one after the other.\n\n" + table(["", "p50", "p99"], lines)] if lines else []


def connections(_, figures):
    memory = [[f"a connection, {kind}", kib(count)] for kind, count in figures["idle"].items()]
    memory += [[f"a prepared statement, {kind}", kib(count)] for kind, count in figures["prepared"].items()]
    crowd, each = figures["crowd"], figures["fairness"]
    together, count = each["together"], each["count alone"]["count"]
    lines = [
        ["one counts, alone", f"p50 {time_of(count['p50_ms'])}, p99 {time_of(count['p99_ms'])}"],
        ["one streams, alone", f"{each['stream alone']['stream']['mb_per_second']:,.0f} MB/s"],
        ["both together", f"p50 {time_of(together['count']['p50_ms'])}, p99 {time_of(together['count']['p99_ms'])}; {together['stream']['mb_per_second']:,.0f} MB/s"],
        *(streaming(figures[key], how) for key, how in {"streams": " as they are let in", "at once": ", all let in at once"}.items() if key in figures),
    ]
    if "absent" not in crowd:
        lines += [[f"{figures['busy']} busy clients, {of['idle']:,} idle", f"{of['per_second']:,.0f} queries/s, p99 {us(of['all']['p99_us'])}, {of['errors']} errors"] for of in crowd.values()]
    return [
        f"## Idle and busy clients\n\nThe server's resident memory, over {figures['held']:,} connections and {figures['statements']:,} statements.\n\n" + table(["", "memory"], memory),
        *began(figures.get("times", {})),
        f"What clients do to each other, over {figures['rows']:,} hot rows.\n\n" + table(["", "measured"], lines),
        f"Busy clients were not measured: {crowd['absent']}.\n" if "absent" in crowd else "",
    ]


def misuse(_, figures):
    row = lambda kind, of: [  # noqa: E731
        f"{kind}{' (' + of['said'] + ')' if of['said'] else ''}",
        mib(max(0, of["peak"] - of["before"])),
        mib(max(0, of["after"] - of["before"])),
        f"{of['cpu_s']:.1f} s",
        "never" if of["held_s"] is None else f"{of['held_s']:.1f} s",
        f"p50 {time_of(of['beside']['p50_ms'])}, p99 {time_of(of['beside']['p99_ms'])}",
    ]
    text = f"""## Clients that misbehave

{figures["clients"]} of each kind at once that ask for {figures["rows"]:,} rows; a result may wait 3 s for its reader, a connection 4 s for a sign of life, a
ticket 5 s to be fetched, at which the server looks each 30 s. What they cost the server, until all of it is over, and what a client
notices that counts meanwhile.

"""
    return [text + table(["a client that", "memory at most", "memory after", "processor", "over after", "count beside"], [row(*item) for item in figures["kinds"].items()])]


def profiles(_, figures):
    names, first = list(figures["sizes"]), figures["first"]

    def line(what, values, form):
        """A figure of each build; behind it, what part or multiple it is of the first's."""
        base = values[first]
        against = lambda name: f" ({values[name] / base:.2f})" if base and name != first else ""  # noqa: E731
        return [what, *(form(values[name]) + against(name) if values[name] else "-" for name in names)]

    lines = [line(row["statement"], {name: median(row, name) for name in names}, time_of) for row in figures["queries"]["rows"]]
    lines.append(["*geometric mean*", *("" if name == first else f"({figures['means'][name]:.2f})" for name in names)])
    for shape, of in figures["streams"].items():
        lines.append(line(f"{shape}, one stream", {name: of[name]["p50"] for name in names}, "{:.2f} GB/s".format))
        lines.append(line("processor time for a GB of it", {name: of[name]["cpu_s_per_gb"] for name in names}, "{:.2f} s".format))
    lines.append(line("size of the program", figures["sizes"], mib))
    text = f"""## Build profiles

The same server, built in several ways (`integration-tests/bench/README.md` says how), over {figures["rows"]:,} hot rows, taking turns. In
brackets what part or multiple of the first's a figure is.

"""
    return [text + table(["", *names], lines), others(figures["queries"])]


SECTIONS = {"wire": wire, "cold": cold, "s3": s3, "latency": latency, "clients": clients, "connections": connections, "misuse": misuse, "profiles": profiles}
