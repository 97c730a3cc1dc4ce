"""How fast a result gets to the client: against pyarrow's C++ Flight server, and one on stock arrow-flight and tonic, with the same
table in memory.

`streams`: so many clients, each with a connection of its own, each reads everything. `endpoints`: one client with one connection
reads so many endpoints side by side. Batches are dropped as they come, so that it is the way that is measured. Gigabytes are those
of the table as plain Arrow, for all alike.
"""

import concurrent.futures
import contextlib
import dataclasses
import random
import time
from collections.abc import Callable

import psutil
import pyarrow.parquet as pq
from pyarrow import flight

import answers
import contenders
import fsql
import peers
import tables
from lab import note, percentile
from server import serving

DEFAULTS = {"rows": [10**7], "rounds": 15}
SHAPES = {"full scan": None, "two columns": ["id", "score"]}
# A sample is about so many bytes, by several scans if need be: one scan of a table is up to twice as fast as the next, and the kernel
# counts processor time in steps of 10 ms.
SAMPLE_BYTES, SCANS_MAX = 2_500_000_000, 5
# The first is what is promised. The others, which take longer, get fewer rounds.
WAYS = (("streams", 1), ("streams", 2), ("streams", 8), ("endpoints", 2), ("endpoints", 8))
ROUNDS_LESS = 3


@dataclasses.dataclass(frozen=True)
class Source:
    """A server and how it is asked: `describe(columns, parts)` gives the descriptor, `connect(parts)` a client."""

    name: str
    process: psutil.Process
    connect: Callable
    describe: Callable


def select(columns):
    return f"SELECT {', '.join(columns or ['*'])} FROM {tables.TEN}"


def ours(server):
    def connect(parts):
        client = flight.FlightClient(server.uri, middleware=[fsql.Cookies()])
        if parts > 1:
            refused = fsql.set_session(client, None, endpoints=str(parts))
            assert not refused, refused
        return client

    return Source("updraft", server.usage, connect, lambda columns, _: fsql.statement(select(columns)))


def others(name, address, process, describe):
    """One server, with large and with small batches."""
    connect = lambda _: flight.FlightClient(address)  # noqa: E731
    size = lambda rows: lambda columns, parts: describe(peers.wanted(columns=columns, batch_rows=rows, parts=parts))  # noqa: E731
    return [Source(f"{name}-64k", process, connect, size(65_536)), Source(f"{name}-8k", process, connect, size(8_192))]


def drain(client, ticket):
    return sum(chunk.data.num_rows for chunk in client.do_get(ticket))


def scan(pool, source, columns, way, count):
    """Rows of all streams together, and the seconds they took."""
    parts = count if way == "endpoints" else 1
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(source.connect(parts)) for _ in range(count if way == "streams" else 1)]
        infos = lambda client: client.get_flight_info(source.describe(columns, parts))  # noqa: E731
        for client in clients:  # Each connection stands before the clock runs.
            infos(client)
        begin = time.perf_counter()
        if way == "endpoints":
            (client,) = clients
            rows = pool.map(lambda endpoint: drain(client, endpoint.ticket), infos(client).endpoints)
        else:
            rows = pool.map(lambda client: sum(drain(client, endpoint.ticket) for endpoint in infos(client).endpoints), clients)
        return sum(rows), time.perf_counter() - begin


def used(process):
    return sum(process.cpu_times()[:2])


def measure(pool, sources, columns, way, count, rows, size, arguments):
    """{name: GB/s and the server's CPU seconds per GB}, all interleaved; and what is wrong."""
    order, runs, cpu, wrong = random.Random(arguments.seed), {}, {}, []
    rounds = arguments.rounds if (way, count) == WAYS[0] else max(1, arguments.rounds // ROUNDS_LESS)
    times = count if way == "streams" else 1
    scans = min(SCANS_MAX, max(1, round(SAMPLE_BYTES / max(1, size * times))))
    each = size * times * scans / 1e9
    for number in range(rounds + 1):
        order.shuffle(drawn := list(sources))
        for source in drawn:
            before = used(source.process)
            found = [scan(pool, source, columns, way, count) for _ in range(scans)]
            wrong += [f"{source.name} by {count} {way}: {got} rows" for got, _ in found if got != rows * times]
            if number:  # The first round is not counted.
                runs.setdefault(source.name, []).append(each / sum(seconds for _, seconds in found))
                cpu[source.name] = cpu.get(source.name, 0.0) + used(source.process) - before
    figures = {
        name: {"n": len(found), "scans": scans, **{f"p{share}": round(percentile(found, share / 100), 3) for share in (10, 50, 90)}, "cpu_s_per_gb": round(cpu[name] / (each * len(found)), 3)}
        for name, found in runs.items()
    }
    return figures, wrong


def right(server, folder, columns):
    """What is wrong with the answer itself, in words."""
    with contenders.oracle(folder) as oracle, contenders.updraft(server) as (contender,):
        return answers.difference(contender.query(select(columns)), answers.answer(oracle(select(columns)), False))


def run(arguments):
    (rows,), absent, problems = arguments.rows, {}, []
    folder = tables.ten(rows)
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(serving(contenders.setup(arguments, folder)))
        if contenders.hot(server) is not None:
            contenders.call(server, f"/hot/preload/{tables.TEN}")
        sources = [ours(server), *others("arrow", *stack.enter_context(contenders.script("arrow_flight", folder)), contenders.text)]
        try:
            sources += others("stock", *stack.enter_context(peers.server("stock_flight", folder)), peers.stock)
        except (OSError, RuntimeError) as error:
            absent["stock"] = str(error).splitlines()[0]
        pool, shapes = stack.enter_context(concurrent.futures.ThreadPoolExecutor(max(count for _, count in WAYS))), {}
        for shape, columns in SHAPES.items():
            if wrong := right(server, folder, columns):
                problems.append(f"wire, {shape}: {wrong}")
            size = sum(pq.read_table(source, columns=columns).nbytes for source in tables.sources(folder).values())
            shapes[shape] = {"bytes": size, "ways": {}}
            for way, count in WAYS:
                # Small batches are a question of one stream.
                asked = sources if (way, count) == WAYS[0] else [source for source in sources if not source.name.endswith("-8k")]
                found, wrong = measure(pool, asked, columns, way, count, rows, size, arguments)
                problems += [f"wire, {shape}: {words}" for words in wrong if words.startswith("updraft")]
                shapes[shape]["ways"][f"{count} {way}"] = found
                note(f"{shape}, {count} {way}: " + ", ".join(f"{name} {of['p50']:.2f} GB/s {of['cpu_s_per_gb']:.2f} s/GB" for name, of in found.items()))
    return {"rows": rows, "shapes": shapes, "absent": absent, "problems": problems}
