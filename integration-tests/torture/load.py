"""Clients that run statements against a server and judge each answer."""

import dataclasses
import queue
import threading
import time

import pyarrow as pa
from pyarrow import flight

import digest
import fsql

VERDICTS = ("ok", "wrong", "exhausted", "unavailable", "timeout", "died", "error")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How one statement ended. `began` is in seconds since the load began."""

    index: int
    shape: str
    verdict: str
    began: float
    seconds: float
    message: str = ""


def verdict_of(error):
    # pyarrow has no class for RESOURCE_EXHAUSTED; gRPC's own name of the code is in the text.
    text = str(error)
    if isinstance(error, flight.FlightTimedOutError):
        return "timeout"
    if "resource exhausted" in text.lower():
        return "exhausted"
    if isinstance(error, flight.FlightUnavailableError):
        return "unavailable"
    return "error"


# A statement that takes longer hangs, as far as its user can tell.
SECONDS_MAX = 300
ERRORS = (pa.ArrowException, flight.FlightError, KeyError, OSError)


def fetch(client, sql, seconds=SECONDS_MAX):
    """The digest of a statement's answer, which passes by batch by batch."""
    options = flight.FlightCallOptions(timeout=seconds)
    info = client.get_flight_info(fsql.statement(sql), options)
    answer = digest.Digest()
    for endpoint in info.endpoints:
        for chunk in client.do_get(endpoint.ticket, options):
            answer.add(chunk.data)
    return answer.result()


def drain(client, sql):
    """Reads an answer and forgets it: (seconds, rows)."""
    begin, rows = time.monotonic(), 0
    for endpoint in client.get_flight_info(fsql.statement(sql)).endpoints:
        for chunk in client.do_get(endpoint.ticket):
            rows += chunk.data.num_rows
    return time.monotonic() - begin, rows


def judge(client, query, want, began, seconds=SECONDS_MAX, died=lambda: False):
    """Runs one statement; `want` is the oracle's answer, or None when any will do; `died` says whether there is no server any more."""
    start = time.monotonic()
    verdict, message = "ok", ""
    try:
        got = fetch(client, query.sql, seconds)
        if want is None:
            pass
        elif "error" in want:
            verdict, message = "error", f"no answer to compare with: {want['error']}"
        elif not digest.same(got, want, query.ordered):
            verdict, message = "wrong", f"got {got}, want {want}"
    except ERRORS as error:
        verdict, message = verdict_of(error), str(error).split(". gRPC client debug context")[0][:600]
        if verdict in ("unavailable", "error") and died():
            verdict = "died"
    now = time.monotonic()
    return Outcome(query.index, query.shape, verdict, round(start - began, 3), round(now - start, 3), message)


def run(connect, queries, oracle, clients, seconds=SECONDS_MAX, each=lambda outcome: None):
    """All statements, by so many clients at once; `connect()` gives a client of the server as it is now, and whether that died.

    `each` is called with every outcome as it comes. Outcomes are returned in the order of the statements.
    """
    todo, outcomes, lock = queue.SimpleQueue(), [], threading.Lock()
    for query in queries:
        todo.put(query)
    began = time.monotonic()

    def work():
        while True:
            try:
                query = todo.get_nowait()
            except queue.Empty:
                return
            with connect() as (client, died):
                outcome = judge(client, query, oracle.answer(query.sql), began, seconds, died)
            with lock:
                outcomes.append(outcome)
                each(outcome)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(outcomes, key=lambda outcome: outcome.index)


def counts(outcomes):
    """How often each verdict came, of outcomes or of rows that hold one."""
    found = [outcome["verdict"] if isinstance(outcome, dict) else outcome.verdict for outcome in outcomes]
    return {verdict: found.count(verdict) for verdict in VERDICTS}
