"""Peers built from `integration-tests/peers` (`make peers`), and the load generator that is built with them."""

import json
import os
import pathlib
import subprocess

import contenders
import fsql
import harness
import tables

FOLDER = pathlib.Path(os.environ.get("UPDRAFT_PEERS", harness.ROOT / "target/release"))


def built(name):
    """The program; a peer that was not built counts as one that is not installed."""
    path = FOLDER / name
    if not path.exists():
        raise RuntimeError(f"{name} is not built (make peers)")
    return path


def server(name, folder):
    return contenders.process([str(built(name)), str(folder)], r"listening on (\S+)", harness.WORK / f"{name}.log")


def wanted(table=tables.TEN, columns=None, batch_rows=65_536, parts=1):
    """A statement of the servers that only have tables: arrow_flight.py and stock_flight."""
    return json.dumps({"table": table, "columns": columns, "batch_rows": batch_rows, "parts": parts})


def load(uri, clients, seconds, asks, dialect="flight-sql"):
    """What many clients see that ask small queries: `asks` are (rows, SQL)."""
    uri = uri if "://" in uri else f"grpc://{uri}"
    command = [str(built("load")), uri, "--speaks", dialect, "--clients", str(clients), "--seconds", str(seconds)]
    command += [word for rows, sql in asks for word in ("--ask", f"{rows}={sql}")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds + 120)
    if done.returncode != 0:
        raise RuntimeError(f"load: {done.stderr.strip()[-300:]}")
    return json.loads(done.stdout)


# As stock_flight is asked: in a command of Flight SQL.
stock = fsql.statement
