"""docs/clients.md: what each client can do with Updraft, as the suites found it, and how to connect with each."""

import re

from features import FEATURES

CLIENTS = ["pyarrow.flight", "ADBC (Python)", "polars", "pandas", "JDBC", "Go database/sql", "ADBC (Go)", "Rust client", "Rust CLI"]
SIGNS = {"pass": "yes", "partly": "partly", "limit": "no", "fail": "FAILS"}

INTRO = """# Clients

Written by the client suites (`make clients`); CI fails when it differs from what they find. "yes": tested and works. "partly":
works but for what the note says. "no": the client cannot do it, with the reason in the note. "-": not tried, mostly because
the client has no such thing.
"""

HOW = {
    "ADBC (Python)": ("python", '''from adbc_driver_flightsql import dbapi

with dbapi.connect("grpc://127.0.0.1:50051", autocommit=True) as conn, conn.cursor() as cur:
    cur.execute("SELECT * FROM orders WHERE o_custkey = ?", (370,))
    table = cur.fetch_arrow_table()
''', """With a login: `db_kwargs={"username": ..., "password": ...}`, or for an API token
`{"adbc.flight.sql.authorization_header": "Bearer updraft_..."}`. With TLS: `grpc+tls://` and
`{"adbc.flight.sql.client_option.tls_root_certs": PEM}`. `SET` and session options need a login, or
`{"adbc.flight.sql.rpc.with_cookie_middleware": "true"}`."""),
    "polars": ("python", '''import polars as pl
from adbc_driver_flightsql import dbapi

with dbapi.connect("grpc://127.0.0.1:50051", autocommit=True) as conn:
    frame = pl.read_database("SELECT * FROM orders", conn)
''', ""),
    "pandas": ("python", '''import pandas as pd
from adbc_driver_flightsql import dbapi

with dbapi.connect("grpc://127.0.0.1:50051", autocommit=True) as conn:
    frame = pd.read_sql("SELECT * FROM orders", conn, dtype_backend="pyarrow")
''', "Without `dtype_backend` pandas makes floats of integers that can be NULL."),
    "pyarrow.flight": ("python", '''from pyarrow import flight

client = flight.FlightClient("grpc://127.0.0.1:50051")
info = client.get_flight_info(flight.FlightDescriptor.for_command(b"SELECT 1 AS x"))
table = client.do_get(info.endpoints[0].ticket).read_all()
''', """pyarrow has no Flight SQL client, so Updraft takes SQL text as the command of a descriptor. With a login:
`client.authenticate_basic_token(user, password)` returns the header to send with each call."""),
    "JDBC": ("java", '''// org.apache.arrow:flight-sql-jdbc-driver; run Java with --add-opens=java.base/java.nio=ALL-UNNAMED
Connection c = DriverManager.getConnection("jdbc:arrow-flight-sql://127.0.0.1:50051/?useEncryption=false");
''', """With a login: `&user=...&password=...`, or `&token=updraft_...`. With TLS: `?useEncryption=true&tlsRootCerts=ca.pem`."""),
    "Go database/sql": ("go", '''import _ "github.com/apache/arrow-go/v18/arrow/flight/flightsql/driver"

db, err := sql.Open("flightsql", "flightsql://127.0.0.1:50051")
''', """With a login: `flightsql://user:password@host:port`, or `?token=`. With TLS: `?tls=enabled`; for a CA of your own
`driver.RegisterTLSConfig("mine", config)` and `?tls=mine`."""),
    "ADBC (Go)": ("go", '''import "github.com/apache/arrow-adbc/go/adbc/driver/flightsql"

db, err := flightsql.NewDriver(memory.DefaultAllocator).NewDatabase(map[string]string{"uri": "grpc://127.0.0.1:50051"})
''', "The options are those of Python."),
    "Rust client": ("rust", '''let channel = tonic::transport::Endpoint::new("http://127.0.0.1:50051")?.connect().await?;
let mut client = arrow_flight::sql::client::FlightSqlServiceClient::new(channel);
let info = client.execute("SELECT 1".into(), None).await?;
''', ""),
    "Rust CLI": ("sh", '''flight_sql_client --host 127.0.0.1 --port 50051 statement-query "SELECT 1"
''', "From `cargo install arrow-flight --features cli,flight-sql,tls-ring`. `updraft query` does the same and more."),
}  # fmt: skip


def versions(root, jdbc):
    tests = root / "integration-tests"
    pins = dict(re.findall(r"^([\w-]+)(?:\[\w+\])?==(\S+)", (tests / "python/requirements.txt").read_text(), re.M))
    modules = dict(re.findall(r"^\s*(\S+) (v\S+)", (tests / "go/go.mod").read_text(), re.M))
    crate = re.search(r'^name = "arrow-flight"\nversion = "(.*)"', (root / "Cargo.lock").read_text(), re.M)[1]
    return {
        "pyarrow.flight": pins["pyarrow"],
        "ADBC (Python)": pins["adbc-driver-flightsql"],
        "polars": pins["polars"],
        "pandas": pins["pandas"],
        "JDBC": ", ".join(jdbc),
        "Go database/sql": modules["github.com/apache/arrow-go/v18"],
        "ADBC (Go)": modules["github.com/apache/arrow-adbc/go/adbc"],
        "Rust client": crate,
        "Rust CLI": crate,
    }


def row(cells):
    return "| " + " | ".join(cells) + " |\n"


def render(rows, root, jdbc):
    tested = versions(root, jdbc)
    columns = [c for client in CLIENTS for c in ([f"JDBC {v}" for v in jdbc] if client == "JDBC" else [client])]
    found = {(r["client"], r["feature"]): r for r in rows}
    unplaced = sorted({client for client, _ in found} - set(columns))
    assert not unplaced, f"no column for {unplaced}"
    notes, text = [], INTRO + "\n"
    text += row(["", *(c if c.startswith("JDBC") else f"{c} {tested[c]}" for c in columns)]) + row(["---"] * (len(columns) + 1))
    for feature, title in FEATURES.items():
        cells = [title]
        for client in columns:
            square = found.get((client, feature))
            cell = SIGNS[square["status"]] if square else "-"
            if square and square["note"] and square["status"] != "fail":
                if square["note"] not in notes:
                    notes.append(square["note"])
                cell += f" [{notes.index(square['note']) + 1}]"
            cells.append(cell)
        text += row(cells)
    if notes:
        text += "\nNotes:\n\n" + "".join(f"{number}. {note}\n" for number, note in enumerate(notes, 1))
    text += "\n## How to connect\n"
    for client, (language, code, more) in HOW.items():
        text += f"\n### {client}\n\n```{language}\n{code}```\n" + (f"\n{more}\n" if more else "")
    return text
