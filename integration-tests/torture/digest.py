"""A short value that two answers share exactly when they hold the same rows.

Hashed by DuckDB for both sides, over Arrow batches as they come, so that neither answer is ever held whole. Types that differ
between the engines, though the values do not, are made alike first: all whole numbers, all decimals, all strings.
"""

import threading

import duckdb
import pyarrow as pa

# What is hashed at once: large enough that a call costs little, small enough that sixty clients do not fill the machine.
CHUNK_BYTES = 8 << 20
MASK = (1 << 64) - 1
_local = threading.local()


def connection():
    """One DuckDB per thread, for hashing only."""
    if not hasattr(_local, "connection"):
        _local.connection = duckdb.connect(config={"threads": 1})
    return _local.connection


def canonical(column, kind):
    """SQL for the value of `column`, the same from both engines."""
    if pa.types.is_decimal(kind) and kind.scale > 0:
        return f"CAST({column} AS DECIMAL(38, 6))"
    if pa.types.is_integer(kind) or pa.types.is_decimal(kind):
        return f"CAST({column} AS HUGEINT)"
    if pa.types.is_floating(kind):
        # Seven digits: engines add in different orders.
        return f"format('{{:.6e}}', CAST({column} AS DOUBLE) + 0.0)"
    if pa.types.is_timestamp(kind):
        return f"CAST({column} AS TIMESTAMP)"
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind) or pa.types.is_dictionary(kind):
        return f"CAST({column} AS VARCHAR)"
    if pa.types.is_date(kind) or pa.types.is_boolean(kind):
        return column
    return f"CAST({column} AS VARCHAR)"


class Digest:
    """Of rows added batch by batch: how many, a hash that ignores their order, and one that does not."""

    def __init__(self):
        self.rows = self.bag = self.list = 0
        self._batches, self._bytes, self._sql = [], 0, None

    def add(self, batch):
        if batch.num_rows == 0:
            return
        self._batches.append(batch)
        self._bytes += batch.nbytes
        if self._bytes >= CHUNK_BYTES:
            self._flush()

    def _flush(self):
        if not self._batches:
            return
        chunk = pa.Table.from_batches(self._batches)
        names = [f"c{number}" for number in range(chunk.num_columns)]
        if self._sql is None:
            row = ", ".join(canonical(name, kind) for name, kind in zip(names, chunk.schema.types, strict=True))
            # The sum of hashes ignores order; a hash of place and row together does not.
            self._sql = f"SELECT sum(h), sum(hash(p, h)) FROM (SELECT hash({row}) AS h, p FROM chunk)"
        places = pa.array(range(self.rows, self.rows + chunk.num_rows), pa.int64())
        db = connection()
        db.register("chunk", chunk.rename_columns(names).append_column("p", places))
        ((bag, ordered),) = db.execute(self._sql).fetchall()
        db.unregister("chunk")
        self.bag, self.list = (self.bag + int(bag)) & MASK, (self.list + int(ordered)) & MASK
        self.rows += chunk.num_rows
        self._batches, self._bytes = [], 0

    def result(self):
        self._flush()
        return {"rows": self.rows, "bag": f"{self.bag:016x}", "list": f"{self.list:016x}"}


def same(got, want, ordered):
    """Whether two results of `Digest.result` are of the same answer."""
    keys = ("rows", "list") if ordered else ("rows", "bag")
    return all(got[key] == want[key] for key in keys)
