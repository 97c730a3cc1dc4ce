"""Random heavy statements by many clients, in a cgroup: does the server live, and is every answer right?

A server that dies is started anew, so that a run over a pool that cannot hold its budget counts its deaths to the end.
"""

import contextlib
import dataclasses
import threading
import time

from pyarrow import flight

import cgroup
import fsql
import load
import queries
from common import oracle_of, setup_of
from lab import note
from oracle import differences
from server import Server, serving

# A run that says nothing else.
DEFAULTS = {"queries": 1000, "clients": 8, "scale": 0.2}


class Undying:
    """The server of a run: the next one when one has died."""

    def __init__(self, setup):
        self.setup, self.lock, self.left = setup, threading.Lock(), []
        self.server = Server(setup)

    @contextlib.contextmanager
    def client(self):
        with self.lock:
            if not self.server.alive():
                self.left.append(self.server.end())
                note(f"THE SERVER DIED: {self.left[-1]}; its log: {self.server.log}")
                self.server = Server(self.setup)
            server = self.server
        with server.client() as pair:
            yield pair

    def end(self):
        self.left.append(self.server.end())
        return self.left


def run(arguments):
    oracle = oracle_of(arguments)
    numbers = range(arguments.queries) if arguments.only is None else sorted(arguments.only)
    statements = [queries.make(arguments.seed, number) for number in numbers]
    oracle.prepare(statements)
    if arguments.only is not None:
        show(statements)
    setup = setup_of(arguments)
    server = Undying(setup)
    if server.server.no_cgroup:
        note(f"NO CGROUP ({server.server.no_cgroup}): only the resident size is held to its bound")
    found, begin = [], time.monotonic()

    def each(outcome):
        found.append(outcome)
        if outcome.verdict not in ("ok", "died"):
            note(f"{outcome.verdict.upper()} {outcome.index} ({outcome.shape}, {outcome.seconds} s): {outcome.message.splitlines()[0][:200]}")
        if len(found) % 50 == 0:
            note(f"{len(found)}/{len(statements)} after {time.monotonic() - begin:.0f} s; resident {server.server.watch.now >> 20} MiB, peak {server.server.watch.peak >> 20} MiB")

    outcomes = load.run(server.client, statements, oracle, arguments.clients, each=each)
    seconds = time.monotonic() - begin
    left = server.end()
    errors = [error for end in left for error in end["errors"]]
    for error in errors:
        note(f"THE SERVER LOGGED AN ERROR: {error}")
    if arguments.only is not None:
        for outcome, statement in zip(outcomes, statements, strict=True):
            if outcome.verdict == "wrong":
                show_difference(setup, statement)
    sql = {statement.index: statement.sql for statement in statements}
    cgroups = [end["cgroup"] for end in left if end["cgroup"]]
    return {
        "statements": len(outcomes),
        "clients": arguments.clients,
        "seconds": round(seconds, 1),
        "verdicts": load.counts(outcomes),
        "shapes": {shape: {verdict: n for verdict, n in load.counts([o for o in outcomes if o.shape.split()[0] == shape]).items() if n} for shape in queries.SHAPES},
        "deaths": sum(end["died"] for end in left),
        "errors": errors,
        "oom_kills": sum(group["oom_kills"] for group in cgroups) if cgroups else None,
        "cgroup": cgroups[-1] if cgroups else None,
        "no_cgroup": left[-1]["no_cgroup"],
        # There should have been one.
        "cgroup_refused": bool(left[-1]["no_cgroup"]) and cgroup.expected(),
        "rss_peak": max(end["rss_peak"] for end in left),
        "rss_anonymous_peak": max(end["rss_anonymous_peak"] for end in left),
        "rss_must": setup.bound(1.25, 256),
        "rss_aim": setup.bound(1.10, 192),
        "slowest": [dataclasses.asdict(o) for o in sorted(outcomes, key=lambda o: -o.seconds)[:5]],
        "failures": [dataclasses.asdict(o) | {"sql": sql[o.index]} for o in outcomes if o.verdict != "ok"],
    }


def show(statements):
    for statement in statements:
        note(f"-- {statement.index}, {statement.shape}\n{statement.sql};")


def show_difference(setup, statement):
    """The rows that differ, from a second run of the statement."""
    with serving(setup) as server, flight.FlightClient(server.uri) as client:
        table = fsql.query(client, statement.sql)
    for where, rows in differences(setup.data, statement.sql, table).items():
        note(f"{where}: {len(rows)} or more rows")
        for row in rows:
            note(f"  {row}")
