"""Small queries by many clients: how many a second, how long each takes, how many fail; against other servers."""

import contextlib
import random

from pyarrow import flight

import answers
import contenders
import peers
import tables
from lab import note, percentile
from server import serving
from statements import BY_NAME, Statement

# `seconds` for each server and number of clients, in as many parts as there are rounds.
DEFAULTS = {"rows": [10**5], "clients": [1, 4, 16, 64], "seconds": 30.0, "rounds": 3}
MIX = (Statement("SELECT 1", "SELECT 1 AS x"), BY_NAME["count"], BY_NAME["point lookup"], BY_NAME["20 groups"])


def field(arguments, folder, enter):
    """{name: (where it listens, what it speaks)}, and {name: why it is absent}."""
    servers, absent = {"updraft": (enter(serving(contenders.setup(arguments, folder))).uri, "flight-sql")}, {}
    makers = {
        "roapi": (contenders.roapi_server, "flight-sql"),
        "plain-sql": (lambda folder: peers.server("plain_sql", folder), "flight-sql"),
        "duckdb-flight": (lambda folder: contenders.script("duckdb_flight", folder), "flight"),
    }
    for name, (make, dialect) in makers.items():
        try:
            address, _ = enter(make(folder))
            servers[name] = (address if "://" in address else f"grpc://{address}", dialect)
        except (OSError, RuntimeError) as error:
            absent[name] = str(error).splitlines()[0][:200]
    return servers, absent


def wrong(address, dialect, folder):
    """What a server answers wrong of the mix, in words."""
    with contenders.oracle(folder) as oracle, flight.FlightClient(address) as client:
        query = contenders.over_flight(client, contenders.text) if dialect == "flight" else contenders.over_flight(client)
        found = ((statement.name, answers.difference(query(statement.sql), answers.answer(oracle(statement.sql), statement.ordered))) for statement in MIX)
        return [f"{name}: {words}" for name, words in found if words]


def joined(parts):
    """The parts of one figure: medians, and all errors."""
    middle = lambda values: percentile([value for value in values if value is not None] or [0], 0.5)  # noqa: E731
    spread = lambda found: {name: middle([of[name] for of in found]) for name in ("p50_us", "p99_us")}  # noqa: E731
    each = {statement.name: spread([part["each"][number] for part in parts]) for number, statement in enumerate(MIX)}
    errors = {"errors": sum(part["errors"] for part in parts), "first_error": next((part["first_error"] for part in parts if part["first_error"]), None)}
    return {"per_second": middle([part["per_second"] for part in parts]), **spread([part["all"] for part in parts]), **errors, "each": each}


def run(arguments):
    try:
        peers.built("load")
    except RuntimeError as error:
        return {"absent": str(error), "problems": []}
    (rows,), order, problems, counts = arguments.rows, random.Random(arguments.seed), [], {}
    folder = tables.ten(rows)
    with contextlib.ExitStack() as stack, contenders.oracle(folder) as oracle:
        asks = [(oracle(statement.sql).num_rows, statement.sql) for statement in MIX]
        servers, absent = field(arguments, folder, stack.enter_context)
        for name, server in list(servers.items()):
            if words := wrong(*server, folder):
                problems += [f"clients, {text}" for text in words if name == "updraft"]
                absent[name] = "; ".join(words)
                del servers[name]
        for clients in arguments.clients:
            parts = {name: [] for name in servers}
            for _ in range(arguments.rounds):
                order.shuffle(drawn := list(servers))
                for name in drawn:
                    address, dialect = servers[name]
                    parts[name].append(peers.load(address, clients, arguments.seconds / arguments.rounds, asks, dialect))
            counts[str(clients)] = found = {name: joined(of) for name, of in parts.items()}
            if "updraft" in found and found["updraft"]["errors"]:
                problems.append(f"clients, {clients} at once: {found['updraft']['errors']} errors, such as {found['updraft']['first_error']}")
            note(f"{clients} clients: " + ", ".join(f"{name} {of['per_second']:,.0f}/s p50 {of['p50_us']} p99 {of['p99_us']} us {of['errors']} errors" for name, of in found.items()))
    return {"rows": rows, "seconds": arguments.seconds, "clients": counts, "absent": absent, "problems": problems}
