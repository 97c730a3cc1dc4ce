"""pyarrow's own Flight server (C++) over tables in memory: arrow_flight.py FOLDER. What the wire is measured against.

A statement is JSON: `table`, `columns` (null is all), `batch_rows`, and `parts`, each of which is an endpoint. The table `one` has
one row and one column.
"""

import functools
import json
import pathlib
import sys

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import flight

import tables


class Server(flight.FlightServerBase):
    def __init__(self, folder):
        super().__init__("grpc://127.0.0.1:0")
        self.tables = {name: pq.read_table(source) for name, source in tables.sources(folder).items()} | {"one": pa.table({"x": pa.array([1], pa.int64())})}

    @functools.cache  # noqa: B019: one server, as long as its process.
    def cut(self, table, columns, batch_rows):
        """The schema and the batches; made once, as a server that is only fast would."""
        chosen = self.tables[table] if columns is None else self.tables[table].select(columns)
        return chosen.schema, chosen.to_batches(max_chunksize=batch_rows)

    def wanted(self, text):
        wanted = json.loads(text)
        columns = wanted["columns"] and tuple(wanted["columns"])
        return wanted, *self.cut(wanted["table"], columns, wanted["batch_rows"])

    def get_flight_info(self, context, descriptor):
        wanted, schema, _ = self.wanted(descriptor.command)
        endpoints = [flight.FlightEndpoint(json.dumps(wanted | {"part": part}), []) for part in range(wanted["parts"])]
        return flight.FlightInfo(schema, descriptor, endpoints, -1, -1)

    def do_get(self, context, ticket):
        wanted, schema, batches = self.wanted(ticket.ticket)
        return flight.RecordBatchStream(pa.RecordBatchReader.from_batches(schema, batches[wanted["part"] :: wanted["parts"]]))


def main(folder):
    server = Server(pathlib.Path(folder))
    print(f"listening on grpc://127.0.0.1:{server.port}", flush=True)
    server.serve()


if __name__ == "__main__":
    main(*sys.argv[1:])
