"""The data: a table of ten columns, as many rows as asked for, and TPC-H from `updraft sample`.

Written by pyarrow with its defaults, since that is what most Parquet files at hand are: row groups of 1 Mi rows, snappy,
dictionaries where they pay. Everything follows from the number of rows.
"""

import functools
import hashlib
import os
import pathlib

import duckdb
import pyarrow.parquet as pq

import harness
import lab
from lab import note

WORK = pathlib.Path(os.environ.get("UPDRAFT_BENCH_DIR", harness.ROOT / ".work/bench"))
DATA = WORK / "data"
GROUP_ROWS = 1 << 20
TEN = "t"


def columns(users):
    """The ten columns, as SQL of row number i: the commonest types, keys of every width, one column sorted."""
    below = lambda salt, n: f"CAST(hash(i, {salt}) % {n} AS BIGINT)"  # noqa: E731
    return f"""
        i AS id,
        {below(1, users)} AS user_id,
        (hash(i, 2) >> 11) / 9007199254740992.0 * 100 AS score,
        {below(3, 1_000_000)} / 100.0 AS amount,
        CAST({below(4, 100)} AS INTEGER) AS qty,
        printf('category_%02d', {below(5, 20)}) AS category,
        ['north', 'east', 'south', 'west'][1 + {below(6, 4)}] AS region,
        printf('name_%d', i) AS name,
        TIMESTAMP '2024-01-01' + to_seconds(i) AS ts,
        hash(i, 7) % 2 = 0 AS flag"""


def reader(begin, end, users):
    """Rows begin to end as Arrow batches of one row group each."""
    db = duckdb.connect(config={"threads": 2})
    return db.sql(f"SELECT {columns(users)} FROM range({begin}, {end}) AS r(i)").to_arrow_reader(GROUP_ROWS)


def write(path, begin, end, users):
    """One file of rows begin to end."""
    batches = reader(begin, end, users)
    with pq.ParquetWriter(path, batches.schema) as writer:
        for batch in batches:
            writer.write_batch(batch, row_group_size=GROUP_ROWS)


@functools.cache
def own():
    """Of the files made here: data made by another state of this file are made anew."""
    return hashlib.sha256(pathlib.Path(__file__).read_bytes()).hexdigest()


def made(name, make):
    def noted(target):
        note(f"making {name}")
        target.mkdir()
        make(target)

    return lab.made(DATA / name, own(), noted)


def users_of(rows):
    return max(1, rows // 10)


def ten(rows, files=1):
    """A folder with the table `t` of so many rows, in one file or as many as asked for."""

    def make(target):
        if files == 1:
            return write(target / f"{TEN}.parquet", 0, rows, users_of(rows))
        (target / TEN).mkdir()
        whole = reader(0, rows, users_of(rows)).read_all()
        for part in range(files):
            begin, end = rows * part // files, rows * (part + 1) // files
            pq.write_table(whole.slice(begin, end - begin), target / TEN / f"{part:05}.parquet")

    return made(f"ten-{rows}" + (f"-in-{files}" if files > 1 else ""), make)


def many(tables, rows):
    """A folder with the tables t00, t01, ... of ten columns and so many rows each, all different."""

    def make(target):
        for number in range(tables):
            write(target / f"{TEN}{number:02}.parquet", number * rows, (number + 1) * rows, users_of(rows))

    return made(f"many-{tables}-{rows}", make)


def events(rows):
    """A folder with the table `events`: a row is two numbers and six strings out of few, as logs are."""
    words = lambda salt, n, text: f"printf('{text}', CAST(hash(i, {salt}) % {n} AS BIGINT))"  # noqa: E731
    kinds = {"country": (200, "country %03d"), "city": (5_000, "city %04d"), "device": (10, "device %d"), "browser": (20, "browser %02d"), "status": (5, "status %d"), "product": (1_000, "product number %04d")}
    select = ", ".join(f"{words(salt, n, text)} AS {name}" for salt, (name, (n, text)) in enumerate(kinds.items()))

    def make(target):
        db = duckdb.connect(config={"threads": 2})
        batches = db.sql(f"SELECT i AS id, {select}, hash(i) % 100000 / 100.0 AS price FROM range({rows}) AS r(i)").to_arrow_reader(GROUP_ROWS)
        pq.write_table(batches.read_all(), target / "events.parquet", row_group_size=GROUP_ROWS)

    return made(f"events-{rows}", make)


def tpch(scale):
    """A folder with the eight tables of TPC-H."""

    def make(target):
        target.rmdir()
        result = harness.run("sample", "--scale", scale, target, timeout=1800)
        assert result.returncode == 0, result.stderr

    return made(f"tpch-{scale:g}", make)


def sources(folder):
    """{table: the path or glob of its Parquet files}"""
    return {path.stem: str(path / "*.parquet" if path.is_dir() else path) for path in sorted(folder.iterdir())}


def plain_bytes(folder, table):
    """What the table takes as plain Arrow: no dictionaries, strings with 32-bit offsets."""
    return pq.read_table(folder / f"{table}.parquet" if (folder / f"{table}.parquet").exists() else folder / table).nbytes
