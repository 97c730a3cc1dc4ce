"""What the experiments share: sizes, percentiles, and how a run is described."""

import argparse
import datetime
import functools
import math
import os
import platform
import re
import subprocess

import duckdb
import pyarrow as pa

import harness
import tables
from oracle import Oracle
from server import Setup

UNITS = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
POOLS = ("fair", "datafusion-fair", "greedy")


def size(text):
    """Bytes of "512MiB"."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]iB|B|)", text.strip())
    if not match:
        raise argparse.ArgumentTypeError(f"{text} is not a size such as 512MiB")
    return int(float(match[1]) * UNITS[match[2]])


def percentile(values, share):
    """The smallest value that `share` of all do not exceed."""
    values = sorted(values)
    return values[max(0, math.ceil(share * len(values)) - 1)]


def spread(values):
    """p50, p99 and the largest, in milliseconds, of seconds."""
    return {"n": len(values), "p50_ms": ms(percentile(values, 0.50)), "p99_ms": ms(percentile(values, 0.99)), "max_ms": ms(max(values))}


def ms(seconds):
    return round(seconds * 1e3, 2)


def host_memory():
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


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
    first = lambda *command: subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()  # noqa: E731
    with open("/proc/cpuinfo") as info:
        cpu = next((line.split(":")[1].strip() for line in info if line.startswith("model name")), platform.machine())
    return {
        "experiment": arguments.experiment,
        "command": command_of(arguments),
        "pool": arguments.pool,
        "seed": arguments.seed,
        "budget": arguments.budget,
        "scale": arguments.scale,
        "day": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "machine": {"cpu": cpu, "cores": len(os.sched_getaffinity(0)), "memory": host_memory(), "kernel": ".".join(platform.release().split(".")[:2])},
        "versions": {"updraft": harness.run("--version").stdout.strip(), "commit": first("git", "-C", str(harness.ROOT), "describe", "--always", "--dirty"), "duckdb": duckdb.__version__, "pyarrow": pa.__version__},
    }


def command_of(arguments):
    """The command line that makes these figures again: what was given, but for what belongs to one machine."""
    return " ".join(["integration-tests/torture/run.py", arguments.experiment, *arguments.given])
