"""Files and stores that misbehave, and ends that are not clean."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import adbc_driver_flightsql.dbapi as adbc
import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import flight

import fsql
import harness
from test_pyarrow import LONG

pytestmark = pytest.mark.timeout(180)
# Spills as long as it runs.
SPILLING = "SELECT a.id * b.id AS v FROM big AS a CROSS JOIN big AS b ORDER BY v"
ERRORS = (pa.ArrowException, flight.FlightError, KeyError, OSError)


@contextlib.contextmanager
def querying(folder, tmp_path, **kwargs):
    with harness.serve(folder, log=tmp_path / "server.log", **kwargs) as server, flight.FlightClient(server.uri) as client:
        yield server, client


def values(client, sql, column="x"):
    return sorted(fsql.query(client, sql)[column].to_pylist())


def test_files_added_replaced_and_removed_between_queries(tmp_path):
    folder = tmp_path / "data"
    (folder / "many").mkdir(parents=True)
    pq.write_table(pa.table({"x": [1]}), folder / "many" / "a.parquet")
    with querying(folder, tmp_path) as (_, client):
        sql = "SELECT x FROM many"
        assert values(client, sql) == [1]
        pq.write_table(pa.table({"x": [2, 3]}), folder / "many" / "b.parquet")
        assert values(client, sql) == [1, 2, 3]
        pq.write_table(pa.table({"x": [10] * 5}), tmp_path / "new.parquet")
        os.replace(tmp_path / "new.parquet", folder / "many" / "a.parquet")
        assert values(client, sql) == [2, 3, 10, 10, 10, 10, 10]
        (folder / "many" / "b.parquet").unlink()
        assert values(client, sql) == [10] * 5
        pq.write_table(pa.table({"y": [7]}), folder / "fresh.parquet")
        assert values(client, "SELECT y FROM fresh", "y") == [7]
        # A column that only newer files have is NULL in the older.
        pq.write_table(pa.table({"x": [4], "z": ["new"]}), folder / "many" / "c.parquet")
        assert sorted(fsql.query(client, "SELECT z FROM many")["z"].to_pylist(), key=str) == [None] * 5 + ["new"]
        (folder / "fresh.parquet").unlink()
        with pytest.raises(ERRORS, match="fresh"):
            fsql.query(client, "SELECT * FROM fresh")


def test_hive_folders_are_columns(tmp_path):
    folder = tmp_path / "data"
    for year in (2023, 2024):
        (folder / "sales" / f"year={year}").mkdir(parents=True)
        pq.write_table(pa.table({"x": [year]}), folder / "sales" / f"year={year}" / "p.parquet")
    with querying(folder, tmp_path) as (_, client):
        assert values(client, "SELECT x FROM sales WHERE year = 2024 OR CAST(year AS VARCHAR) = '2024'") == [2024]


def truncated(folder):
    pq.write_table(pa.table({"x": list(range(10_000))}), folder / "broken.parquet")
    whole = (folder / "broken.parquet").read_bytes()
    (folder / "broken.parquet").write_bytes(whole[: len(whole) // 2])


def torn_page(folder):
    pq.write_table(pa.table({"x": [f"{i}" for i in range(10_000)]}), folder / "broken.parquet", compression="none", use_dictionary=False)
    whole = bytearray((folder / "broken.parquet").read_bytes())
    whole[100 : len(whole) // 2] = bytes(len(whole) // 2 - 100)
    (folder / "broken.parquet").write_bytes(whole)


def bad_line(folder):
    (folder / "broken.csv").write_text("x,y\n1,2\n" + "3,4\n" * 3000 + "5,6,7,8\n")


def not_json(folder):
    (folder / "broken.json").write_text('{"x": 1}\n{"x": \n')


def type_clash(folder):
    (folder / "broken").mkdir()
    pq.write_table(pa.table({"x": [1]}), folder / "broken" / "a.parquet")
    pq.write_table(pa.table({"x": ["text"]}), folder / "broken" / "b.parquet")


@pytest.mark.parametrize(("break_it", "says"), [(truncated, "broken"), (torn_page, r"(?is)data loss.*broken\.parquet"), (bad_line, "."), (not_json, "."), (type_clash, "(?s)x.*(Utf8|String|Int64)|Int64")], ids=lambda f: getattr(f, "__name__", ""))
def test_a_broken_file_is_an_error_and_no_more(tmp_path, break_it, says):
    folder = tmp_path / "data"
    folder.mkdir()
    pq.write_table(pa.table({"x": [1]}), folder / "good.parquet")
    break_it(folder)
    with querying(folder, tmp_path) as (server, client):
        for _ in range(3):
            with pytest.raises(ERRORS, match=says) as raised:
                fsql.query(client, "SELECT * FROM broken")
            # pyarrow has no class of its own for data loss.
            assert "internal error" not in str(raised.value).lower(), raised.value
            assert values(client, "SELECT x FROM good") == [1]
        assert server.process.poll() is None


def test_file_replaced_while_it_is_read(tmp_path):
    """Either the old content or an error; never a mixture."""
    folder = tmp_path / "data"
    folder.mkdir()
    pq.write_table(pa.table({"x": [1] * 300_000}), folder / "v.parquet", row_group_size=10_000)
    pq.write_table(pa.table({"x": [2] * 300_000}), tmp_path / "two.parquet", row_group_size=10_000)
    with querying(folder, tmp_path) as (_, client):
        info = client.get_flight_info(fsql.statement("SELECT x FROM v"))
        reader = client.do_get(info.endpoints[0].ticket)
        seen = set(reader.read_chunk().data["x"].to_pylist())
        os.replace(tmp_path / "two.parquet", folder / "v.parquet")
        with contextlib.suppress(*ERRORS):
            seen |= set(reader.read_all()["x"].to_pylist())
        assert seen == {1}
        assert set(values(client, "SELECT x FROM v")) == {2}


@contextlib.contextmanager
def s3(tmp_path):
    """moto's S3 on loopback, which checks signatures of the one user that is made."""
    log = (tmp_path / "moto.log").open("w+")
    process = subprocess.Popen(
        [sys.executable, "-c", "import sys; from moto.server import main; main(sys.argv[1:])", "-H", "127.0.0.1", "-p", "0"], stdout=log, stderr=subprocess.STDOUT
    )
    try:
        deadline, port = time.monotonic() + 60, None
        while port is None:
            assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "moto.log").read_text()
            for line in (tmp_path / "moto.log").read_text().splitlines():
                if "Running on http://127.0.0.1:" in line:
                    port = int(line.rsplit(":", 1)[1].strip().rstrip("/"))
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


def moto_user(endpoint):
    """An access key that may read everything; from then on moto refuses all others."""
    keys = {"aws_access_key_id": "root", "aws_secret_access_key": "root", "region_name": "us-east-1", "endpoint_url": endpoint}
    iam = boto3.client("iam", **keys)
    iam.create_user(UserName="updraft")
    policy = '{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}'
    iam.put_user_policy(UserName="updraft", PolicyName="all", PolicyDocument=policy)
    made = iam.create_access_key(UserName="updraft")["AccessKey"]
    return made["AccessKeyId"], made["SecretAccessKey"]


S3_CONFIG = """
[catalog.tables.sales]
location = ["s3://lake/sales/"]
[catalog.tables.gone]
location = ["s3://no-such-bucket/x.parquet"]
[catalog.stores.moto]
url = "s3://"
endpoint = "{endpoint}"
region = "us-east-1"
allow_http = true
"""


def test_s3(tmp_path):
    with s3(tmp_path) as endpoint:
        bucket = boto3.client("s3", aws_access_key_id="root", aws_secret_access_key="root", region_name="us-east-1", endpoint_url=endpoint)
        bucket.create_bucket(Bucket="lake")
        for name, rows in (("a", [1, 2]), ("b", [3])):
            sink = pa.BufferOutputStream()
            pq.write_table(pa.table({"x": rows}), sink)
            bucket.put_object(Bucket="lake", Key=f"sales/{name}.parquet", Body=sink.getvalue().to_pybytes())
        key, secret = moto_user(endpoint)
        import requests

        requests.post(f"{endpoint}/moto-api/reset-auth", data="0", timeout=10)  # Check every request from here on.
        config = tmp_path / "s3.toml"
        config.write_text(S3_CONFIG.format(endpoint=endpoint))
        env = {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret}
        with querying(None, tmp_path, config=config, env=env) as (server, client):
            assert values(client, "SELECT x FROM sales") == [1, 2, 3]
            assert values(client, "SELECT x FROM sales WHERE x > 2") == [3]
            with pytest.raises(ERRORS, match="gone|no-such-bucket") as raised:
                fsql.query(client, "SELECT * FROM gone")
            assert not isinstance(raised.value, flight.FlightInternalError)
            assert secret not in str(raised.value) + server.log_text()
        wrong = {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": "wrong" * 8}
        with querying(None, tmp_path, config=config, env=wrong) as (server, client):
            with pytest.raises(ERRORS) as raised:
                fsql.query(client, "SELECT x FROM sales")
            assert not isinstance(raised.value, flight.FlightInternalError)
            assert "wrongwrong" not in str(raised.value) + server.log_text()
            assert fsql.query(client, "SELECT 1 AS x").num_rows == 1


def test_kill_and_restart_leaves_nothing(folder, tmp_path):
    spill = tmp_path / "spill"
    spill.mkdir()
    data = tmp_path / "data"
    shutil.copytree(folder / "nested" / "inner", data)
    shutil.copy(folder / "big.parquet", data)
    settings = [f"engine.spill_directories=['{spill}']", "engine.memory_limit=256MiB"]
    server = harness.Server(data, settings=settings, log=tmp_path / "one.log")
    client = flight.FlightClient(server.uri)
    thread = threading.Thread(target=_try, args=(client, SPILLING))
    thread.start()
    deadline = time.monotonic() + 60
    while not spilled(spill) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(server.process.pid, signal.SIGKILL)
    server.process.wait()
    thread.join(20)
    assert spilled(spill), "nothing is there for the next server to remove"
    with querying(data, tmp_path, settings=settings) as (_, again):
        assert values(again, "SELECT x FROM a") == [1]
    assert sorted(p.name for p in data.iterdir()) == ["a.parquet", "big.parquet"]
    assert [p for p in spill.rglob("*") if p.is_file()] == []


def spilled(folder):
    """Whether there is anything in the files of a spill folder."""
    with contextlib.suppress(FileNotFoundError):  # One went while it was looked at; the next look tells.
        return any(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return False


def test_a_full_spill_disk_ends_one_query(folder, tmp_path):
    spill = tmp_path / "spill"
    spill.mkdir()
    # Only root may mount a small disk. For others, a unit test of the engine spills into /dev/full.
    small = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(spill)], capture_output=True)
    limits = [] if small.returncode == 0 else ["engine.spill_limit=4MiB"]
    expected = "No space left on device" if small.returncode == 0 else "engine.spill_limit"
    settings = [f"engine.spill_directories=['{spill}']", "engine.memory_limit=256MiB", *limits]
    try:
        with querying(folder, tmp_path, settings=settings) as (_, client):
            with pytest.raises(ERRORS, match=f"resource exhausted error.*{expected}"):
                fsql.query(client, SPILLING)
            assert fsql.query(client, "SELECT 1 AS x").num_rows == 1
            # Operators that the query has started are dropped a moment after it.
            left = [spill]
            deadline = time.monotonic() + 10
            while left and time.monotonic() < deadline:
                left = [p for p in spill.rglob("*") if p.is_file() and p.suffix != ".lock"]
                time.sleep(0.05)
            assert left == []
    finally:
        if small.returncode == 0:
            subprocess.run(["umount", str(spill)], check=True)


def _try(client, sql):
    with contextlib.suppress(Exception):
        fsql.query(client, sql)


def test_drain_lets_running_queries_end(folder, tmp_path):
    server = harness.Server(folder, log=tmp_path / "drain.log")
    with flight.FlightClient(server.uri) as client:
        info = client.get_flight_info(fsql.statement("SELECT id, name FROM big"))
        reader = client.do_get(info.endpoints[0].ticket)
        rows = reader.read_chunk().data.num_rows
        server.terminate()
        time.sleep(1)
        with flight.FlightClient(server.uri) as other, pytest.raises((flight.FlightUnavailableError, flight.FlightInternalError)) as raised:
            fsql.query(other, "SELECT 1", flight.FlightCallOptions(timeout=10))
        assert isinstance(raised.value, flight.FlightUnavailableError)
        rows += reader.read_all().num_rows
        assert rows == 1_000_000
    assert server.wait() == 0


def test_drain_stops_what_does_not_end(folder, tmp_path):
    server = harness.Server(folder, settings=["server.drain_grace=2s"], log=tmp_path / "drain.log")
    with flight.FlightClient(server.uri) as client:
        thread = threading.Thread(target=_try, args=(client, LONG))
        thread.start()
        time.sleep(1)
        begin = time.monotonic()
        server.terminate()
        code = server.wait(20)
        assert 1.5 < time.monotonic() - begin < 15
        assert code != 0, "a hard stop must be told from a clean one"
        thread.join(20)


def test_idle_server_ends_at_once(folder, tmp_path):
    server = harness.Server(folder, log=tmp_path / "idle.log")
    with adbc.connect(server.uri, autocommit=True) as conn:
        with conn.cursor() as cur:
            cur.execute("SELECT 1")
            cur.fetchall()
        begin = time.monotonic()
        server.stop()  # With the connection still open.
        assert time.monotonic() - begin < 3
