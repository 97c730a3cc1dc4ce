"""Contenders against each other, statement by statement: all in each round, in an order that is drawn anew, so that what else
the machine does falls on all alike. Each runs a statement a few times in a row: a server that is in use finds its own code and data
in the processor's caches, not those of another engine."""

import gc
import math
import random
import time

import psutil

import answers
import contenders
from lab import note, percentile

# Runs that are not counted: what is loaded at the first run, or let in at the second, is there from the third on.
WARM_UPS = 2
IN_A_ROW = 3
# Quick statements get more rounds, as long as they fit into `--seconds`.
ROUNDS_MORE = 5


class Foreign:
    """The cores that processes other than this one and its children use."""

    def __init__(self):
        self.begin, self.before = time.monotonic(), self._used()

    @staticmethod
    def _used():
        times, own = psutil.cpu_times(), psutil.Process()
        busy = sum(times) - times.idle - times.iowait - times.guest - times.guest_nice
        return busy - sum(sum(process.cpu_times()[:2]) for process in (own, *own.children(recursive=True)))

    def cores(self):
        return round(max(0.0, self._used() - self.before) / (time.monotonic() - self.begin), 2)


class Heat:
    """One statement, all contenders. `runs` are seconds by contender; one that fails or answers wrong is out, `out` says why."""

    def __init__(self, field, statement, want):
        self.field, self.statement, self.want = list(field), statement, want
        self.runs, self.first, self.out = {contender.name: [] for contender in field}, {}, {}

    def run(self, contender, counted):
        contender.before()
        begin = time.perf_counter()
        try:
            table = contender.query(self.statement.sql)
        except Exception as error:  # Whatever stops a contender is a result, not the end of the race.
            return self.leave(contender, "error", str(error).strip().splitlines()[0][:300])
        seconds = time.perf_counter() - begin
        self.first.setdefault(contender.name, seconds)
        if counted:
            self.runs[contender.name].append(seconds)
        # The hash of a large answer takes longer than the answer: it is asked for of the first only, the others are counted.
        whole = self.want.table is not None or not counted
        wrong = answers.difference(table, self.want) if whole else None if table.num_rows == self.want.rows else f"{table.num_rows} rows"
        if wrong:
            self.leave(contender, "wrong", wrong)

    def leave(self, contender, how, why):
        self.field.remove(contender)
        self.out[contender.name] = {how: why}
        note(f"{self.statement.name}, {contender.name}: {how}: {why}")

    def round(self, order, times=1, counted=True):
        order.shuffle(drawn := list(self.field))
        for contender in drawn:
            for _ in range(times):
                if contender in self.field:
                    self.run(contender, counted)

    def result(self):
        spread = lambda name, runs: {"n": len(runs), "first_ms": exact_ms(self.first[name]), **{f"p{share}_ms": exact_ms(percentile(runs, share / 100)) for share in (10, 50, 90)}}  # noqa: E731
        times = {name: self.out.get(name) or spread(name, runs) for name, runs in self.runs.items()}
        return {"statement": self.statement.name, "rows": self.want.rows, "bytes": self.want.bytes, "times": times}


def exact_ms(seconds):
    return round(seconds * 1e3, 3)


def race(field, statements, oracle, arguments, cache=lambda: None, warm_ups=WARM_UPS, in_a_row=IN_A_ROW):
    """{"rows": one for each statement, "hot": hits and misses of all runs but the first, "foreign_cores"}. `oracle` answers a statement."""
    order, foreign, rows, hits = random.Random(arguments.seed), Foreign(), [], {"hits": 0, "misses": 0}
    for statement in statements:
        heat = Heat(field, statement, answers.answer(oracle(statement.sql), statement.ordered))
        gc.collect()
        gc.disable()
        heat.round(order, counted=False)
        before = cache()
        for _ in range(1, warm_ups):
            heat.round(order, counted=False)
        begin, rounds = time.monotonic(), 0
        while rounds < arguments.rounds or (rounds < arguments.rounds * ROUNDS_MORE and time.monotonic() - begin < arguments.seconds):
            heat.round(order, in_a_row)
            rounds += 1
        gc.enable()
        if before:
            after = cache()
            hits = {name: hits[name] + after[name] - before[name] for name in hits}
        rows.append(heat.result())
        note(f"{statement.name}: " + ", ".join(f"{name} {time['p50_ms']:.1f}" for name, time in rows[-1]["times"].items() if "p50_ms" in time) + " ms")
    return {"rows": rows, "hot": hits if any(hits.values()) else None, "foreign_cores": foreign.cores()}


def median(row, name):
    """Milliseconds of a contender; None if it has none."""
    return row["times"].get(name, {}).get("p50_ms")


def ratio(row, peer, of="updraft"):
    """How many times longer a peer takes; None if either has no time."""
    ours, theirs = median(row, of), median(row, peer)
    return theirs / ours if ours and theirs else None


def mean(ratios):
    """The geometric mean; None of nothing."""
    found = [value for value in ratios if value]
    return math.exp(sum(map(math.log, found)) / len(found)) if found else None


def broken(rows):
    """What Updraft got wrong, in words."""
    return [f"{row['statement']}, {name}: {why}" for row in rows for name, time in row["times"].items() if name in contenders.OURS for why in (time.get("wrong"), time.get("error")) if why]
