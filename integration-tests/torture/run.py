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

import harness  # noqa: E402
import report  # noqa: E402
from common import POOLS, described  # noqa: E402
from lab import given, note, size  # noqa: E402
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
    for name, text in {**EXPERIMENTS, "all": "every experiment with every pool, in some 25 minutes", "slice": "the part that CI runs: about a minute, fails when a promise is broken"}.items():
        c = commands.add_parser(name, help=text, description=text)
        c.add_argument("--seed", type=int, default=1, help="the statements follow from it [1]")
        c.add_argument("--queries", type=int, help="how many statements, or repetitions [fits the experiment]")
        c.add_argument("--only", type=int, nargs="+", metavar="I", help="random: only statement I of the seed; shows the rows that differ")
        c.add_argument("--budget", type=size, default=size("512MiB"), help="engine.memory_limit [512MiB]")
        c.add_argument("--pool", choices=POOLS, default=POOLS[0], help="engine.memory_pool [fair]")
        c.add_argument("--clients", type=int, help="clients at once [fits the experiment]")
        c.add_argument("--scale", type=float, help="of the data; 1 is 6 million rows of lineitem [fits the experiment]")
        c.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the server, as for `updraft serve --set`")
        c.add_argument("--binary", type=pathlib.Path, default=os.environ.get("UPDRAFT_BIN", ROOT / "target/release/updraft"), help="the server [UPDRAFT_BIN, or target/release/updraft]")
    r = commands.add_parser("render", help="write docs/memory.md from the results in docs/memory")
    r.add_argument("results", nargs="*", type=pathlib.Path, help="results to take over into docs/memory first (.work/torture/*.json)")
    r.add_argument("--check", action="store_true", help="write nothing; fail if docs/memory.md is not what the figures say")
    return p


def run(arguments):
    """Runs one experiment and writes its JSON."""
    module = importlib.import_module(f"experiments.{arguments.experiment}")
    for name, value in getattr(module, "DEFAULTS", {}).items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    note(f"== {arguments.experiment}, pool {arguments.pool}")
    try:
        figures = module.run(arguments)
    except Died as death:
        note(f"THE SERVER DIED: {death}")
        figures = {"death": death.left}
    result = described(arguments) | {"figures": figures}
    path = WORK / f"{arguments.experiment}-{arguments.pool}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    note(f"{path.relative_to(WORK.parent)} written")
    return result


def main():
    arguments = parser().parse_args()
    if arguments.experiment == "render":
        return report.render(arguments.results, arguments.check)
    harness.BIN = pathlib.Path(arguments.binary).resolve()
    harness.WORK = WORK / "servers"
    arguments.given = given(sys.argv[2:])
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
