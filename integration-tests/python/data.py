"""The files the client suites query: one table per kind of question. Small; made anew when this file or the binary's sample changes."""

import datetime as dt
import decimal
import hashlib
import pathlib
import shutil

import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet as pq

import harness

D = decimal.Decimal
WIDE = 1000
BIG = 1_000_000

# One row of TYPES: column name, type in the file, three values, type on the wire when it is another (what all stock clients can take).
UTC = dt.timezone.utc
TYPES = [
    ("c_bool", pa.bool_(), [True, False, True], None),
    ("c_i8", pa.int8(), [-128, 127, 0], None),
    ("c_i16", pa.int16(), [-(2**15), 2**15 - 1, 0], None),
    ("c_i32", pa.int32(), [-(2**31), 2**31 - 1, 0], None),
    ("c_i64", pa.int64(), [-(2**63), 2**63 - 1, 0], None),
    ("c_f32", pa.float32(), [1.5, -0.25, 0.0], None),
    ("c_f64", pa.float64(), [1e300, -1e-300, 0.1], None),
    ("c_d9", pa.decimal128(9, 2), [D("1234567.89"), D("-0.01"), D("0.00")], None),
    ("c_d38", pa.decimal128(38, 10), [D("1234567890123456789012345678.0123456789"), D("-1.0000000001"), D("0E-10")], None),
    ("c_utf8", pa.string(), ["", "zażółć 🎈", "a" * 300], None),
    ("c_binary", pa.binary(), [b"", b"\x00\xff", b"abc"], None),
    ("c_date32", pa.date32(), [dt.date(1970, 1, 1), dt.date(2262, 4, 11), dt.date(1900, 2, 28)], None),
    ("c_time64us", pa.time64("us"), [dt.time(0, 0), dt.time(23, 59, 59, 999999), dt.time(12, 30)], None),
    ("c_time32ms", pa.time32("ms"), [dt.time(0, 0), dt.time(23, 59, 59, 999000), dt.time(12, 30)], None),
    ("c_tsus", pa.timestamp("us"), [dt.datetime(1970, 1, 1), dt.datetime(2038, 1, 19, 3, 14, 7, 123456), dt.datetime(1969, 12, 31, 23, 59, 59)], None),
    ("c_tsms", pa.timestamp("ms"), [dt.datetime(1970, 1, 1), dt.datetime(2038, 1, 19, 3, 14, 7, 123000), dt.datetime(1969, 12, 31, 23, 59, 59)], None),
    ("c_tsns", pa.timestamp("ns"), [0, 1_700_000_000_123_456_789, -1], None),
    ("c_tsutc", pa.timestamp("us", "UTC"), [dt.datetime(2024, 3, 31, 1, 0, tzinfo=UTC), dt.datetime(1970, 1, 1, tzinfo=UTC), dt.datetime(2000, 1, 1, tzinfo=UTC)], None),
]
# What some JDBC or Go accessors cannot read, though the wire carries it.
RARE_TYPES = [
    ("c_u8", pa.uint8(), [0, 255, 1], None),
    ("c_u16", pa.uint16(), [0, 65535, 1], None),
    ("c_u32", pa.uint32(), [0, 2**32 - 1, 1], None),
    ("c_u64", pa.uint64(), [0, 2**64 - 1, 1], None),
    ("c_f16", pa.float16(), [1.5, -0.25, 0.0], pa.float32()),
    ("c_d256", pa.decimal256(50, 5), [D("1" * 45 + ".00001"), D("-0.00001"), D("0.00000")], None),
    ("c_lutf8", pa.large_string(), ["", "zażółć 🎈", "b"], pa.string()),
    ("c_lbinary", pa.large_binary(), [b"", b"\x00\xff", b"abc"], pa.binary()),
    ("c_fsb", pa.binary(4), [b"abcd", b"\x00\x01\x02\x03", b"    "], None),
    ("c_tsberlin", pa.timestamp("ns", "Europe/Berlin"), [0, 1_711_846_800_000_000_000, -1], None),
    ("c_duration", pa.duration("us"), [dt.timedelta(0), dt.timedelta(days=-3, microseconds=1), dt.timedelta(hours=5)], None),
    ("c_list", pa.list_(pa.int32()), [[], [1, None, 3], [2]], None),
    ("c_llist", pa.large_list(pa.string()), [[], ["a", None], ["b"]], pa.list_(pa.string())),
    ("c_fslist", pa.list_(pa.int16(), 2), [[1, 2], [3, None], [5, 6]], None),
    ("c_struct", pa.struct([("a", pa.int64()), ("b", pa.string())]), [{"a": 1, "b": "x"}, {"a": None, "b": None}, {"a": 3, "b": ""}], None),
    ("c_liststruct", pa.list_(pa.struct([("k", pa.string()), ("v", pa.list_(pa.int64()))])), [[], [{"k": "a", "v": [1, None]}, None], [{"k": None, "v": None}]], None),
    ("c_map", pa.map_(pa.string(), pa.int64()), [[], [("a", 1), ("b", None)], [("c", 3)]], None),
    ("c_dict", pa.dictionary(pa.int32(), pa.string()), ["x", "y", "x"], pa.string()),
]
# Only in the Arrow IPC file: Parquet has no such types.
IPC_TYPES = [
    ("c_interval", pa.month_day_nano_interval(), [pa.MonthDayNano([1, 2, 3]), pa.MonthDayNano([-12, 0, 0]), pa.MonthDayNano([0, 0, 0])], None),
    ("c_view", pa.string_view(), ["", "a string longer than twelve bytes", "b"], pa.string()),
    ("c_bview", pa.binary_view(), [b"", b"\x00" * 20, b"b"], pa.binary()),
    ("c_null", pa.null(), [None, None, None], None),
    ("c_date64", pa.date64(), [dt.date(1970, 1, 1), dt.date(2262, 4, 11), dt.date(1900, 2, 28)], None),
    ("c_time32s", pa.time32("s"), [dt.time(0, 0), dt.time(23, 59, 59), dt.time(12, 30)], None),
    ("c_time64ns", pa.time64("ns"), [dt.time(0, 0), dt.time(23, 59, 59, 999999), dt.time(12, 30)], None),
    ("c_tss", pa.timestamp("s"), [dt.datetime(1970, 1, 1), dt.datetime(2038, 1, 19), dt.datetime(1900, 1, 1)], None),
]


def typed(columns, wire=False):
    """A table of the columns after `id`: their three values, then a row of NULLs."""
    arrays, fields = [pa.array([1, 2, 3, 4], pa.int64())], [pa.field("id", pa.int64())]
    for name, kind, values, sent in columns:
        array = pa.array([*values, None], kind)
        if wire and sent is not None:
            array = array.cast(sent)
        arrays.append(array)
        fields.append(pa.field(name, array.type))
    return pa.table(arrays, schema=pa.schema(fields))


def folder():
    """The data folder, made if it is not there for this very version of the file and the scale."""
    target = harness.WORK / "data"
    stamp = target.parent / "data.stamp"
    want = hashlib.sha256(pathlib.Path(__file__).read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == want:
        return target
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    result = harness.run("sample", "--scale", "0.1", target, timeout=600)
    assert result.returncode == 0, result.stderr
    pq.write_table(pa.table({"a": pa.array([1, 2, None], pa.int64()), "b": ["x", None, "z"]}), target / "t.parquet")
    pq.write_table(typed(TYPES), target / "types.parquet")
    pq.write_table(typed(RARE_TYPES), target / "rare.parquet")
    pa.feather.write_feather(typed(IPC_TYPES), target / "ipc_types.arrow", compression="uncompressed")
    pq.write_table(typed(TYPES).slice(0, 0), target / "empty.parquet")
    pq.write_table(pa.table({f"c{i}": pa.array([i, None], pa.int32()) for i in range(WIDE)}), target / "wide.parquet")
    ids = pa.array(range(BIG), pa.int64())
    pq.write_table(pa.table({"id": ids, "name": pa.array([f"n{i % 1000}" for i in range(BIG)])}), target / "big.parquet", row_group_size=100_000)
    (target / "nested" / "inner").mkdir(parents=True)  # A folder of tables is a schema; a table is a file or a folder of files.
    pq.write_table(pa.table({"x": [1]}), target / "nested" / "inner" / "a.parquet")
    pa.csv.write_csv(pa.table({"x": [1, 2], "s": ["one", "two"]}), target / "texts.csv")
    (target / "lines.json").write_text('{"x": 1, "s": "one"}\n{"x": 2, "s": null}\n')
    stamp.write_text(want)
    return target
