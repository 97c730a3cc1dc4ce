"""TPC-H from an object store on loopback whose answers take 20 ms more, cold, against the same from local files."""

import contextlib
import json
import os
import pathlib
import random
import sys
import urllib.request

import answers
import contenders
import harness
import tables
from lab import note
from race import Heat, broken, median
from server import serving
from statements import tpch_at

DEFAULTS = {"scale": 1.0, "rounds": 3, "seconds": 0.0}
LATENCY = "20ms"


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
    values = {"url": "s3://lake", "endpoint": address, "region": "us-east-1", "allow_http": "true", "anonymous": "true"}
    return tuple(f"catalog.stores.slow.{key}={value}" for key, value in values.items())


@contextlib.contextmanager
def both(arguments, folder, address):
    """(contender, its server) of the local files and of the bucket."""
    with serving(contenders.setup(arguments, folder)) as local, serving(contenders.setup(arguments, "s3://lake", more=store(address))) as remote:
        with contenders.updraft(local) as (near,), contenders.updraft(remote) as (far,):
            yield [(near, local), (contenders.Contender("s3", far.query), remote)]


def forget(server, folder):
    """Leaves `server` nothing that it knows: no columns, and by a new time of change no footers, statistics or plans."""
    contenders.call(server, "/hot/clear")
    for path in folder.rglob("*.parquet"):
        os.utime(path)


def run(arguments):
    folder, order, rows = tables.tpch(arguments.scale), random.Random(arguments.seed), []
    with bucket(folder) as address, contenders.oracle(folder) as oracle, both(arguments, folder, address) as field:
        for statement in tpch_at(arguments.scale):
            spent = None
            heat = Heat([contender for contender, _ in field], statement, answers.answer(oracle(statement.sql), statement.ordered))
            # In the first round the files come into the page cache.
            for round_ in range(arguments.rounds + 1):
                order.shuffle(drawn := [one for one in field if one[0] in heat.field])
                for contender, server in drawn:
                    forget(server, folder)
                    before = asked(address)
                    heat.run(contender, counted=round_ > 0)
                    if contender.name == "s3":
                        spent = {name: value - before[name] for name, value in asked(address).items()}
            rows.append(heat.result() | {"asked": spent})
            note(f"{statement.name}: " + ", ".join(f"{name} {time['p50_ms']:.1f}" for name, time in rows[-1]["times"].items() if "p50_ms" in time) + " ms")
    pairs = [(median(row, "updraft"), median(row, "s3")) for row in rows]
    pairs = [pair for pair in pairs if None not in pair]
    near, far = (round(sum(side), 2) for side in zip(*pairs, strict=True)) if pairs else (None, None)
    totals = {"local_ms": near, "s3_ms": far, "ratio": round(far / near, 3) if near else None}
    note(f"s3 takes {totals['ratio']} times as long as local files")
    problems = broken(rows) + [f"{row['statement']}, s3: {why}" for row in rows for why in (row["times"]["s3"].get("wrong"), row["times"]["s3"].get("error")) if why]
    return {"scale": arguments.scale, "latency": LATENCY, "rows": rows, "totals": totals, "problems": problems}
