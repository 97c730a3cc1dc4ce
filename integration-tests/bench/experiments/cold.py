"""What nobody has asked for yet: the eight queries and TPC-H over files as at their first query, against DuckDB over the same files.

`warm`: the kernel holds the files, and none of the engines anything of them. Before each run Updraft's cache is cleared and its files
get a new time of change, which makes footers, statistics and plans that are kept of them worthless; DuckDB gets a new database
without caches. `dropped`: the kernel has to read the files as well.
"""

import contextlib
import os

import duckdb

import contenders
import tables
from race import broken, race
from server import serving
from statements import EIGHT, tpch_at

from experiments.eight import peers
from experiments.tpch import total

DEFAULTS = {"rows": [10**7], "scale": 1.0, "rounds": 3, "seconds": 0.0, "pages": ["warm", "dropped"]}
NAMES = ("updraft", "duckdb-parquet")


def changed(folder):
    """Gives each file a new time of change, as if it had been written again."""
    for path in folder.rglob("*.parquet"):
        os.utime(path)


def dropped(folder):
    """Takes the files out of the page cache; clean pages need no rights for that."""
    for path in folder.rglob("*.parquet"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@contextlib.contextmanager
def fresh_duckdb(name, sources, first=lambda db: None, last=lambda: None):
    """A new database before each query, without caches, with a view of each of `sources`. `first` is done before these are made, `last` after."""
    found = {}

    def before():
        if "db" in found:
            found["db"].close()
        found["db"] = db = duckdb.connect(config={"threads": contenders.CORES, "enable_external_file_cache": False})
        first(db)
        for table, source in sources.items():
            db.execute(f"CREATE VIEW {table} AS SELECT * FROM read_parquet('{source}')")
        last()

    try:
        yield contenders.Contender(name, lambda sql: found["db"].sql(sql).to_arrow_table(), before=before)
    finally:
        if "db" in found:
            found["db"].close()


@contextlib.contextmanager
def fresh_updraft(name, arguments, folder, data=None, more=(), last=lambda: None):
    """A server that holds nothing of the files in `folder` before each query: no columns, and by their new time of change no footers,
    statistics or plans. It finds them at `data`, if not there. `last` is done after that."""
    with serving(contenders.setup(arguments, data or folder, more=more)) as server, contenders.updraft(server) as (contender,):

        def before():
            if contenders.hot(server) is not None:
                contenders.call(server, "/hot/clear")
            changed(folder)
            last()

        yield contenders.Contender(name, contender.query, before=before)


def cold(arguments, folder, statements, page_cache):
    with contextlib.ExitStack() as stack:
        last = lambda: page_cache(folder)  # noqa: E731
        makers = fresh_updraft("updraft", arguments, folder, last=last), fresh_duckdb("duckdb-parquet", tables.sources(folder), last=last)
        field = [stack.enter_context(maker) for maker in makers]
        oracle = stack.enter_context(contenders.oracle(folder))
        return race([contender for contender in field if contender.name in arguments.only], statements, oracle, arguments, warm_ups=1, in_a_row=1)


def run(arguments):
    (rows,), problems, ways = arguments.rows, [], {}
    for way in arguments.pages:
        page_cache = {"warm": lambda _: None, "dropped": dropped}[way]
        eight = cold(arguments, tables.ten(rows), EIGHT, page_cache)
        tpch = cold(arguments, tables.tpch(arguments.scale), tpch_at(arguments.scale), page_cache)
        ways[way] = {"eight": eight | {"ratios": peers(eight["rows"])}, "tpch": tpch | {"total": total(tpch["rows"], "duckdb-parquet")}}
        problems += [f"cold, {words}" for words in broken(eight["rows"]) + broken(tpch["rows"])]
    return {"rows": rows, "scale": arguments.scale, "ways": ways, "problems": problems}
