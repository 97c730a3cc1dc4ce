"""Who is measured: Updraft over Flight and ADBC, and those a user might take instead.

Each answers a statement with a pyarrow.Table in this process, as a client has it. Servers have processes of their own.
"""

import contextlib
import dataclasses
import functools
import importlib.metadata
import os
import pathlib
import re
import subprocess
import sys
import time
from collections.abc import Callable

import adbc_driver_flightsql.dbapi as adbc
import duckdb
import psutil
import pyarrow as pa
from pyarrow import flight

import fsql
import harness
import tables
from server import Setup, serving

CORES = len(os.sched_getaffinity(0))
# Updraft by its two ways to the client, and the rest. The order is that of the tables.
OURS = ("updraft", "adbc")
NAMES = {
    "updraft": "Updraft",
    "adbc": "Updraft by ADBC",
    "duckdb": "DuckDB native",
    "duckdb-parquet": "DuckDB Parquet",
    "duckdb-flight": "DuckDB by Flight",
    "datafusion": "DataFusion MemTable",
    "roapi": "ROAPI",
}
PACKAGES = ("pyarrow", "adbc-driver-flightsql", "duckdb", "datafusion", "roapi")
START_SECONDS = 300


def installed():
    """Those of the packages that are there."""
    there = {distribution.name.lower().replace("_", "-") for distribution in importlib.metadata.distributions()}
    return [package for package in PACKAGES if package in there]


@dataclasses.dataclass(frozen=True)
class Contender:
    """`query` gives the whole answer to a statement. `memory` is what its own process has resident, in bytes; None if it has none.
    `before` is called before each query, and not timed."""

    name: str
    query: Callable[[str], pa.Table]
    memory: Callable[[], int] | None = None
    before: Callable[[], None] = lambda: None


def over_flight(client, describe=fsql.statement):
    """GetFlightInfo and DoGet: what every Flight client does."""

    def query(sql):
        info = client.get_flight_info(describe(sql))
        parts = [client.do_get(endpoint.ticket).read_all() for endpoint in info.endpoints]
        return parts[0] if len(parts) == 1 else pa.concat_tables(parts)

    return query


@functools.cache
def known_settings():
    return harness.run("config", "print").stdout


def settings(**values):
    """As `KEY=VALUE`, `__` for the dots; without those that this binary does not have."""
    named = {key.replace("__", "."): value for key, value in values.items()}
    return tuple(f"{key}={value}" for key, value in named.items() if re.search(rf"^#? *{re.escape(key)} =", known_settings(), re.MULTILINE))


def setup(arguments, folder, hot=None, results=0, more=()):
    """The server under test: the budget and the cache of hot tables that were asked for, no cache of results unless wanted."""
    own = settings(hot__memory_limit=arguments.hot if hot is None else hot, engine__result_cache_limit=results)
    return Setup(data=folder, pool="fair", budget=arguments.budget, settings=(*own, *more, *arguments.set), in_cgroup=False)


def hot(server):
    """What the cache of hot tables holds, and columns it was asked for until now; None if the server has no such cache."""
    found = server.status().get("hot")
    if found is None:
        return None
    asked = {name: sum(table[name] for table in found["tables"].values()) for name in ("hits", "misses")}
    return asked | {"bytes": found["used_bytes"]}


def call(server, path):
    """Tells the cache of hot tables something, by the admin port. From several threads at once: each call has its connection."""
    with contextlib.closing(server.admin()) as connection:
        connection.request("POST", path)
        answer = connection.getresponse()
        text = answer.read().decode(errors="replace")
    assert answer.status < 300, f"{path}: {answer.status} {text}"


@contextlib.contextmanager
def updraft(server):
    with flight.FlightClient(server.uri) as client:
        yield [Contender("updraft", over_flight(client), server.rss)]


@contextlib.contextmanager
def by_adbc(server):
    with adbc.connect(server.uri, autocommit=True) as connection:

        def query(sql):
            with connection.cursor() as cursor:
                cursor.execute(sql)
                return cursor.fetch_arrow_table()

        yield [Contender("adbc", query)]


def duckdb_of(folder, native):
    """A DuckDB in this process: its own tables in memory, or views of the files."""
    db = duckdb.connect(config={"threads": CORES})
    for table, source in tables.sources(folder).items():
        db.execute(f"CREATE {'TABLE' if native else 'VIEW'} {table} AS SELECT * FROM read_parquet('{source}')")
    return db


@contextlib.contextmanager
def in_process_duckdb(name, folder, native):
    with contextlib.closing(duckdb_of(folder, native)) as db:
        yield [Contender(name, lambda sql: db.sql(sql).to_arrow_table())]


@contextlib.contextmanager
def oracle(folder):
    """DuckDB's answers over the very same files."""
    with contextlib.closing(duckdb_of(folder, native=False)) as db:
        yield lambda sql: db.sql(sql).to_arrow_table()


@contextlib.contextmanager
def in_process_datafusion(folder):
    from datafusion import SessionConfig, SessionContext

    context = SessionContext(SessionConfig().with_target_partitions(CORES))
    for table, source in tables.sources(folder).items():
        context.register_parquet("file", source.removesuffix("*.parquet"))
        context.sql(f"CREATE TABLE {table} AS SELECT * FROM file").collect()
        context.deregister_table("file")
    yield [Contender("datafusion", lambda sql: context.sql(sql).to_arrow_table())]


@contextlib.contextmanager
def process(command, ready, log, **environment):
    """A server for a block: (where it listens, its psutil.Process). It listens where the first match of `ready` in its log says."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as out:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env={**os.environ, **environment})
    try:
        end = time.monotonic() + START_SECONDS
        while (found := re.search(ready, log.read_text(errors="replace"))) is None:
            if child.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{command[0]} does not start: {log.read_text(errors='replace')[-500:]}")
            time.sleep(0.05)
        yield found[1], psutil.Process(child.pid)
    finally:
        child.kill()
        child.wait()


def script(name, folder):
    """A server that is a Python file beside this one."""
    command = [sys.executable, str(pathlib.Path(__file__).with_name(f"{name}.py")), str(folder)]
    path = str(pathlib.Path(harness.__file__).parent)
    return process(command, r"listening on (\S+)", harness.WORK / f"{name}.log", PYTHONPATH=path)


def text(words):
    """The descriptor of plain Flight: a command that is the text itself."""
    return flight.FlightDescriptor.for_command(words.encode())


def resident(process):
    return lambda: process.memory_info().rss


@contextlib.contextmanager
def duckdb_by_flight(folder):
    with script("duckdb_flight", folder) as (address, process), flight.FlightClient(address) as client:
        yield [Contender("duckdb-flight", over_flight(client, text), resident(process))]


def roapi_server(folder):
    command = [str(pathlib.Path(sys.prefix) / "bin/roapi"), "--addr-http", "127.0.0.1:0", "--addr-postgres", "127.0.0.1:0", "--addr-flight-sql", "127.0.0.1:0"]
    for table, source in tables.sources(folder).items():
        command += ["--table", f"{table}={source.removesuffix('/*.parquet')},format=parquet,use_memory_table=true"]
    ready = r"Listening on (\S+) for FlightSQL"
    return process(command, ready, harness.WORK / "roapi.log", RUST_LOG="roapi::startup=info")


@contextlib.contextmanager
def roapi(folder):
    with roapi_server(folder) as (address, process), flight.FlightClient(f"grpc://{address}") as client:
        yield [Contender("roapi", over_flight(client), resident(process))]


@contextlib.contextmanager
def field(arguments, folder, names=tuple(NAMES)):
    """Those of `names` that were asked for, ready to be asked: (server, contenders, {name: why it is absent})."""
    makers = {
        "duckdb": lambda: in_process_duckdb("duckdb", folder, native=True),
        "duckdb-parquet": lambda: in_process_duckdb("duckdb-parquet", folder, native=False),
        "duckdb-flight": lambda: duckdb_by_flight(folder),
        "datafusion": lambda: in_process_datafusion(folder),
        "roapi": lambda: roapi(folder),
    }
    wanted = [name for name in names if name in arguments.only]
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(serving(setup(arguments, folder)))
        ready, absent = [], {}
        for name in wanted:
            try:
                ready += stack.enter_context({"updraft": updraft, "adbc": by_adbc}[name](server) if name in OURS else makers[name]())
            except (ImportError, OSError, RuntimeError) as error:  # A peer that is not installed leaves a hole in the table, not more.
                if name in OURS:
                    raise
                absent[name] = str(error).splitlines()[0][:200]
        yield server, ready, absent
