"""The rows of docs/clients.md, and the file format in which every suite reports: [{client, feature, status, note}]."""

import json
import pathlib

FEATURES = {
    "connect": "Connect on loopback without login",
    "password": "Log in with user and password",
    "token": "Log in with an API token",
    "refused": "A wrong password is refused, and said so",
    "tls": "TLS, with a CA of one's own",
    "mtls": "TLS with a client certificate",
    "statements": "Statements",
    "prepared": "Prepared statements",
    "parameters": "Parameters of every type the client can bind",
    "many-rows-bound": "Several rows of parameters at once",
    "types": "Every SQL type there and back, with NULL",
    "rare-types": "Nested, unsigned, dictionary, interval and wide types",
    "empty": "Empty results keep their schema",
    "wide": "1,000 columns",
    "million": "1,000,000 rows",
    "tpch": "The 22 TPC-H queries, answers equal DuckDB's",
    "metadata": "Catalogs, schemas, tables, columns",
    "info": "Server information (SqlInfo)",
    "keys-and-types": "Keys and type information",
    "schema-only": "Schema without running the query",
    "cancel": "Cancel stops the work on the server",
    "timeout": "Timeouts of the client and of the server",
    "errors": "Errors carry the right code and a sentence",
    "session": "Session options and SET",
    "progress": "PollFlightInfo (answers once, when the query is planned)",
    "compression": "Compressed results (lz4, zstd)",
    "refusals": "Updates, ingest and transactions are refused clearly",
}
STATUSES = ("pass", "limit", "fail")


def known(feature):
    return feature in FEATURES


def write(path, results):
    """results: {(client, feature): [(status, note)]}; the worst status of a square counts, its notes are kept."""
    rows = []
    for (client, feature), outcomes in sorted(results.items()):
        status = max((status for status, _ in outcomes), key=STATUSES.index)
        notes = sorted({note for _, note in outcomes if note})
        # A limit on some types beside types that work: the square works, with a remark.
        if status == "limit" and any(s == "pass" for s, _ in outcomes):
            status = "partly"
        rows.append({"client": client, "feature": feature, "status": status, "note": "; ".join(notes)})
    pathlib.Path(path).write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
