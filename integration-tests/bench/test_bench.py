"""What judges must not be wrong: the comparison of answers, the levels of targets, the sums of a race."""

import math
import socket

import pyarrow as pa
import pytest

import answers
import lab
import plots
import race
import raw
import report
import targets
from statements import Statement


def table(**columns):
    return pa.table(columns)


def verdict(got, want, ordered=False):
    return answers.difference(got, answers.answer(want, ordered))


SAME = {
    "order": (table(a=[2, 1], s=["y", "x"]), table(a=[1, 2], s=["x", "y"])),
    "last digits of a float": (table(a=["x", "y"], f=[0.1 + 0.2, 1e9]), table(a=["x", "y"], f=[0.3, 1e9 + 1e-3])),
    "names": (table(count=[1]), table(n=[1])),
    "the types of a sum": (table(a=pa.array([7], pa.int64())), table(a=pa.array([7.0]))),
    "dictionaries": (table(a=pa.array(["x", "y"]).dictionary_encode()), table(a=pa.array(["x", "y"], pa.string_view()))),
    "units of time": (table(a=pa.array([1], pa.timestamp("ms"))), table(a=pa.array([1000], pa.timestamp("us")))),
    "NaN": (table(f=[math.nan]), table(f=[math.nan])),
    "no rows": (table(a=pa.array([], pa.int64())), table(a=pa.array([], pa.int32()))),
    "NULL": (table(a=[None, 1], f=[0.5, None]), table(a=[1, None], f=[None, 0.5])),
}
OTHER = {
    "a number": (table(a=[1, 2]), table(a=[1, 3])),
    "a large whole number by one": (table(a=[10**7 + 1]), table(a=[10**7])),
    "a float": (table(f=[1.001]), table(f=[1.0])),
    "rows": (table(a=[1, 1]), table(a=[1])),
    "how often a row comes": (table(a=[1, 1, 2]), table(a=[1, 2, 2])),
    "columns": (table(a=[1], b=[1]), table(a=[1])),
    "NULL or zero": (table(f=[None, 1.0]), table(f=[0.0, 1.0])),
    "NULL or an empty text": (table(s=["", None]), table(s=["", ""])),
    "which row has which": (table(a=[1, 2], s=["y", "x"]), table(a=[1, 2], s=["x", "y"])),
    "text or number": (table(a=["1"]), table(a=[1])),
}


@pytest.mark.parametrize("name", SAME)
def test_same_answer(name):
    assert verdict(*SAME[name]) is None


@pytest.mark.parametrize("name", OTHER)
def test_other_answer(name):
    assert verdict(*OTHER[name])


def test_order_counts_where_it_is_part_of_the_answer():
    assert verdict(table(a=[2, 1]), table(a=[1, 2]), ordered=True)
    assert verdict(table(a=[1, 2]), table(a=[1, 2]), ordered=True) is None


def test_large_answers_are_compared_by_all_their_values():
    rows = answers.SORTED_ROWS_MAX + 1
    want = table(a=range(rows), s=[f"s{number}" for number in range(rows)])
    assert verdict(want.take(list(reversed(range(rows)))), want) is None
    other = want.set_column(1, "s", pa.array([*want["s"].to_pylist()[:-1], "t"]))
    assert verdict(other, want) == "the rows have another hash than DuckDB's"


def test_a_contender_that_answers_wrong_or_fails_is_out():
    def fails(_):
        raise RuntimeError("no such table\nbacktrace")

    field = [race.contenders.Contender(name, query) for name, query in (("updraft", lambda _: table(a=[2])), ("roapi", fails), ("duckdb", lambda _: table(a=[1])))]
    arguments = type("Arguments", (), {"seed": 1, "rounds": 3, "seconds": 0.0})
    figures = race.race(field, [Statement("q", "SELECT 1")], lambda _: table(a=[1]), arguments)
    times = figures["rows"][0]["times"]
    assert times["updraft"] == {"wrong": "column c0, row 0: 2, DuckDB has 1"}
    assert times["roapi"] == {"error": "no such table"}
    assert times["duckdb"]["n"] == 3 * race.IN_A_ROW and times["duckdb"]["p10_ms"] <= times["duckdb"]["p90_ms"]
    assert race.broken(figures["rows"]) == ["q, updraft: column c0, row 0: 2, DuckDB has 1"]
    assert race.ratio(figures["rows"][0], "duckdb") is None


def test_means_are_geometric():
    assert race.mean([1.0, 4.0]) == pytest.approx(2.0)
    assert race.mean([]) is None


@pytest.mark.parametrize(("value", "shown"), [(3.0, "**3.00**"), (2.9, "2.90"), (1.5, "1.50"), (1.2, "*missed*, 0.80 x must: 1.20")])
def test_levels(value, shown):
    target = targets.Target("", "", lambda figures: (figures["value"], ""), 1.5, 3.0)
    assert target.shown({"value": value}) == shown
    assert target.shown({"death": {}}) == "-"


PROMISED = {
    "full scan of a hot table, one stream, throughput / that of pyarrow's C++ Flight server": (
        {"shapes": {"full scan": {"ways": {"1 streams": {"updraft": {"p50": 2.0}, "arrow-64k": {"p50": 1.0}, "arrow-8k": {"p50": 2.5}}}}}},
        "*missed*, 0.89 x must: 0.80 (2.00 GB/s against 2.50 GB/s by batches of 8k rows)",
    ),
    "server's CPU per GB sent / that of stock arrow-flight and tonic": (
        {
            "shapes": {
                "full scan": {"ways": {"1 streams": {"updraft": {"cpu_s_per_gb": 0.2}, "stock-64k": {"cpu_s_per_gb": 0.8}}}},
                "two columns": {"ways": {"1 streams": {"updraft": {"cpu_s_per_gb": 0.2}, "stock-64k": {"cpu_s_per_gb": 0.5}}}},
            }
        },
        "0.40 (two columns: 0.20 s against 0.50 s; full scan: 0.25)",
    ),
    "small queries of 16 clients a second / those of the best DataFusion peer": (
        {"clients": {"16": {"updraft": {"per_second": 9000}, "roapi": {"per_second": 1000}, "plain-sql": {"per_second": 1500}, "duckdb-flight": {"per_second": 4000}}}},
        "**6.00 (9,000/s against 1,500/s of plain-sql)**",
    ),
    "`SELECT 1` by an ADBC cursor, p50 / that of ROAPI": ({"adbc": {"updraft": {"p50_ms": 1.0}}}, "-"),
    "memory of an idle connection": ({"idle": {"open": 1, "asked once": 65 << 10}}, "*missed*, 1.02 x must: 65.0 KiB (that has asked once)"),
}


@pytest.mark.parametrize("what", PROMISED)
def test_promises_of_the_wire(what):
    figures, shown = PROMISED[what]
    (target,) = (target for target in targets.TARGETS if target.what == what)
    assert target.shown(figures) == shown
    assert target.shown({"absent": "no peers"}) == "-"


def test_a_raw_client_reads_frames_across_reads_and_answers_pings():
    there, here = socket.socketpair()
    client = raw.Connection.__new__(raw.Connection)
    client.socket, client.buffer = here, b""
    sent = raw.frame(raw.PING, 0, 0, b"12345678") + raw.frame(raw.DATA, raw.END_STREAM, 1, b"x" * 300)
    there.sendall(sent[:20])
    assert client.read() == (raw.PING, 0, 0, b"12345678")
    there.sendall(sent[20:])
    assert client.read() == (raw.DATA, raw.END_STREAM, 1, b"x" * 300)
    assert there.recv(100) == raw.frame(raw.PING, raw.ACK, 0, b"12345678")
    there.close()
    with pytest.raises(raw.Gone):
        client.read()


def test_programs_of_this_machine_are_not_written_down():
    argv = ["--build", "release=/home/a", "--build=dist=/home/b", "--rounds", "3", "--binary", "/home/c", "--rows", "1e6"]
    assert lab.given(argv) == ["--rounds", "3", "--rows", "1e6"]


def test_tables_line_up_on_a_terminal():
    assert report.aligned("|  | a |\n| --- | --- |\n| long | b |").splitlines()[::2] == ["      a  ", "long  b  "]


def test_plots_leave_out_what_was_not_measured():
    svg = plots.bars("t", "ms", ["a", "b"], {"x": [1.0, None], "y": [10.0, 20.0]})
    assert svg.count("<rect") == 1 + 2 + 3, "the ground, the legend, the bars"
    assert plots.bars("t", "ms", ["a"], {"x": [None]}) is None
    assert plots.lines("t", "ms", {"x": [(0.0, 1.0), (10.0, 1.0), (100.0, 2.0)]}).count("<polyline") == 1
