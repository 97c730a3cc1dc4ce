"""Fixtures, and the record of which client did what.

A test marked `@pytest.mark.feature(CLIENT, FEATURE)` counts for that square of docs/clients.md. All tests of a square pass: it
works. One fails: it does not. An expected failure (`xfail`, always strict, with the reason) is a limit of the client and is shown
with its reason; the day the client learns it, the test fails and the limit goes.
"""

import json
import os

import adbc_driver_flightsql.dbapi as adbc
import pytest
from pyarrow import flight
import data
import features
import harness
import secure

RESULTS = {}


def pytest_configure(config):
    config.addinivalue_line("markers", "feature(client, feature): the square of docs/clients.md that the test counts for")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    for mark in item.iter_markers("feature"):
        client, feature = mark.args
        if not features.known(feature):
            raise ValueError(f"{item.nodeid}: no such feature: {feature}")
        if report.when != "call" and not report.failed:
            continue
        limit = hasattr(report, "wasxfail")
        status = "limit" if limit and report.skipped else "pass" if report.passed else "fail"
        note = report.wasxfail.removeprefix("reason: ") if limit else ""
        RESULTS.setdefault((client, feature), []).append((status, note or ("" if status == "pass" else item.name)))
    return report


def pytest_sessionfinish(session):
    path = os.environ.get("UPDRAFT_RESULTS")
    if path:
        features.write(path, RESULTS)


@pytest.fixture(scope="session")
def folder():
    return data.folder()


@pytest.fixture(scope="session")
def server(folder):
    """The server of the Contract: no login, no TLS, on loopback."""
    with harness.serve(folder, settings=["engine.memory_limit=1GiB", "engine.target_partitions=2"], log=harness.WORK / "server-plain.log") as server:
        yield server


@pytest.fixture(scope="session")
def secured(folder, certs):
    """TLS, a user and an API token."""
    path = secure.write(harness.WORK / "secured.toml", tls=certs, users=True)
    with harness.serve(folder, config=path, log=harness.WORK / "server-secured.log") as server:
        yield server


@pytest.fixture(scope="session")
def certs():
    return secure.Certs(harness.WORK / "certs")


@pytest.fixture
def client(server):
    with flight.connect(server.uri.replace("grpc://", "grpc+tcp://")) as client:
        yield client


@pytest.fixture
def conn(server):
    with adbc.connect(server.uri, autocommit=True) as conn:
        yield conn


@pytest.fixture
def cur(conn):
    with conn.cursor() as cur:
        yield cur


def record(name, **figures):
    """Keeps measured figures for the reader of a run: target/clients/figures.json."""
    path = harness.WORK / "figures.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**known, name: figures}, indent=1))
