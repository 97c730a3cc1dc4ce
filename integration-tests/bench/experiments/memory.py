"""What a table takes in the cache, against the same as plain Arrow."""

import contenders
import tables
from lab import mib, note
from server import serving

DEFAULTS = {"rows": [10**6], "scale": 1.0}


def run(arguments):
    (rows,), found = arguments.rows, []
    for folder, table in ((tables.events(rows), "events"), (tables.ten(rows), tables.TEN), (tables.tpch(arguments.scale), "lineitem")):
        with serving(contenders.setup(arguments, folder)) as server:
            if contenders.hot(server) is None:
                return {"absent": "the server has no cache of hot tables", "problems": []}
            contenders.call(server, f"/hot/preload/{table}")
            cached = contenders.hot(server)["bytes"]
        plain = tables.plain_bytes(folder, table)
        found.append({"table": table, "bytes": cached, "plain_bytes": plain, "ratio": round(cached / plain, 3)})
        note(f"{table}: {mib(cached)} in the cache, {mib(plain)} as plain Arrow: {found[-1]['ratio']}")
    return {"rows": rows, "scale": arguments.scale, "tables": found, "problems": []}
