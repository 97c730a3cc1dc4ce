#!/usr/bin/env python3
"""Measures Updraft against those a user might take instead and writes down what came of it. README.md says how to use it."""

import argparse
import importlib
import os
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
VENV = ROOT / ".venv/bin/python"
if pathlib.Path(sys.prefix) != VENV.parents[1] and VENV.exists():
    os.execv(VENV, [str(VENV), *sys.argv])
sys.path.insert(1, str(ROOT / "integration-tests/python"))

import contenders  # noqa: E402
import report  # noqa: E402
import suites  # noqa: E402
from lab import adds_render, completed, kept, note, origin, size, starts, takes_server  # noqa: E402
from server import Died  # noqa: E402
from tables import WORK  # noqa: E402

EXPERIMENTS = {
    "eight": "the eight queries over the table of ten columns, hot, against all peers",
    "tpch": "the 22 queries of TPC-H, hot, against all peers",
    "rows": "time and memory from 1e5 to 1e8 rows",
    "files": "time and memory from 1 to 10,000 files",
    "skew": "the cache under a skewed load over four times more than fits",
    "preload": "loading several tables at once, against one after the other",
    "memory": "a table in the cache, against the same as plain Arrow",
    "repeated": "the cache of results, which all else runs without",
    "wire": "throughput of large results, against pyarrow's C++ Flight server and stock arrow-flight",
    "cold": "the eight queries and TPC-H with all caches empty, against DuckDB over Parquet",
    "s3": "TPC-H and the eight queries from a slow object store, against local files",
    "latency": "SELECT 1 over Flight and ADBC, against a C++ server with a fixed table and ROAPI",
    "clients": "small queries by 1 to 64 clients, against other servers",
    "connections": "what idle connections and statements cost, and what busy clients do to each other",
    "misuse": "clients that misbehave: what they cost, and what others notice",
    "profiles": "builds of the server against each other: the eight queries and large results",
}


def count(text):
    """A whole number, as 1000000 or 1e6."""
    return int(float(text))


def parser():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = p.add_subparsers(dest="experiment", required=True, metavar="EXPERIMENT")
    several = {"all": "every experiment but `profiles`, in some 50 minutes", "smoke": "the part that CI runs: a few minutes, fails on a wrong answer or a crash, never on a time"}
    for name, text in {**EXPERIMENTS, **several}.items():
        c = commands.add_parser(name, help=text, description=text)
        c.add_argument("--rows", type=count, nargs="+", metavar="N", help="sizes of the table of ten columns, such as 1e5 1e6 [fits the experiment]")
        c.add_argument("--files", type=count, nargs="+", metavar="N", help="numbers of files [fits the experiment]")
        c.add_argument("--scale", type=float, help="of TPC-H; 1 is 6 million rows of lineitem [fits the experiment]")
        c.add_argument("--rounds", type=int, help="the least number of rounds [fits the experiment]")
        c.add_argument("--seconds", type=float, help="quick statements get up to five times as many rounds within this time [fits the experiment]")
        c.add_argument("--queries", type=int, help="how many queries, or statements that are prepared or planned [fits the experiment]")
        c.add_argument("--pages", nargs="+", choices=("warm", "dropped"), help="cold: whether the kernel holds the files, or has to read them too [both]")
        c.add_argument("--clients", type=count, nargs="+", metavar="N", help="how many at once; connections: idle, busy and streaming ones [fits the experiment]")
        c.add_argument("--build", action="append", default=[], metavar="NAME=PATH", help="profiles: a build of the server, the first of which the others are held against")
        c.add_argument("--only", nargs="+", choices=list(contenders.NAMES), default=list(contenders.NAMES), metavar="NAME", help=f"of {', '.join(contenders.NAMES)} [all]")
        c.add_argument("--seed", type=int, default=1, help="the order in which the contenders run, and the skewed load, follow from it [1]")
        c.add_argument("--budget", type=size, help="engine.memory_limit [fits the experiment]")
        c.add_argument("--hot", type=size, help="hot.memory_limit [fits the experiment]")
        takes_server(c)
    adds_render(commands, "performance")
    return p


# What every experiment has that does not say otherwise.
DEFAULTS = {"rounds": 5, "seconds": 0.0, "budget": size("6GiB"), "hot": size("4GiB")}


def run(arguments):
    """Runs one experiment and writes its JSON."""
    module = importlib.import_module(f"experiments.{arguments.experiment}")
    completed(arguments, {**DEFAULTS, **module.DEFAULTS})
    note(f"== {arguments.experiment}")
    try:
        figures = module.run(arguments)
    except Died as death:
        figures = {"death": death.left, "problems": [f"the server died: {death}"]}
    command = " ".join(["integration-tests/bench/run.py", arguments.experiment, *arguments.given])
    limits = {"budget": arguments.budget, "hot": arguments.hot}
    result = {"experiment": arguments.experiment, "command": command, **limits, **origin(*contenders.installed()), "figures": figures}
    print(report.aligned("\n".join(filter(None, report.section(result)))))
    kept(result, arguments.results / f"{arguments.experiment}.json")
    return result


def main():
    arguments = parser().parse_args()
    if arguments.experiment == "render":
        return report.render(arguments.results, arguments.check)
    starts(arguments, WORK)
    arguments.results = WORK / "smoke" if arguments.experiment == "smoke" else WORK
    if arguments.experiment in ("all", "smoke"):
        return getattr(suites, arguments.experiment)(arguments, run)
    return suites.told([run(arguments)])


if __name__ == "__main__":
    sys.exit(main())
