"""What builds of the same server differ in: the eight queries, hot, and large results to a client that drops them.

Each `--build NAME=PATH` is a server of its own over the same data; all take turns. Times are held against those of the first.
"""

import concurrent.futures
import contextlib
import dataclasses
import pathlib

import pyarrow.parquet as pq

import contenders
import harness
import tables
from lab import note
from race import mean, race, ratio
from server import serving
from statements import EIGHT

from experiments import wire

DEFAULTS = {"rows": [10**7], "rounds": 8, "seconds": 3.0}


def builds(arguments):
    """{name: program}; the server under test alone, where none are given."""
    given = dict(build.split("=", 1) for build in arguments.build) or {"as given": arguments.binary}
    return {name: pathlib.Path(path).resolve() for name, path in given.items()}


@contextlib.contextmanager
def started(arguments, folder, program):
    """A server of that program, its table hot. The program is looked up when the server starts, and not again."""
    usual, harness.BIN = harness.BIN, program
    try:
        with serving(contenders.setup(arguments, folder)) as server:
            harness.BIN = usual
            contenders.call(server, f"/hot/preload/{tables.TEN}")
            yield server
    finally:
        harness.BIN = usual


def streamed(arguments, servers, folder, rows):
    """{shape: {build: GB/s and processor time}} of one stream, and what is wrong."""
    found, problems = {}, []
    sources = [dataclasses.replace(wire.ours(server), name=name) for name, server in servers.items()]
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        for shape, columns in wire.SHAPES.items():
            size = sum(pq.read_table(source, columns=columns).nbytes for source in tables.sources(folder).values())
            found[shape], wrong = wire.measure(pool, sources, columns, *wire.WAYS[0], rows, size, arguments)
            problems += [f"profiles, {shape}: {words}" for words in wrong]
            note(f"{shape}: " + ", ".join(f"{name} {of['p50']:.2f} GB/s {of['cpu_s_per_gb']:.2f} s/GB" for name, of in found[shape].items()))
    return found, problems


def run(arguments):
    (rows,), programs = arguments.rows, builds(arguments)
    folder, first = tables.ten(rows), next(iter(programs))
    harness.BIN = programs[first]  # Whose version the results are written down with.
    with contextlib.ExitStack() as stack:
        servers = {name: stack.enter_context(started(arguments, folder, program)) for name, program in programs.items()}
        clients = {name: stack.enter_context(contenders.updraft(server))[0] for name, server in servers.items()}
        field = [contenders.Contender(name, client.query) for name, client in clients.items()]
        oracle = stack.enter_context(contenders.oracle(folder))
        queries = race(field, EIGHT, oracle, arguments)
        streams, problems = streamed(arguments, servers, folder, rows)
    for row in queries["rows"]:
        problems += [f"profiles, {row['statement']}, {name}: {why}" for name, time in row["times"].items() for why in (time.get("wrong"), time.get("error")) if why]
    means = {name: round(mean(ratio(row, name, first) for row in queries["rows"]) or 0, 3) for name in programs}
    sizes = {name: program.stat().st_size for name, program in programs.items()}
    return {"rows": rows, "first": first, "sizes": sizes, "queries": queries, "means": means, "streams": streams, "problems": problems}
