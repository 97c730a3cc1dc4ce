"""TPC-H and the eight queries from an object store on loopback whose answers take 20 ms more, cold, against the same from local files,
and against DuckDB from that store where its extension for it can be had."""

import contextlib
import json
import pathlib
import random
import sys
import urllib.request

import duckdb

import answers
import contenders
import harness
import tables
from lab import note
from race import Heat, broken, mean, median, ratio
from statements import EIGHT, tpch_at

from experiments.cold import fresh_duckdb, fresh_updraft

DEFAULTS = {"rows": [10**7], "scale": 1.0, "rounds": 3, "seconds": 0.0}
LATENCY, BUCKET = "20ms", "s3://lake"


@contextlib.contextmanager
def bucket(folder):
    """`folder` as the bucket `lake`: where it answers."""
    script = pathlib.Path(harness.__file__).with_name("slow_s3.py")
    with contenders.process([sys.executable, str(script), str(folder), "--latency", LATENCY], r"listening on (\S+)", harness.WORK / "slow-s3.log") as (address, _):
        yield address


def asked(address):
    """Requests and bytes that the bucket was asked for until now."""
    with urllib.request.urlopen(f"{address}/_/counts", timeout=10) as answer:
        counts = json.load(answer)
    return {"requests": counts["get"] + counts["head"] + counts["list"], "bytes": counts["bytes"]}


def store(address):
    """The settings of a server for that bucket."""
    values = {"url": BUCKET, "endpoint": address, "region": "us-east-1", "allow_http": "true", "anonymous": "true"}
    return tuple(f"catalog.stores.slow.{key}={value}" for key, value in values.items())


def with_httpfs(db, address):
    """Lets a DuckDB read the bucket. The extension is downloaded unless it is there."""
    db.execute("INSTALL httpfs")
    db.execute("LOAD httpfs")
    db.execute(f"CREATE SECRET (TYPE s3, ENDPOINT '{address.removeprefix('http://')}', URL_STYLE 'path', USE_SSL false)")


def duckdb_from_s3(folder, address):
    sources = {table: source.replace(str(folder), BUCKET) for table, source in tables.sources(folder).items()}
    return fresh_duckdb("duckdb-s3", sources, first=lambda db: with_httpfs(db, address))


def hindered(folder, address):
    """Why DuckDB cannot read the bucket; None if it can."""
    try:
        with duckdb_from_s3(folder, address) as contender:
            contender.before()
    except duckdb.Error as error:
        return str(error).splitlines()[0].partition(" at URL")[0]
    return None


def raced(arguments, folder, statements):
    """The statements' rows, with what the last query from the bucket asked it for; and {name: why it is absent}."""
    order, rows = random.Random(arguments.seed), []
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        address, oracle = enter(bucket(folder)), enter(contenders.oracle(folder))
        field = [enter(fresh_updraft("updraft", arguments, folder)), enter(fresh_updraft("s3", arguments, folder, BUCKET, store(address)))]
        if (why := hindered(folder, address)) is None:
            field.append(enter(duckdb_from_s3(folder, address)))
        for statement in statements:
            spent, heat = None, Heat(field, statement, answers.answer(oracle(statement.sql), statement.ordered))
            # In the first round the files come into the page cache.
            for round_ in range(arguments.rounds + 1):
                order.shuffle(drawn := list(heat.field))
                for contender in drawn:
                    before = asked(address)
                    heat.run(contender, counted=round_ > 0)
                    if contender.name == "s3":
                        spent = {name: value - before[name] for name, value in asked(address).items()}
            rows.append(heat.result() | {"asked": spent})
            note(f"{statement.name}: " + ", ".join(f"{name} {time['p50_ms']:.1f}" for name, time in rows[-1]["times"].items() if "p50_ms" in time) + " ms")
    return rows, {"duckdb-s3": why} if why else {}


def totals(rows):
    """Milliseconds of all statements that are answered both from local files and from the bucket."""
    pairs = [(median(row, "updraft"), median(row, "s3")) for row in rows]
    pairs = [pair for pair in pairs if None not in pair]
    near, far = (round(sum(side), 2) for side in zip(*pairs, strict=True)) if pairs else (None, None)
    return {"local_ms": near, "s3_ms": far, "ratio": round(far / near, 3) if near else None}


def run(arguments):
    (size,) = arguments.rows
    tpch, absent = raced(arguments, tables.tpch(arguments.scale), tpch_at(arguments.scale))
    eight, _ = raced(arguments, tables.ten(size), EIGHT)
    average = mean(ratio(row, "s3") for row in eight)
    of_eight = {"size": size, "rows": eight, "mean": average and round(average, 3)}
    both = tpch + eight
    problems = broken(both) + [f"{row['statement']}, s3: {why}" for row in both for why in (row["times"]["s3"].get("wrong"), row["times"]["s3"].get("error")) if why]
    figures = {"scale": arguments.scale, "latency": LATENCY, "rows": tpch, "totals": totals(tpch), "eight": of_eight, "absent": absent, "problems": problems}
    note(f"s3 takes {figures['totals']['ratio']} times as long as local files, the eight {of_eight['mean']}")
    return figures
