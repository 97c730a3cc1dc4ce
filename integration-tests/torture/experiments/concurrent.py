"""64 heavy queries at once, each by a client of its own, against the same queries one after the other."""

import dataclasses

import load
from common import oracle_of, setup_of
from heavy import HEAVY
from lab import note
from server import serving

DEFAULTS = {"queries": 64, "clients": 64, "scale": 0.3}


def run(arguments):
    oracle = oracle_of(arguments)
    queries = [dataclasses.replace(HEAVY[number % len(HEAVY)], index=number) for number in range(arguments.queries)]
    oracle.prepare(queries)
    figures = {"queries": len(queries)}
    for name, clients in (("serial", 1), ("concurrent", arguments.clients)):
        with serving(setup_of(arguments), may_die=True) as server:
            outcomes = load.run(server.client, queries, oracle, clients)
            waits = [line.get("queue_ms", 0) for line in server.ended()]
        seconds = max(outcome.began + outcome.seconds for outcome in outcomes)
        figures[name] = {
            "seconds": round(seconds, 1),
            "verdicts": load.counts(outcomes),
            "died": server.left["died"],
            "rss_peak": server.left["rss_peak"],
            "cgroup": server.left["cgroup"],
            "queue_ms_max": max(waits, default=0),
            "failures": [dataclasses.asdict(outcome) for outcome in outcomes if outcome.verdict != "ok"],
        }
        note(f"{name}: {seconds:.1f} s, {figures[name]['verdicts']}")
    figures["ratio"] = round(figures["concurrent"]["seconds"] / figures["serial"]["seconds"], 2)
    figures["finished"] = round(figures["concurrent"]["verdicts"]["ok"] / len(queries), 4)
    return figures
