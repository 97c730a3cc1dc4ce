"""DuckDB behind pyarrow's Flight server: duckdb_flight.py FOLDER. The least that serves DuckDB to a network.

GetFlightInfo starts the statement, which gives the schema; DoGet streams its rows as DuckDB makes them.
"""

import itertools
import pathlib
import sys

from pyarrow import flight

import contenders

# Larger batches than DuckDB's 2,048 rows, smaller than its 1,000,000: what this server is fastest with.
BATCH_ROWS = 65_536


class Server(flight.FlightServerBase):
    def __init__(self, db):
        super().__init__("grpc://127.0.0.1:0")
        self.db, self.running, self.number = db, {}, itertools.count()

    def get_flight_info(self, context, descriptor):
        ticket = str(next(self.number)).encode()
        self.running[ticket] = reader = self.db.cursor().sql(descriptor.command.decode()).to_arrow_reader(BATCH_ROWS)
        return flight.FlightInfo(reader.schema, descriptor, [flight.FlightEndpoint(ticket, [])], -1, -1)

    def do_get(self, context, ticket):
        return flight.RecordBatchStream(self.running.pop(ticket.ticket))


def main(folder):
    server = Server(contenders.duckdb_of(pathlib.Path(folder), native=True))
    print(f"listening on grpc://127.0.0.1:{server.port}", flush=True)
    server.serve()


if __name__ == "__main__":
    main(*sys.argv[1:])
