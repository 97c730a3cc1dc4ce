"""Runs of several experiments: all of them for docs/memory.md, and the slice that CI can afford."""

import copy
import time

from common import POOLS
from lab import note, size
from targets import broken

# What each experiment gets in `all`, so that everything, with every pool, takes about half an hour on two cores.
ALL = {
    "random": {"queries": 500},
    "tenth": {"scale": 0.3},
    "small": {"queries": 200},
    "cancel": {"queries": 90},
    "concurrent": {},
    "partitions": {},
    "constant": {},
    "idle": {},
}
# Stock pools are compared where they differ; the rest of the server is the same.
COMPARED = {"random", "tenth", "concurrent", "partitions", "small"}
# Timings of a binary that is not optimised say little, so the slice has none: it looks for deaths, wrong answers, memory.
SLICE = {"random": {"queries": 120, "clients": 6, "scale": 0.02, "budget": size("128MiB")}}
FINISHED_MIN = 0.95


def varied(arguments, experiment, pool, **changes):
    """The command line of one experiment of a suite, as if it had been given alone."""
    one = copy.copy(arguments)
    one.experiment, one.pool = experiment, pool
    for name, value in changes.items():
        setattr(one, name, value)
    one.given = [word for name, value in changes.items() for word in (f"--{name}", f"{value >> 20}MiB" if name == "budget" else str(value))]
    one.given += ["--seed", str(arguments.seed)] if arguments.seed != 1 else []
    one.given += ["--pool", pool] if pool != POOLS[0] else []
    return one


def all(arguments, run):  # noqa: A001
    begin, problems = time.monotonic(), []
    for experiment, changes in ALL.items():
        for pool in POOLS if experiment in COMPARED else POOLS[:1]:
            result = run(varied(arguments, experiment, pool, **changes))
            if pool == POOLS[0]:
                problems += broken(result)
            note(f"-- {time.monotonic() - begin:.0f} s so far")
    return told(problems)


def slice(arguments, run):  # noqa: A001
    problems = []
    for experiment, changes in SLICE.items():
        result = run(varied(arguments, experiment, arguments.pool, **changes))
        figures = result["figures"]
        problems += broken(result)
        if experiment == "random" and "death" not in figures and figures["verdicts"]["ok"] < FINISHED_MIN * figures["statements"]:
            problems.append(f"of random queries only {figures['verdicts']['ok']} of {figures['statements']} finish")
    return told(problems)


def told(problems):
    for problem in problems:
        note(f"BROKEN: {problem}")
    note("nothing is broken" if not problems else f"{len(problems)} promises are broken")
    return 1 if problems else 0
