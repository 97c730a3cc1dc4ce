#!/usr/bin/env bash
# `make run`: builds Updraft, makes sample data, serves it, and says how to query it. Ctrl-C stops it.
set -euo pipefail
cd "$(dirname "$0")/.."
profile=${PROFILE:-release} scale=${SCALE:-0.1} listen=${LISTEN:-127.0.0.1:50051}

integration-tests/setup.sh run
cargo build --profile "$profile" -p updraft-server
bin=${CARGO_TARGET_DIR:-target}/$([ "$profile" = dev ] && echo debug || echo "$profile")/updraft

data=.work/sample-$scale
if [ ! -d "$data" ]; then
  echo "making TPC-H sample data at scale $scale in $data"
  rm -rf "$data.part"
  "$bin" sample --scale "$scale" "$data.part" >/dev/null
  mv "$data.part" "$data"
fi

announce() {
  trap '' INT # Ctrl-C is for the server; this ends when the server closes its output.
  while IFS= read -r line; do
    printf '%s\n' "$line"
    case $line in "updraft listening on "*) ;; *) continue ;; esac
    uri=${line##* }
    cat <<TEXT

Python (paste into $PWD/.venv/bin/python):

from adbc_driver_flightsql import dbapi
with dbapi.connect("$uri", autocommit=True) as conn, conn.cursor() as cur:
    cur.execute("SELECT l_returnflag, count(*) AS n, sum(l_extendedprice) AS price FROM lineitem GROUP BY 1 ORDER BY 1")
    print(cur.fetch_arrow_table().to_pandas())

Command line:

$bin query --uri $uri "SELECT n_name, count(*) AS customers FROM customer JOIN nation ON c_nationkey = n_nationkey GROUP BY 1 ORDER BY 2 DESC LIMIT 5"

TEXT
  done
}
# exec: signals and the exit code are the server's own.
exec "$bin" serve --data "$data" --listen "$listen" > >(announce)
