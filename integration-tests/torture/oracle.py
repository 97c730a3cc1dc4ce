"""DuckDB's answers over the very same files, worked out once and kept beside the data."""

import hashlib
import json
import threading
import time
import warnings

import duckdb
import pyarrow as pa

from digest import Digest
from lab import note

warnings.filterwarnings("ignore", message="Arrow output on a DB-API result")
# A statement that takes DuckDB longer than this is worth no answer.
SECONDS_MAX = 300


def connect(folder, **config):
    """A DuckDB that sees the tables of `folder`: a file, or a folder of files, is a table."""
    db = duckdb.connect(config={"memory_limit": "6GB", **config})
    for path in sorted(folder.iterdir()):
        files = path / "*.parquet" if path.is_dir() else path
        db.execute(f"CREATE VIEW {path.stem} AS SELECT * FROM read_parquet('{files}')").fetchall()
    return db


class Oracle:
    """Answers by statement. `answer` works out what it does not know yet, one statement at a time."""

    def __init__(self, folder, stamp):
        self.folder = folder
        self.path = folder.with_name(f"{folder.name}.answers.jsonl")
        self.stamp = f"{stamp}/{duckdb.__version__}"
        self.known, self.lock, self.db = {}, threading.Lock(), None
        if self.path.exists():
            for line in self.path.read_text().splitlines():
                entry = json.loads(line)
                self.known[entry.pop("key")] = entry

    def key(self, sql):
        return hashlib.sha256(f"{self.stamp}\n{sql}".encode()).hexdigest()[:24]

    def prepare(self, queries):
        """Works out what is not known of these before a server needs the processors, and lets DuckDB go."""
        unknown = [query for query in queries if self.key(query.sql) not in self.known]
        if unknown:
            note(f"DuckDB answers {len(unknown)} statements that it has not answered before")
        for query in unknown:
            answer = self.answer(query.sql)
            if "error" in answer:
                note(f"DuckDB has no answer to {query.index} ({query.shape}): {answer['error']}")
        self.close()

    def answer(self, sql):
        """{"rows", "bag", "list"} of the statement, or {"error"} when DuckDB has no answer to it."""
        key = self.key(sql)
        with self.lock:
            if key not in self.known:
                self.db = self.db or connect(self.folder)
                self.known[key] = answer = self._run(sql)
                if "error" not in answer:
                    with self.path.open("a") as file:
                        file.write(json.dumps({"key": key, **answer}) + "\n")
            return self.known[key]

    def _run(self, sql):
        begin, digest, cursor = time.monotonic(), Digest(), self.db.cursor()
        timer = threading.Timer(SECONDS_MAX, cursor.interrupt)
        timer.start()
        try:
            for batch in cursor.execute(sql).to_arrow_reader(50_000):
                digest.add(batch)
            return digest.result() | {"seconds": round(time.monotonic() - begin, 3)}
        except (duckdb.Error, pa.ArrowException) as error:
            return {"error": str(error).splitlines()[0]}
        finally:
            timer.cancel()
            cursor.close()

    def close(self):
        if self.db:
            self.db.close()
            self.db = None


def differences(folder, sql, table, limit=5):
    """For a person: rows that only the server's `table` has, and rows that only DuckDB's answer has."""
    db = connect(folder)
    db.register("got", table)
    db.execute(f"CREATE TEMP TABLE want AS {sql}").fetchall()
    columns = ", ".join(f"CAST(#{number} AS VARCHAR)" for number in range(1, table.num_columns + 1))
    only = "SELECT {c} FROM {a} EXCEPT ALL SELECT {c} FROM {b} LIMIT {n}"
    return {
        "only the server": db.execute(only.format(c=columns, a="got", b="want", n=limit)).fetchall(),
        "only DuckDB": db.execute(only.format(c=columns, a="want", b="got", n=limit)).fetchall(),
    }
