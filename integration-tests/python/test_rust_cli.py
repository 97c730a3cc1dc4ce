"""flight_sql_client, the command line client that comes with the arrow-flight crate."""

import os
import pathlib
import subprocess

import pytest

import data
import harness
import secure

BINARY = pathlib.Path(os.environ.get("UPDRAFT_FLIGHT_CLI", harness.WORK.parent / "flight-cli/bin/flight_sql_client"))
pytestmark = pytest.mark.timeout(120)
feature = lambda name: pytest.mark.feature("Rust CLI", name)  # noqa: E731


def run(server, *args, login=()):
    assert BINARY.exists(), f"{BINARY} is missing: integration-tests/test.sh clients-cli builds it"
    return subprocess.run([BINARY, "--host", server.host, "--port", str(server.port), *login, *args], capture_output=True, text=True, timeout=60, env={**os.environ, "RUST_BACKTRACE": "0"})


def cells(server, *args, login=()):
    result = run(server, *args, login=login)
    assert result.returncode == 0, result.stderr
    return [cell.strip() for line in result.stdout.splitlines() if line.startswith("|") for cell in line.strip("|").split("|")]


@feature("connect")
@feature("statements")
@pytest.mark.parametrize(("sql", "want"), [("SELECT 1 AS one", ["one", "1"]), ("SELECT b FROM t WHERE a = 1", ["b", "x"]), ("SELECT count(*) AS n FROM big", ["n", "1000000"])])
def test_statements(server, sql, want):
    assert cells(server, "statement-query", sql) == want


@feature("prepared")
@feature("parameters")
@pytest.mark.parametrize(
    ("sql", "params", "want"),
    [
        ("SELECT b FROM t WHERE a = $1", ["1=1"], ["b", "x"]),
        ("SELECT a FROM t WHERE b = $1 AND a = $2", ["1=x", "2=1"], ["a", "1"]),
        ("SELECT count(*) AS n FROM orders WHERE o_orderdate < $1", ["1=1992-01-01"], ["n", "0"]),
    ],
)
def test_prepared(server, sql, params, want):
    assert cells(server, "prepared-statement-query", sql, *(arg for p in params for arg in ("-p", p))) == want


@feature("types")
def test_types(server):
    found = cells(server, "statement-query", "SELECT * FROM types ORDER BY id")
    assert "1234567.89" in found and "zażółć 🎈" in found


@feature("rare-types")
@pytest.mark.parametrize("table", ["rare", "ipc_types"])
def test_rare_types(server, table):
    assert len(cells(server, "statement-query", f"SELECT * FROM {table} ORDER BY id")) > 20


@feature("empty")
def test_empty(server):
    assert run(server, "statement-query", "SELECT * FROM empty").returncode == 0


@feature("wide")
def test_wide(server):
    assert len(cells(server, "statement-query", "SELECT * FROM wide")) == 3 * data.WIDE


@feature("metadata")
@pytest.mark.parametrize("command", ["catalogs", "table-types", "db-schemas", "tables"])
def test_metadata(server, command):
    catalog = cells(server, "catalogs")[1]
    found = cells(server, command, *([catalog] if command in ("db-schemas", "tables") else []))
    assert {"catalogs": catalog, "table-types": "VIEW", "db-schemas": "nested", "tables": "lineitem"}[command] in found


@feature("errors")
def test_errors(server):
    result = run(server, "statement-query", "SELECT * FROM nowhere")
    assert result.returncode != 0 and "nowhere" in result.stderr


@feature("compression")
@pytest.mark.parametrize("codec", ["gzip", "zstd"])
def test_compression_of_messages(server, codec):
    assert cells(server, "statement-query", "SELECT 1 AS one", login=["--accept-compression", codec]) == ["one", "1"]


@pytest.fixture(scope="module")
def login(folder):
    config = secure.write(harness.WORK / "cli.toml", users=True)
    with harness.serve(folder, config=config, log=harness.WORK / "server-cli.log") as server:
        yield server


@feature("password")
def test_password(login):
    assert cells(login, "statement-query", "SELECT 1 AS one", login=["--username", harness.USER, "--password", harness.PASSWORD]) == ["one", "1"]


@feature("token")
def test_token(login):
    assert cells(login, "statement-query", "SELECT 1 AS one", login=["--token", secure.TOKEN]) == ["one", "1"]


@feature("refused")
@pytest.mark.parametrize("args", [[], ["--token", "wrong"], ["--username", harness.USER, "--password", "wrong"]])
def test_refused(login, args):
    result = run(login, "statement-query", "SELECT 1", login=args)
    assert result.returncode != 0 and "valid authentication credentials" in result.stderr


@feature("tls")
@pytest.mark.xfail(strict=True, reason="flight_sql_client trusts public CAs only and cannot be given another")
def test_tls(secured):
    assert cells(secured, "--tls", "--token", secure.TOKEN, "statement-query", "SELECT 1 AS one") == ["one", "1"]
