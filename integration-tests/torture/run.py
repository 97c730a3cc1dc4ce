#!/usr/bin/env python3
"""Tortures a server for its memory promises and writes down what came of it. README.md says how to use it."""

import argparse
import importlib
import json
import os
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
VENV = ROOT / ".venv/bin/python"
if pathlib.Path(sys.prefix) != VENV.parents[1] and VENV.exists():
    os.execv(VENV, [str(VENV), *sys.argv])
sys.path.insert(1, str(ROOT / "integration-tests/python"))

import report  # noqa: E402
from common import POOLS, described  # noqa: E402
from lab import adds_render, completed, kept, note, size, starts, takes_server  # noqa: E402
from server import Died  # noqa: E402
from tables import WORK  # noqa: E402
from targets import broken  # noqa: E402

EXPERIMENTS = {
    "random": "random heavy statements by many clients in a cgroup, every answer compared with DuckDB's",
    "tenth": "each heavy shape at a tenth of its working set: does it finish, and is it right?",
    "small": "small queries while heavy ones run, against idle",
    "cancel": "from cancelling a heavy query until all it held is released",
    "concurrent": "64 heavy queries at once, against one after the other",
    "partitions": "memory and time of a wide GROUP BY at 20, 10, 4, 2 and auto partitions",
    "constant": "peak memory of aggregating and of streaming 1e5 to 1e8 rows",
    "idle": "resident memory before and after load",
}


def parser():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = p.add_subparsers(dest="experiment", required=True, metavar="EXPERIMENT")
    for name, text in {**EXPERIMENTS, "all": "every experiment with every pool, and 500 random statements, in about half an hour", "slice": "the part that CI runs: about a minute, fails when a promise is broken"}.items():
        c = commands.add_parser(name, help=text, description=text)
        c.add_argument("--seed", type=int, default=1, help="the statements follow from it [1]")
        c.add_argument("--queries", type=int, help="how many statements, or repetitions [fits the experiment]")
        c.add_argument("--repeat", type=int, help="constant: how often each size runs, whose median counts [3]")
        c.add_argument("--only", type=int, nargs="+", metavar="I", help="random: only statement I of the seed; shows the rows that differ")
        c.add_argument("--budget", type=size, default=size("512MiB"), help="engine.memory_limit [512MiB]")
        c.add_argument("--pool", choices=POOLS, default=POOLS[0], help="engine.memory_pool [fair]")
        c.add_argument("--clients", type=int, help="clients at once [fits the experiment]")
        c.add_argument("--scale", type=float, help="of the data; 1 is 6 million rows of lineitem [fits the experiment]")
        takes_server(c)
    adds_render(commands, "memory")
    return p


def run(arguments):
    """Runs one experiment and writes its JSON, unless it plays single statements again: these are no figures."""
    module = importlib.import_module(f"experiments.{arguments.experiment}")
    completed(arguments, getattr(module, "DEFAULTS", {}))
    note(f"== {arguments.experiment}, pool {arguments.pool}")
    try:
        figures = module.run(arguments)
    except Died as death:
        note(f"THE SERVER DIED: {death}")
        figures = {"death": death.left}
    result = described(arguments) | {"figures": figures}
    if arguments.only is None:
        kept(result, WORK / f"{arguments.experiment}-{arguments.pool}.json")
    return result


def main():
    arguments = parser().parse_args()
    if arguments.experiment == "render":
        return report.render(arguments.results, arguments.check)
    starts(arguments, WORK)
    if arguments.experiment in ("all", "slice"):
        import suites

        return getattr(suites, arguments.experiment)(arguments, run)
    result = run(arguments)
    print(json.dumps({key: value for key, value in result["figures"].items() if not isinstance(value, list)}, indent=1))
    problems = broken(result)
    for problem in problems:
        note(f"BROKEN: {problem}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
