"""What is promised, and how a result is held against it."""

import dataclasses
from collections.abc import Callable

from lab import mib, percent


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


def at_least(figure, must, aim):
    return lambda figures: (figure(figures) >= must, figure(figures) >= aim)


def wrong(figures):
    return figures["verdicts"]["wrong"]


def finished(figures):
    return figures["verdicts"]["ok"] / figures["statements"]


def deaths(figures):
    """Kills and other deaths: without a cgroup nobody counts the kernel's kills, but a death is one all the same."""
    return max(figures["deaths"], figures["oom_kills"] or 0)


def cancels(figures):
    return (figures["all"]["p99_ms"] <= 250 and figures["all"]["max_ms"] <= 2000, figures["all"]["p99_ms"] <= 50 and figures["all"]["max_ms"] <= 500)


def concurrent(figures):
    everything = figures["finished"] == 1 and not figures["concurrent"]["died"]
    return everything, everything and figures["ratio"] <= 1.5


def flat(figures):
    return max(spread for spread in figures["spread_from_1e6"].values() if spread is not None)


TARGETS = (
    Target(
        "the server dies, by the kernel's hand or its own, under random heavy queries in a cgroup of 1.15 x budget + 256 MiB",
        "0 in 5,000",
        "0 in 100,000",
        "random",
        lambda f: f"{deaths(f)} in {f['statements']:,}",
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
        lambda f: f"{percent(f['finished'])} of {f['statements']}, {f['verdicts']['wrong']} wrong",
        lambda f: (f["finished"] >= 0.95 and not wrong(f), f["finished"] >= 0.995 and not wrong(f)),
    ),
    Target(
        "p99 of a small query while 4 heavy ones run, against idle",
        "10x",
        "3x",
        "small",
        lambda f: f"{f['p99_ratio']:.1f}x ({f['idle']['all']['p99_ms']:.1f} ms, then {f['busy']['all']['p99_ms']:.1f} ms)",
        at_most(lambda f: f["p99_ratio"], 10, 3),
    ),
    Target(
        "cancel until all is released",
        "p99 250 ms, max 2 s",
        "p99 50 ms, max 500 ms",
        "cancel",
        lambda f: f"p99 {f['all']['p99_ms']:.0f} ms, max {f['all']['max_ms']:.0f} ms of {f['cancelled']}",
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
        "growth of the peak from 1e6 to 1e8 rows, aggregated or streamed",
        "15 %",
        "15 %",
        "constant",
        lambda f: percent(flat(f)),
        at_most(flat, 0.15, 0.15),
    ),
    Target(
        "above idle, 10 s after a first load",
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
    if result["experiment"] == "partitions":
        found += [f"{row['partitions']} partitions within the budget: {row['verdict']}" for row in figures["rows"] if row["budget"] and row["verdict"] != "ok"]
    return found
