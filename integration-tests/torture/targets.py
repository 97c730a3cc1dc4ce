"""What is promised, and how a result is held against it."""

import dataclasses
from collections.abc import Callable

from lab import MIB, mib, percent


@dataclasses.dataclass(frozen=True)
class Target:
    """One promise. `value` reads its figure from the results of `experiment`, `reached` says which levels that figure reaches."""

    what: str
    must: str
    aim: str
    experiment: str
    value: Callable[[dict], str]
    reached: Callable[[dict], tuple[bool, bool]]

    def level(self, figures):
        must, aim = self.reached(figures)
        return "aim" if must and aim else "must" if must else "missed"


def at_most(figure, must, aim):
    return lambda figures: (figure(figures) <= must, figure(figures) <= aim)


def wrong(figures):
    return figures["verdicts"]["wrong"]


def finished(figures):
    return figures["verdicts"]["ok"] / figures["statements"]


def deaths(figures):
    """Kills and other deaths: without a cgroup nobody counts the kernel's kills, but a death is one all the same."""
    return max(figures["deaths"], figures["oom_kills"] or 0)


def at_a_tenth(figures):
    """The share that finishes, of all or of those whose budget is a tenth and not the server's least: the lower."""
    return min(share for share in (figures["finished"], figures["finished_at_a_tenth"]) if share is not None)


def cancels(figures):
    p99, longest, at_rest = figures["all"]["p99_ms"], figures["all"]["max_ms"], not figures.get("restless")
    return (p99 <= 250 and longest <= 2000 and at_rest, p99 <= 50 and longest <= 500 and at_rest)


def ratio(figures):
    return f"{figures['p99_ratio']:.1f}x ({figures['idle']['all']['p99_ms']:.1f} ms, then {figures['busy']['all']['p99_ms']:.1f} ms)"


def concurrent(figures):
    everything = figures["finished"] == 1 and not figures["concurrent"]["died"]
    return everything, everything and figures["ratio"] <= 1.5


def all_partitions_finish(figures):
    done = all(row["verdict"] == "ok" for row in within_budget(figures))
    return done, done


def within_budget(figures):
    return [row for row in figures["rows"] if row["budget"]]


def shares(figures):
    """(row, its partitions' part of what the most partitions take) of each run without a budget whose number of partitions was given."""
    rows = [row for row in figures["rows"] if not row["budget"] and row["partitions"].isdigit()]
    most = max(rows, key=lambda row: int(row["partitions"]), default=None)
    return [(row, most["rss_peak"] * int(row["partitions"]) / int(most["partitions"])) for row in rows]


def proportional(figures):
    """Within the bound that every peak here has: a quarter more, and what a server takes that does nothing."""
    held = [row["verdict"] == "ok" and row["rss_peak"] <= 1.25 * share + 256 * MIB for row, share in shares(figures)]
    return all(held), bool(held) and all(held)


def flat(figures):
    return max(spread for spread in figures["spread_from_1e6"].values() if spread is not None)


TARGETS = (
    Target(
        "the server dies, by the kernel's hand or its own, under random heavy queries in a cgroup of 1.15 x budget + 256 MiB",
        "0 in 5,000",
        "0 in 100,000",
        "random",
        lambda f: f"{deaths(f)} in {f['statements']:,}" + (", too few to tell" if not deaths(f) and f["statements"] < 5_000 else ""),
        lambda f: (deaths(f) == 0, deaths(f) == 0 and f["statements"] >= 100_000),
    ),
    Target(
        "peak resident memory under them",
        "1.25 x budget + 256 MiB",
        "1.10 x budget + 192 MiB",
        "random",
        lambda f: f"{mib(f['rss_peak'])} (must {mib(f['rss_must'])}, aim {mib(f['rss_aim'])})",
        lambda f: (f["rss_peak"] <= f["rss_must"], f["rss_peak"] <= f["rss_aim"]),
    ),
    Target("wrong answers among them", "0", "0", "random", lambda f: str(wrong(f)), at_most(wrong, 0, 0)),
    Target("of them finish", "-", "-", "random", lambda f: percent(finished(f)), lambda f: (True, False)),
    Target(
        "heavy queries that finish, right, with a budget of a tenth of their working set",
        "95 %",
        "99.5 %",
        "tenth",
        lambda f: f"{percent(f['finished'])} of {f['statements']}" + (f" and {percent(f['finished_at_a_tenth'])} of the {f['tenths']} whose budget is a tenth" if f["tenths"] else "") + f", {wrong(f)} wrong",
        lambda f: (at_a_tenth(f) >= 0.95 and not wrong(f), at_a_tenth(f) >= 0.995 and not wrong(f)),
    ),
    Target(
        "p99 of a small query while 4 heavy ones run, against idle",
        "10x",
        "3x",
        "small",
        lambda f: ratio(f) + (f"; without the cache of hot tables {ratio(f['without_cache'])}" if "without_cache" in f else ""),
        at_most(lambda f: f["p99_ratio"], 10, 3),
    ),
    Target(
        "cancel until all is released",
        "p99 250 ms, max 2 s",
        "p99 50 ms, max 500 ms",
        "cancel",
        lambda f: f"p99 {f['all']['p99_ms']:.0f} ms, max {f['all']['max_ms']:.0f} ms of {f['cancelled']}" + (f", {len(f['restless'])} went on computing" if f.get("restless") else ""),
        cancels,
    ),
    Target(
        "64 heavy queries at once",
        "all finish",
        "all finish, within 1.5x of the serial total",
        "concurrent",
        lambda f: f"{f['concurrent']['verdicts']['ok']} of {f['queries']} finish, {f['ratio']}x" + (", the server died" if f["concurrent"]["died"] else ""),
        concurrent,
    ),
    Target(
        "a GROUP BY with a wide state within 3 GiB, at 20, 10, 4, 2 and auto partitions",
        "all finish",
        "all finish",
        "partitions",
        lambda f: f"{sum(row['verdict'] == 'ok' for row in within_budget(f))} of {len(within_budget(f))} finish",
        all_partitions_finish,
    ),
    Target(
        "its peak without a budget, against as large a part of the peak at 20 partitions as its partitions are of 20",
        "1.25 x that + 256 MiB",
        "1.25 x that + 256 MiB",
        "partitions",
        lambda f: ", ".join(f"{row['partitions']}: {mib(row['rss_peak'])} ({row['rss_peak'] / share:.2f}x)" for row, share in shares(f)) or "-",
        proportional,
    ),
    Target(
        "growth of the peak from 1e6 to 1e8 rows, aggregated or streamed",
        "15 %",
        "15 %",
        "constant",
        lambda f: percent(flat(f)),
        at_most(flat, 0.15, 0.15),
    ),
    Target(
        "above idle, 10 s after a first load, of a server that keeps neither plans nor tables",
        "10 %",
        "10 %",
        "idle",
        lambda f: f"{percent(f['over_idle'])} ({mib(f['idle'])}, then {mib(f['after'])})",
        at_most(lambda f: f["over_idle"], 0.10, 0.10),
    ),
    Target(
        "above that, 10 s after the same load once more",
        "10 %",
        "10 %",
        "idle",
        lambda f: f"{percent(f['over_after'])} ({mib(f['after'])}, then {mib(f['again'])})",
        at_most(lambda f: f["over_after"], 0.10, 0.10),
    ),
)


def broken(result):
    """What a result does not hold of what must be held, in words."""
    figures = result["figures"]
    if "death" in figures:
        return [f"{result['experiment']}: the server died"]
    found = [f"{t.what}: {t.value(figures)}, must be {t.must}" for t in TARGETS if t.experiment == result["experiment"] and t.level(figures) == "missed"]
    found += [f"the server logged an error: {error}" for error in figures.get("errors", [])]
    if figures.get("cgroup_refused"):
        found.append(f"no cgroup, so nothing bounded the server: {figures['no_cgroup']}")
    return found
