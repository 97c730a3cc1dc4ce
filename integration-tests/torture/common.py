"""What the experiments share: the server and the answers that the command line asks for, and how a run is described."""

import functools

import tables
from lab import ms, origin, percentile
from oracle import Oracle
from server import Setup

POOLS = ("fair", "datafusion-fair", "greedy")


def spread(values):
    """p50, p99 and the largest, in milliseconds, of seconds."""
    return {"n": len(values), "p50_ms": ms(percentile(values, 0.50)), "p99_ms": ms(percentile(values, 0.99)), "max_ms": ms(max(values))}


@functools.cache
def _oracle(folder):
    return Oracle(folder, tables.stamp(folder))


def oracle_of(arguments):
    return _oracle(tables.folder(arguments.scale))


def setup_of(arguments, data=None, **changes):
    """The server that the command line asks for, over the data of its scale unless over other `data`."""
    given = {"pool": arguments.pool, "budget": arguments.budget, "settings": tuple(arguments.set)}
    return Setup(data=data or tables.folder(arguments.scale), **(given | changes))


def described(arguments):
    """Where, when and how a figure was made."""
    return {
        "experiment": arguments.experiment,
        "command": command_of(arguments),
        "pool": arguments.pool,
        "seed": arguments.seed,
        "budget": arguments.budget,
        "scale": arguments.scale,
        **origin("duckdb", "pyarrow"),
    }


def command_of(arguments):
    """The command line that makes these figures again: what was given, but for what belongs to one machine."""
    return " ".join(["integration-tests/torture/run.py", arguments.experiment, *arguments.given])
