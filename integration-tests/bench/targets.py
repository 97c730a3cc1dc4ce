"""What is promised, and how a result is held against it."""

import dataclasses
from collections.abc import Callable

from lab import percent
from race import mean


def times(value):
    return f"{value:.2f}"


@dataclasses.dataclass(frozen=True)
class Target:
    """One promise. `figure` finds it in the figures of `experiment`: the number, and where it comes from in words; None if it
    was not measured. It has to be `at_least` or at most what `must` says, and better what `aim` says."""

    what: str
    experiment: str
    figure: Callable[[dict], tuple[float, str] | None]
    must: float
    aim: float | None
    form: Callable[[float], str] = times
    at_least: bool = True

    def level(self, value):
        reaches = lambda bound: bound is not None and (value >= bound if self.at_least else value <= bound)  # noqa: E731
        return "missed" if not reaches(self.must) else "aim" if reaches(self.aim) else "must"

    def bound(self, value):
        return "-" if value is None else f"{'>=' if self.at_least else '<='} {self.form(value)}"

    def shown(self, figures):
        """The cell of the table of promises."""
        found = None if "death" in figures or isinstance(figures.get("absent"), str) else self.figure(figures)
        if found is None:
            return "-"
        value, where = found
        level, words = self.level(value), self.form(value) + (f" ({where})" if where else "")
        if level == "missed":
            return f"*missed*, {value / self.must:.2f} x must: {words}"
        return f"**{words}**" if level == "aim" else words


def least(peer):
    """The smallest ratio of all statements and sizes."""

    def figure(figures):
        found = [(ratio, f"{name} at {size} rows") for size, of in figures["sizes"].items() if peer in of["ratios"] for name, ratio in of["ratios"][peer]["each"].items()]
        return min(found, default=None)

    return figure


def average(peer):
    """The geometric mean over all statements and sizes, and that of each size."""

    def figure(figures):
        sizes = {size: of["ratios"][peer] for size, of in figures["sizes"].items() if peer in of["ratios"]}
        found = mean(ratio for of in sizes.values() for ratio in of["each"].values())
        return (found, ", ".join(f"{of['mean']:.2f} at {size}" for size, of in sizes.items())) if found else None

    return figure


def total(peer):
    def figure(figures):
        if figures["scale"] != 1:
            return None
        of = figures["totals"].get(peer)
        return (of["ratio"], f"{of['ms']:,.0f} ms against {of['updraft_ms']:,.0f} ms, {of['statements']} queries") if of and of["ratio"] else None

    return figure


def kib(value):
    return f"{value / 1024:.1f} KiB"


def throughput(shape):
    """One stream, against the C++ server with batches of the size that it is fastest with here."""

    def figure(figures):
        of = figures["shapes"][shape]["ways"]["1 streams"]
        peers = {size: of[f"arrow-{size}"]["p50"] for size in ("64k", "8k") if f"arrow-{size}" in of}
        if not peers or "updraft" not in of:
            return None
        best, ours = max(peers, key=peers.get), of["updraft"]["p50"]
        return ours / peers[best], f"{ours:.2f} GB/s against {peers[best]:.2f} GB/s by batches of {best} rows"

    return figure


def processor_ratio(found):
    """Updraft's processor time for a GB against that of stock arrow-flight with batches of 64k rows; None if either has none."""
    ours, theirs = (found.get(name, {}).get("cpu_s_per_gb") for name in ("updraft", "stock-64k"))
    return ours / theirs if ours and theirs else None


def processor(figures):
    """The worse of both shapes, one stream."""
    each = {shape: of["ways"]["1 streams"] for shape, of in figures["shapes"].items()}
    ratios = {shape: ratio for shape, found in each.items() if (ratio := processor_ratio(found))}
    if not ratios:
        return None
    worst = max(ratios, key=ratios.get)
    ours, theirs = (each[worst][name]["cpu_s_per_gb"] for name in ("updraft", "stock-64k"))
    others = "".join(f"; {shape}: {ratio:.2f}" for shape, ratio in ratios.items() if shape != worst)
    return ratios[worst], f"{worst}: {ours:.2f} s against {theirs:.2f} s{others}"


def cold_total(figures):
    if figures["scale"] != 1 or "warm" not in figures["ways"]:
        return None
    of = figures["ways"]["warm"]["tpch"]["total"]
    return (of["ratio"], f"{of['ms']:,.0f} ms against {of['updraft_ms']:,.0f} ms, {of['statements']} queries") if of["ratio"] else None


def cold_mean(figures):
    of = figures["ways"]["warm"]["eight"]["ratios"].get("duckdb-parquet") if "warm" in figures["ways"] else None
    return (of["mean"], f"{min(of['each'], key=of['each'].get)}: {min(of['each'].values()):.2f}") if of else None


def from_s3(figures):
    of = figures["totals"]
    return (of["ratio"], f"{of['s3_ms']:,.0f} ms against {of['local_ms']:,.0f} ms") if figures["scale"] == 1 and of["ratio"] else None


def crowd_of(clients):
    """Against the best peer that is built on DataFusion."""

    def figure(figures):
        of = figures["clients"].get(str(clients), {})
        peers = {name: of[name]["per_second"] for name in ("roapi", "plain-sql") if name in of and of[name]["per_second"]}
        if not peers or "updraft" not in of:
            return None
        best = max(peers, key=peers.get)
        return of["updraft"]["per_second"] / peers[best], f"{of['updraft']['per_second']:,.0f}/s against {peers[best]:,.0f}/s of {best}"

    return figure


def latency(way, peer):
    def figure(figures):
        of = figures[way]
        return (of["updraft"]["p50_ms"] / of[peer]["p50_ms"], f"{of['updraft']['p50_ms']:.2f} ms against {of[peer]['p50_ms']:.2f} ms") if peer in of else None

    return figure


def hit_rate(*parts):
    """Over all parts together."""
    counted = [part["hot"] for part in parts if part["hot"]]
    hits, asked = sum(of["hits"] for of in counted), sum(of["hits"] + of["misses"] for of in counted)
    return (hits / asked, f"{asked:,} columns asked for") if asked else None


def cached(figures):
    found = {of["table"]: of["ratio"] for of in figures.get("tables", [])}
    others = ", ".join(f"{table}: {ratio:.2f}" for table, ratio in found.items() if table != "events")
    return (found["events"], f"table `events`; {others}") if "events" in found else None


TARGETS = (
    Target("each of the eight queries, DuckDB native's time / Updraft's", "eight", least("duckdb"), 1.0, None),
    Target("geometric mean of these", "eight", average("duckdb"), 1.5, 3.0),
    Target("the same against DuckDB over Parquet", "eight", average("duckdb-parquet"), 4.0, 8.0),
    Target("TPC-H SF1 total, DuckDB over Parquet / Updraft", "tpch", total("duckdb-parquet"), 1.0, 2.0),
    Target("TPC-H SF1 total, DuckDB native / Updraft", "tpch", total("duckdb"), 0.6, 1.0),
    Target("hit rate on repeated queries, the eight", "eight", lambda figures: hit_rate(*figures["sizes"].values()), 0.95, 0.986, percent),
    Target("hit rate on repeated queries, TPC-H", "tpch", hit_rate, 0.95, 0.986, percent),
    Target("a table with categorical strings in the cache / as plain Arrow", "memory", cached, 0.7, 0.4, at_least=False),
    Target("full scan of a hot table, one stream, throughput / that of pyarrow's C++ Flight server", "wire", throughput("full scan"), 0.9, 1.1),
    Target("two numeric columns, the same", "wire", throughput("two columns"), 0.9, 1.1),
    Target("server's CPU per GB sent / that of stock arrow-flight and tonic", "wire", processor, 0.5, 0.33, at_least=False),
    Target("TPC-H SF1 total, caches empty, DuckDB over Parquet / Updraft", "cold", cold_total, 0.8, 1.2),
    Target("eight queries at 1e7 rows, caches empty, geometric mean, DuckDB over Parquet / Updraft", "cold", cold_mean, 1.0, 1.5),
    Target("TPC-H SF1 total from S3 with 20 ms latency / from local files", "s3", from_s3, 2.0, 1.3, at_least=False),
    Target("small queries of 16 clients a second / those of the best DataFusion peer", "clients", crowd_of(16), 2.0, 5.0),
    Target("`SELECT 1` over Flight, p50 / that of a C++ server with a fixed table", "latency", latency("flight", "arrow"), 1.0, 0.6, at_least=False),
    Target("`SELECT 1` by an ADBC cursor, p50 / that of ROAPI", "latency", latency("adbc", "roapi"), 0.3, 0.2, at_least=False),
    Target("memory of an idle connection", "connections", lambda figures: (figures["idle"]["asked once"], "that has asked once"), 64 << 10, 32 << 10, kib, at_least=False),
    Target("memory of a prepared statement", "connections", lambda figures: (figures["prepared"]["texts of their own"], "each with a text of its own"), 32 << 10, 8 << 10, kib, at_least=False),
)


def missed(result):
    """What a result does not reach of what it must, in words."""
    shown = [(target, target.shown(result["figures"])) for target in TARGETS if target.experiment == result["experiment"]]
    return [f"{target.what}: {words}, must be {target.bound(target.must)}" for target, words in shown if words.startswith("*missed*")]
