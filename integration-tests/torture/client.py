"""A client in a process of its own: client.py URI SQL. It runs the statement, says so, and cancels its call at a line on its input.

Of its own because the driver takes a cancelled read for Ctrl-C, which would end the whole experiment; and so that it can be killed.
"""

import contextlib
import signal
import sys
import threading

import adbc_driver_flightsql.dbapi as adbc


def main(uri, sql):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with adbc.connect(uri, autocommit=True) as connection, connection.cursor() as cursor:

        def read():
            with contextlib.suppress(Exception):
                cursor.execute(sql).fetchall()

        threading.Thread(target=read, daemon=True).start()
        print("reads", flush=True)
        if sys.stdin.readline():
            cursor.adbc_cancel()
            sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
