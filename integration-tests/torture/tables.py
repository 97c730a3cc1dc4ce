"""The data: TPC-H from `updraft sample`, and tables that are hard on memory in ways TPC-H is not.

Everything follows from the scale; 1 is 6 million rows of lineitem. `stamp` names the content, so that answers kept for other
content are never taken for these.
"""

import hashlib
import os
import pathlib

import duckdb

import harness
import lab
from lab import note

WORK = pathlib.Path(os.environ.get("UPDRAFT_TORTURE_DIR", harness.ROOT / ".work/torture"))
DATA = WORK / "data"

# A number in [0, 1) and one below n, from row i and a salt: the same in every run.
UNIT = "(hash(i, {salt}) >> 11) / 9007199254740992.0"
BELOW = "CAST(hash(i, {salt}) % {n} AS BIGINT)"


def unit(salt):
    return f"({UNIT.format(salt=salt)})"


def below(salt, n):
    return BELOW.format(salt=salt, n=n)


def some(salt, percent, value):
    """`value`, or NULL for so many percent of the rows."""
    return f"CASE WHEN hash(i, {salt}, 'null') % 100 >= {percent} THEN {value} END"


def wide(scale):
    """50 columns: a row is some 700 bytes in many small pieces."""
    columns = ["i AS id"]
    columns += [f"{some(n, 10, below(n, 10 ** (1 + n % 6)))} AS i{n}" for n in range(1, 17)]
    columns += [f"CAST({below(100 + n, 10**8)} / 100.0 AS DECIMAL(12, 2)) AS d{n}" for n in range(1, 9)]
    columns += [f"{some(200 + n, 5, f'substr(md5(CAST({below(200 + n, 10 ** (1 + n % 6))} AS VARCHAR)), 1, {8 + n})')} AS s{n}" for n in range(1, 21)]
    columns += [f"DATE '1995-01-01' + CAST({below(300 + n, 3000)} AS INTEGER) AS t{n}" for n in range(1, 6)]
    return int(600_000 * scale), columns


def texts(scale):
    """2 KiB strings. `body` is tiny on disk and large in memory, `noise` is large in both."""
    hexes = " || ".join(f"md5(CAST(hash(i, {n}) AS VARCHAR))" for n in range(6))
    body = "repeat(md5(CAST(i AS VARCHAR)), 64)"
    return int(200_000 * scale), ["i AS id", f"{below(1, 500)} AS grp", "'title ' || md5(CAST(i // 3 AS VARCHAR)) AS title", f"{body} AS body", f"{hexes} AS noise"]


KEYS = 200_000


def skewed(scale):
    """Keys by Zipf's law: the commonest is on one row in twenty, most are rare."""
    key = f"CAST(floor(pow({KEYS}, {unit(1)})) AS BIGINT)"
    return int(5_000_000 * scale), ["i AS id", f"{key} AS k", f"{below(2, 1_000_000)} AS v", f"{some(3, 60, below(3, 1000))} AS n", f"'s' || {below(4, 300_000)} AS s"]


def keys(_):
    """One row for each key of `skewed`."""
    return KEYS, ["i AS k", "'label ' || md5(CAST(i AS VARCHAR)) AS label", f"{below(1, 1000)} AS weight"]


def nulls(scale):
    """Mostly nothing: keys that are NULL on half of the rows and more."""
    return int(1_500_000 * scale), [
        "i AS id",
        f"{some(1, 50, below(1, 100_000))} AS ka",
        f"{some(2, 90, below(2, 1000))} AS kb",
        f"{some(3, 70, f'CAST({below(3, 50_000)} AS VARCHAR)')} AS text",
        f"{some(4, 30, f'CAST({below(4, 10**6)} / 100.0 AS DECIMAL(10, 2))')} AS amount",
    ]


# Table: rows and columns, files, rows in a row group.
SYNTHETIC = {"wide": (wide, 1, 30_000), "texts": (texts, 2, 5_000), "skewed": (skewed, 4, 100_000), "keys": (keys, 1, 50_000), "nulls": (nulls, 3, 60_000)}


def write(db, target, name, rows, columns, files=1, group_rows=100_000, extra=""):
    """`rows` rows of `columns` (SQL of row number i), in one file, or in a folder of several."""
    if files > 1:
        (target / name).mkdir()
    for part in range(files):
        path = target / name / f"{part}.parquet" if files > 1 else target / f"{name}.parquet"
        select = f"SELECT {', '.join(columns)} FROM range({rows * part // files}, {rows * (part + 1) // files}) AS r(i)"
        db.execute(f"COPY ({select}) TO '{path}' (FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE {group_rows}{extra})")


def made(name, recipe, make):
    """The folder of data of this name, made by `make(folder)` unless it is there from the same recipe."""
    return lab.made(DATA / name, recipe, make)


def alone(target, *table):
    """A folder with one table, as for `write`."""
    target.mkdir()
    with duckdb.connect(config={"threads": 2}) as db:
        write(db, target, *table)


def folder(scale):
    """TPC-H and the tables above."""

    def make(target):
        note(f"making data of scale {scale}")
        result = harness.run("sample", "--scale", scale, target, timeout=1800)
        assert result.returncode == 0, result.stderr
        with duckdb.connect(config={"threads": 2}) as db:
            for name, (columns, files, group_rows) in SYNTHETIC.items():
                write(db, target, name, *columns(scale), files, group_rows)

    own = hashlib.sha256(pathlib.Path(__file__).read_bytes()).hexdigest()
    return made(f"scale-{scale:g}", own, make)


def stamp(target):
    """A name for what the files of the folder hold."""
    total = hashlib.sha256()
    for path in sorted(target.rglob("*.parquet")):
        total.update(str(path.relative_to(target)).encode())
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()[:16]
