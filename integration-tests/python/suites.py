"""Runs the client suites, each against real servers, and renders docs/clients.md from what they report.

    suites.py python [PYTEST ARGS]   pyarrow, ADBC, polars, pandas
    suites.py jdbc                   the JDBC driver, every version in JDBC_VERSIONS
    suites.py go                     database/sql and ADBC for Go
    suites.py rust                   arrow-flight's client and command line client
    suites.py matrix [--check]       docs/clients.md; --check fails instead of writing when it is stale or a suite is missing

A suite that cannot run fails. Suites that are not Python get the servers by environment variables, see `environment`.
"""

import contextlib
import difflib
import json
import os
import subprocess
import sys

import data
import features
import harness
import matrix
import secure
import tpch

# The newest on Maven Central, and an older one that many tools still bundle.
JDBC_VERSIONS = ["18.3.0", "17.0.0"]
TESTS = harness.ROOT / "integration-tests"


def results(suite):
    path = harness.WORK / f"results-{suite}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # What an earlier run wrote proves nothing.
    return path


@contextlib.contextmanager
def environment():
    """UPDRAFT_HOST and UPDRAFT_PORT: no login, no TLS. UPDRAFT_LOGIN_PORT: login, no TLS. UPDRAFT_TLS_PORT: login and TLS with the CA
    in UPDRAFT_CA. UPDRAFT_MTLS_PORT: client certificates (UPDRAFT_CERT, UPDRAFT_KEY). UPDRAFT_USER, UPDRAFT_PASSWORD, UPDRAFT_TOKEN:
    who may log in. UPDRAFT_TPCH: the queries (q01.sql...). UPDRAFT_ANSWERS: DuckDB's answers (q01.tsv...).
    """
    folder = data.folder()
    certs = secure.Certs(harness.WORK / "certs")
    login = secure.write(harness.WORK / "login.toml", users=True)
    tls = secure.write(harness.WORK / "tls.toml", tls=certs, users=True)
    mtls = secure.write(harness.WORK / "mtls.toml", tls=certs, mutual="required")
    with (
        harness.serve(folder, settings=["engine.target_partitions=2"], log=harness.WORK / "server-suite.log") as plain,
        harness.serve(folder, config=login, log=harness.WORK / "server-login.log") as logged,
        harness.serve(folder, config=tls, log=harness.WORK / "server-tls.log") as encrypted,
        harness.serve(folder, config=mtls, log=harness.WORK / "server-mtls.log") as mutual,
    ):
        yield {
            **os.environ,
            "UPDRAFT_HOST": plain.host,
            "UPDRAFT_PORT": str(plain.port),
            "UPDRAFT_LOGIN_PORT": str(logged.port),
            "UPDRAFT_TLS_PORT": str(encrypted.port),
            "UPDRAFT_MTLS_PORT": str(mutual.port),
            "UPDRAFT_CA": str(certs.ca),
            "UPDRAFT_CERT": str(certs.client),
            "UPDRAFT_KEY": str(certs.client_key),
            "UPDRAFT_USER": harness.USER,
            "UPDRAFT_PASSWORD": harness.PASSWORD,
            "UPDRAFT_TOKEN": secure.TOKEN,
            "UPDRAFT_TPCH": str(tpch.FOLDER),
            "UPDRAFT_ANSWERS": str(tpch.write_answers(folder, harness.WORK / "answers")),
        }
        # Whatever the clients did, nothing may still be running, and the servers must end well.
        assert plain.idle(), "the server is still busy after the suite"


def call(command, cwd, env):
    code = subprocess.run(command, cwd=cwd, env=env, check=False).returncode
    if code != 0:
        print(f"{' '.join(map(str, command))}: exit code {code}", file=sys.stderr)
    return code


def pytest(path, suite, *args):
    env = {**os.environ, "UPDRAFT_RESULTS": str(path), "PYTHONDONTWRITEBYTECODE": "1"}
    return call([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout-method=thread", *suite, *args], TESTS / "python", env)


def python(*args):
    return pytest(results("python"), ["--ignore=test_rust_cli.py"], *args)


def jdbc(*args):
    """Of ARGS, those that begin with a digit are versions, the rest are for Maven."""
    versions, more, codes = [a for a in args if a[0].isdigit()], [a for a in args if not a[0].isdigit()], []
    with environment() as env:
        for version in versions or JDBC_VERSIONS:
            env["UPDRAFT_RESULTS"] = str(results(f"jdbc-{version}"))
            codes.append(call(["mvn", "-q", "-B", "test", f"-Ddriver.version={version}", *more], TESTS / "jdbc", env))
    return max(codes)


def go(*args):
    with environment() as env:
        env["UPDRAFT_RESULTS"] = str(results("go"))
        return call(["go", "test", "-count=1", *args, "./..."], TESTS / "go", env)


def rust():
    with environment() as env:
        env["UPDRAFT_RESULTS"] = str(results("rust"))
        client = call([harness.BIN.parent / "examples/rust_client"], TESTS, env)
    return max(client, pytest(results("rust-cli"), ["test_rust_cli.py"]))


def render(*args):
    rows, missing = [], []
    for suite in ["python", *(f"jdbc-{v}" for v in JDBC_VERSIONS), "go", "rust", "rust-cli"]:
        path = harness.WORK / f"results-{suite}.json"
        found = json.loads(path.read_text()) if path.exists() else []
        missing += [] if found else [suite]
        rows += found
    unknown = {row["feature"] for row in rows} - set(features.FEATURES)
    failed = [f"{row['client']}: {row['feature']} ({row['note']})" for row in rows if row["status"] == "fail"]
    for problem, what in (("no results of", missing), ("unknown feature", sorted(unknown)), ("failed", failed)):
        for one in what:
            print(f"docs/clients.md: {problem} {one}", file=sys.stderr)
    page = harness.ROOT / "docs/clients.md"
    text = matrix.render(rows, harness.ROOT, JDBC_VERSIONS)
    if "--check" in args:
        stale = not page.exists() or page.read_text() != text
        if stale:
            print("docs/clients.md is not what the suites found; run `make clients` and commit it", file=sys.stderr)
            before = page.read_text().splitlines() if page.exists() else []
            print("\n".join(difflib.unified_diff(before, text.splitlines(), "docs/clients.md", "found", lineterm="", n=0)), file=sys.stderr)
        return int(stale or bool(missing or unknown or failed))
    page.parent.mkdir(exist_ok=True)
    page.write_text(text)
    return int(bool(missing or unknown or failed))


if __name__ == "__main__":
    suites = {"python": python, "jdbc": jdbc, "go": go, "rust": rust, "matrix": render}
    if len(sys.argv) < 2 or sys.argv[1] not in suites:
        sys.exit(__doc__)
    sys.exit(suites[sys.argv[1]](*sys.argv[2:]))
