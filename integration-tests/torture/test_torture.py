"""What the harness must not be wrong about: that statements stay what they are, and that a broken promise is seen."""

import copy
import hashlib

import pytest

import queries
import report
import targets
from experiments import constant
from lab import MIB


def test_statements_of_a_seed_stay_what_they_are():
    """Else a number that a failed run named is another statement today. Who changes statements on purpose changes this, and no kept
    figure of random statements can be made again."""
    text = "\n".join(f"{query.index} {query.shape} {query.ordered} {query.sql}" for query in (queries.make(7, number) for number in range(100)))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "9047706602c2fe9e"


def peak(partitions, mib, verdict="ok", budget=None):
    return {"partitions": partitions, "budget": budget, "verdict": verdict, "rss_peak": mib * MIB}


HELD = {
    "random": {
        "statements": 5000, "deaths": 0, "oom_kills": 0, "errors": [], "rss_peak": 500, "rss_must": 500, "rss_aim": 400, "verdicts": {"ok": 4000, "wrong": 0},
        "no_cgroup": "not root", "cgroup_refused": False,
    },
    "tenth": {"statements": 42, "finished": 0.95, "finished_at_a_tenth": 0.95, "tenths": 37, "verdicts": {"wrong": 0}},
    "small": {"p99_ratio": 10, "idle": {"all": {"p99_ms": 1}}, "busy": {"all": {"p99_ms": 10}}},
    "cancel": {"cancelled": 200, "all": {"p99_ms": 250, "max_ms": 2000}, "restless": []},
    "concurrent": {"queries": 64, "finished": 1.0, "ratio": 3, "concurrent": {"died": False, "verdicts": {"ok": 64}}},
    "constant": {"spread_from_1e6": {"aggregate": 0.15, "stream": 0.01}},
    "partitions": {"rows": [peak("20", 4000), peak("10", 2756), peak("auto", 9000), peak("20", 3000, budget=1), peak("auto", 700, budget=1)]},
    "idle": {"idle": 100, "after": 110, "over_idle": 0.1, "again": 121, "over_after": 0.1},
}  # fmt: skip
# What breaks one promise each, by where it is among the figures, and what is said of it.
BROKEN = [
    ("random", ["deaths"], 1, "dies"),
    ("random", ["oom_kills"], 1, "dies"),
    ("random", ["rss_peak"], 501, "peak resident"),
    ("random", ["verdicts", "wrong"], 1, "wrong answers"),
    ("random", ["errors"], [{"message": "bug"}], "logged an error"),
    ("random", ["cgroup_refused"], True, "no cgroup"),
    ("tenth", ["finished"], 0.94, "a tenth"),
    ("tenth", ["finished_at_a_tenth"], 0.94, "a tenth"),
    ("tenth", ["verdicts", "wrong"], 1, "a tenth"),
    ("small", ["p99_ratio"], 10.1, "small query"),
    ("cancel", ["all", "p99_ms"], 251, "cancel"),
    ("cancel", ["all", "max_ms"], 2001, "cancel"),
    ("cancel", ["restless"], ["sort"], "1 went on computing"),
    ("concurrent", ["finished"], 0.98, "64 heavy"),
    ("concurrent", ["concurrent", "died"], True, "the server died"),
    ("constant", ["spread_from_1e6", "stream"], 0.16, "growth"),
    ("partitions", ["rows", 4, "verdict"], "exhausted", "1 of 2 finish"),
    ("partitions", ["rows", 1, "rss_peak"], 2757 * MIB, "10: 2,757 MiB (1.38x)"),
    ("partitions", ["rows", 1, "verdict"], "exhausted", "peak without a budget"),
    ("idle", ["over_idle"], 0.11, "first load"),
    ("idle", ["over_after"], 0.11, "same load once more"),
]  # fmt: skip


def result(experiment, **changes):
    return {"experiment": experiment, "pool": "fair", "figures": copy.deepcopy(HELD[experiment]) | changes}


def test_each_promise_has_figures_that_hold_it_and_some_that_do_not():
    assert {target.experiment for target in targets.TARGETS} == HELD.keys() == {experiment for experiment, *_ in BROKEN}
    assert [targets.broken(result(experiment)) for experiment in HELD] == [[]] * len(HELD)


@pytest.mark.parametrize(("experiment", "where", "figure", "says"), BROKEN)
def test_a_broken_promise_is_seen(experiment, where, figure, says):
    broken = result(experiment)
    *path, last = where
    at = broken["figures"]
    for key in path:
        at = at[key]
    at[last] = figure
    (problem,) = targets.broken(broken)
    assert says in problem


@pytest.mark.parametrize("experiment", HELD)
def test_a_server_that_died_holds_nothing(experiment):
    assert targets.broken({"experiment": experiment, "figures": {"death": {}}}) == [f"{experiment}: the server died"]


def test_few_statements_without_a_death_prove_nothing():
    died, few, many = ({"deaths": deaths, "oom_kills": None, "statements": n} for deaths, n in ((1, 10), (0, 4999), (0, 5000)))
    value = targets.TARGETS[0].value
    assert (value(died), value(few), value(many)) == ("1 in 10", "0 in 4,999, too few to tell", "0 in 5,000")


def test_each_pool_is_named_with_its_own_command():
    def made(pool, words):
        return {"command": f"integration-tests/torture/run.py random {words}".strip() + ("" if pool == "fair" else f" --pool {pool}")}

    alike = {("random", pool): made(pool, "") for pool in ("fair", "greedy")}
    assert report.commands(alike, "random") == "`run.py random`"
    assert report.commands(alike | {("random", "datafusion-fair"): made("datafusion-fair", "--queries 9")}, "random") == "`run.py random` (fair, greedy) and `run.py random --queries 9` (datafusion-fair)"
    assert report.commands(alike, "cancel") == "-"


def test_the_middle_of_several_runs_counts():
    runs = [{"rss_before": before, "rss_peak": peak, "seconds": 1.0} for before, peak in ((1, 30), (2, 10), (3, 11), (3, 12))]
    assert constant.summary(runs) == {"rss_before": 2, "rss_peak": 11, "seconds": 1.0, "rss_peak_min": 10, "rss_peak_max": 30, "runs": 4}
