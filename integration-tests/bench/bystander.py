"""A client in a process of its own: bystander.py URI count|stream SQL. It asks until its input ends, then says how it fared.

`count` gives the times of its queries, `stream` what it was sent a second.
"""

import json
import sys
import threading
import time

from pyarrow import flight

import fsql
from lab import ms, percentile

# `count` waits between its queries: it stands for who asks now and then, not for a load.
PAUSE_SECONDS = 0.005


def main(uri, what, sql):
    ended, times, errors, sent = threading.Event(), [], [], 0
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    with flight.FlightClient(uri) as client:

        def answer():
            nonlocal sent
            for endpoint in client.get_flight_info(fsql.statement(sql)).endpoints:
                for chunk in client.do_get(endpoint.ticket):
                    sent += chunk.data.nbytes
                    if ended.is_set() and what == "stream":
                        return

        answer()
        print("asks", flush=True)
        start, sent = time.perf_counter(), 0
        while not ended.is_set():
            begin = time.perf_counter()
            try:
                answer()
            except flight.FlightError as error:
                errors.append(str(error).splitlines()[0])
            times.append(time.perf_counter() - begin)
            if what == "count":
                time.sleep(PAUSE_SECONDS)
        seconds = time.perf_counter() - start
    times = times or [seconds]
    spread = {"n": len(times), "p50_ms": ms(percentile(times, 0.5)), "p99_ms": ms(percentile(times, 0.99)), "max_ms": ms(max(times))}
    print(json.dumps(spread | {"mb_per_second": round(sent / seconds / 1e6, 1), "errors": errors[:5]}))


if __name__ == "__main__":
    main(*sys.argv[1:])
