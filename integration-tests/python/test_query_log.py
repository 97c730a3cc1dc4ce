"""What the log says for those who run the server: of each query that ended, and of where the memory budget comes from."""

import re
import time

import pyarrow as pa
import pytest
from pyarrow import flight

import fsql
import harness
from cgroup import Cgroup, expected
from lab import MIB, size

# Some 60 MB to sort, which 32 MiB cannot hold.
SORT = """SELECT sum(n % 7 * v) FROM (SELECT value AS v, row_number() OVER (ORDER BY value % 1000, p) AS n
    FROM (SELECT value, repeat('x', 100) || value AS p FROM generate_series(1, 400000)))"""


class Trailers(flight.ClientMiddlewareFactory):
    """What came with the answers of a client's calls, by name; the last call to say a name is right."""

    def __init__(self):
        self.seen = seen = {}

        class Middleware(flight.ClientMiddleware):
            def received_headers(self, headers):
                seen.update({name: values[0] for name, values in headers.items()})

        self.middleware = Middleware

    def start_call(self, info):
        return self.middleware()


def lines(server, what, count=1):
    """The log's lines with this message, once there are so many: a query's may be a moment behind its answer."""
    deadline = time.monotonic() + 10
    while True:
        found = [line.get("fields", line) for line in server.logged()[0]]
        found = [line for line in found if line["message"] == what]
        if len(found) >= count or time.monotonic() > deadline:
            return found
        time.sleep(0.01)


def test_a_query_leaves_one_line_that_says_what_its_client_was_told(tmp_path):
    trailers = Trailers()
    settings = ["server.log_format=json", "engine.memory_limit=32MiB", "engine.target_partitions=2"]
    with harness.serve(settings=settings, log=tmp_path / "log") as server, flight.FlightClient(server.uri, middleware=[trailers]) as client:
        fsql.query(client, SORT)
        told = {name.removeprefix("x-updraft-").replace("-", "_"): value for name, value in trailers.seen.items() if name.startswith("x-updraft-")}
        with pytest.raises((pa.ArrowException, flight.FlightError)):
            fsql.query(client, "SELECT 1 / (value - 1) AS x FROM generate_series(1, 3)")
        line, failed = lines(server, "query ended", 2)
    assert {"peak_bytes", "spilled_bytes", "spill_files", "partitions", "queue_ms", "memory_wait_ms", "attempts", "run_ms"} <= told.keys()
    # The query ends and the last of its answer leaves at about the same time, in any order: only this figure still grows.
    assert float(told.pop("run_ms")) > 0 < line["run_ms"]
    assert {name: type(line[name])(value) for name, value in told.items()} == {name: line[name] for name in told}
    assert (line["status"], line["rows"], line["principal"], line["reason"]) == ("ok", 1, "anonymous", "")
    assert line["spilled_bytes"] > MIB and line["spill_files"] > 0 and 0 < line["peak_bytes"] <= 32 * MIB, line
    assert failed["status"] != "ok" and "zero" in failed["reason"] and failed["query_id"] != line["query_id"], failed


def budget(server):
    """(bytes, where they come from) as a server says when it starts."""
    (line,) = lines(server, "engine starts")
    return size(line["memory_limit"]), line["source"]


def test_the_budget_is_logged_with_where_it_comes_from(tmp_path):
    with harness.serve(settings=["server.log_format=json", "engine.memory_limit=300MiB"], log=tmp_path / "log") as server:
        assert budget(server) == (300 * MIB, "engine.memory_limit")
    with harness.serve(settings=["server.log_format=json"], log=tmp_path / "log") as server:
        assert re.fullmatch(r"what fits the cgroup's .+|\d+ % of the host's .+", budget(server)[1])


@pytest.mark.parametrize("limit", [1 << 30, 2 << 30])
def test_without_one_it_is_what_fits_the_cgroup(tmp_path, limit):
    group, reason = Cgroup.make(limit)
    if group is None:
        assert not expected(), reason
        pytest.skip(f"no cgroup: {reason}")
    try:
        with harness.serve(settings=["server.log_format=json"], log=tmp_path / "log", prefix=group.prefix()) as server:
            bytes_, source = budget(server)
    finally:
        group.remove()
    assert source == f"what fits the cgroup's {limit >> 30}.0 GiB"
    assert bytes_ * 1.15 + 256 * MIB == pytest.approx(limit, rel=0.05), "it is logged with two digits"
