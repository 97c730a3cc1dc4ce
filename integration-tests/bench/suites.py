"""Runs of several experiments: all of them for docs/performance.md, and the part that CI can afford."""

import copy
import time

from lab import note
from targets import missed

# Without `profiles`, which needs builds that take an hour.
ALL = ("eight", "tpch", "rows", "files", "skew", "preload", "memory", "repeated", "wire", "cold", "s3", "latency", "clients", "connections", "misuse")
# What each gets in CI. Its binary is not optimised and its machine is not quiet: no time is looked at.
SMOKE = {
    "eight": {"rows": [100_000], "rounds": 1, "seconds": 0.0},
    "tpch": {"scale": 0.01, "rounds": 1},
    "rows": {"rows": [0, 1_000, 100_000], "rounds": 1, "seconds": 0.0},
    "files": {"rows": [10_000], "files": [1, 20], "rounds": 1, "seconds": 0.0},
    "skew": {"rows": [2_000], "queries": 60},
    "preload": {"rows": [10_000], "rounds": 1},
    "memory": {"rows": [100_000], "scale": 0.01},
    "repeated": {"rows": [10_000], "rounds": 1, "seconds": 0.0},
    "wire": {"rows": [10_000], "rounds": 1},
    "cold": {"rows": [10_000], "scale": 0.01, "rounds": 1, "seconds": 0.0, "pages": ["dropped"]},
    "s3": {"rows": [10_000], "scale": 0.01, "rounds": 1},
    "latency": {"rounds": 20},
    "clients": {"rows": [10_000], "clients": [4], "rounds": 1, "seconds": 1.0},
    "connections": {"rows": [10_000], "clients": [100, 10, 8], "queries": 50, "seconds": 0.5},
    "misuse": {"rows": [300_000], "clients": [5], "queries": 30, "seconds": 0.5},
    "profiles": {"rows": [10_000], "rounds": 1, "seconds": 0.0},
}


def varied(arguments, experiment, changes):
    """The command line of one experiment of a suite, as if it had been given alone. What is given to the suite wins."""
    one = copy.copy(arguments)
    one.experiment = experiment
    for name, value in changes.items():
        if getattr(one, name) is None:
            setattr(one, name, value)
            one.given = [*one.given, f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return one


def all(arguments, run):  # noqa: A001
    return told(each(arguments, run, dict.fromkeys(ALL, {})))


def smoke(arguments, run):
    return told(each(arguments, run, SMOKE), targets=False)


def each(arguments, run, experiments):
    begin, results = time.monotonic(), []
    for experiment, changes in experiments.items():
        results.append(run(varied(arguments, experiment, changes)))
        note(f"-- {time.monotonic() - begin:.0f} s so far")
    return results


def told(results, targets=True):
    """Says what is wrong, and which targets are missed; returns the exit code, which only the former decides."""
    for result in results if targets else ():
        for words in missed(result):
            note(words)
    problems = [problem for result in results for problem in result["figures"]["problems"]]
    for problem in problems:
        note(f"BROKEN: {problem}")
    note(f"{len(problems)} problems" if problems else "every answer is right")
    return 1 if problems else 0
