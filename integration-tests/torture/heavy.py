"""Forty heavy statements with names, one for each way a query can want much memory. What the client gets is small.

Unlike the random ones they stay the same, so that their working sets can be measured once and figures can be compared over time.
"""

import tpch
from queries import BIG, Query, digest_of


def sorted_rows(table, order, every=1000):
    """All columns through a sort; one row of `every` reaches the client, with its place."""
    (keys,) = (t.key for t in BIG if t.name == table)
    return f"SELECT * FROM (SELECT *, row_number() OVER (ORDER BY {order}, {', '.join(keys)}) AS place FROM {table}) AS t WHERE place % {every} = 0"


def boiled(core, **kinds):
    """One row that says enough of the answer of `core`, whose columns have these kinds."""
    items = [item for name, kind in kinds.items() for item in digest_of(name, kind)]
    return f"SELECT count(*) AS n, {', '.join(f'{item} AS x{n}' for n, item in enumerate(items))} FROM ({core}) AS core"


def grouped(table, keys, aggregates, where="TRUE"):
    """A GROUP BY, and a checksum over its groups."""
    named = ", ".join(f"{call} AS a{n}" for n, (call, _) in enumerate(aggregates))
    return boiled(f"SELECT {keys}, {named} FROM {table} WHERE {where} GROUP BY {keys}", **{f"a{n}": kind for n, (_, kind) in enumerate(aggregates)})


def joined(on, left="lineitem", right="orders", kind="JOIN", columns=None):
    columns = columns or {"a.l_comment": "string", "a.l_extendedprice": "decimal", "a.l_partkey": "int", "b.o_comment": "string", "b.o_totalprice": "decimal"}
    named = ", ".join(f"{column} AS c{n}" for n, column in enumerate(columns))
    return boiled(f"SELECT {named} FROM {left} AS a {kind} {right} AS b ON {on}", **{f"c{n}": kind for n, kind in enumerate(columns.values())})


def windowed(call, kind, table, kept):
    named = ", ".join(f"{column} AS c{n}" for n, column in enumerate(kept))
    return boiled(f"SELECT {named}, {call} AS w FROM {table}", w=kind, **{f"c{n}": kind for n, kind in enumerate(kept.values())})


STRINGS = [(f"{call}(s{n})", "string") for n in range(1, 11) for call in ("min", "max")]
WIDE_PAIR = {"a.s1": "string", "a.s20": "string", "b.s19": "string", "b.i1": "int", "b.d1": "decimal"}
ORDER_ROWS = {"o_orderkey": "int", "o_comment": "string", "o_totalprice": "decimal"}

STATEMENTS = {
    "sort: lineitem by price": sorted_rows("lineitem", "l_extendedprice DESC"),
    "sort: lineitem by comment": sorted_rows("lineitem", "l_comment"),
    "sort: 50 columns": sorted_rows("wide", "s5 DESC NULLS LAST, i3 NULLS LAST", 100),
    "sort: 2 KiB strings": sorted_rows("texts", "noise", 100),
    "sort: skewed keys": sorted_rows("skewed", "k, s"),
    "sort: mostly NULL": sorted_rows("nulls", "kb NULLS FIRST, text NULLS LAST"),
    "group: every row its own group": grouped("lineitem", "l_orderkey, l_linenumber", [("max(l_comment)", "string"), ("sum(l_tax)", "decimal")]),
    "group: by orders": grouped("lineitem", "l_orderkey", [("max(l_comment)", "string"), ("min(l_shipmode)", "string"), ("sum(l_extendedprice)", "decimal")]),
    "group: by long strings": grouped("lineitem", "l_comment", [("count(*)", "int"), ("sum(l_quantity)", "decimal"), ("max(l_orderkey)", "int")]),
    "group: by two keys": grouped("lineitem", "l_partkey, l_suppkey", [("count(*)", "int"), ("max(l_comment)", "string"), ("min(l_comment)", "string")]),
    "group: wide state": grouped("wide", "id", STRINGS),
    "group: wide state, few groups": grouped("wide", "i4", STRINGS),
    "group: by 2 KiB strings": grouped("texts", "body", [("count(*)", "int"), ("max(noise)", "string")]),
    "group: skewed keys": grouped("skewed", "s, k", [("count(*)", "int"), ("bit_xor(v)", "int")]),
    "group: mostly NULL": grouped("nulls", "ka, kb, text", [("count(*)", "int"), ("sum(amount)", "decimal")]),
    "group: strings made in the query": grouped(
        "(SELECT repeat(md5(CAST(id % 100000 AS VARCHAR)), 20) AS made, id FROM skewed) AS t", "made", [("count(*)", "int"), ("max(id)", "int")]
    ),
    "group: rollup": grouped("lineitem", "ROLLUP (l_suppkey, l_shipdate, l_shipmode)", [("count(*)", "int"), ("sum(l_quantity)", "decimal")]).replace(
        "SELECT ROLLUP (l_suppkey, l_shipdate, l_shipmode),", "SELECT l_suppkey, l_shipdate, l_shipmode,"
    ),
    "group: count distinct": grouped("lineitem", "l_suppkey", [("count(DISTINCT l_orderkey)", "int"), ("count(DISTINCT l_partkey)", "int")]),
    "distinct: rows": boiled("SELECT DISTINCT l_orderkey, l_comment, l_shipdate FROM lineitem", l_orderkey="int", l_comment="string", l_shipdate="date"),
    "distinct: counted": "SELECT count(DISTINCT l_comment) AS a, count(DISTINCT l_orderkey) AS b, count(DISTINCT l_extendedprice) AS c FROM lineitem",
    "join: lineitem and orders": joined("a.l_orderkey = b.o_orderkey"),
    "join: the big side to build": joined("a.o_orderkey = b.l_orderkey + 0", "orders", "lineitem", "LEFT JOIN", {"a.o_comment": "string", "b.l_comment": "string", "b.l_tax": "decimal"}),
    "join: lineitem with itself": joined(
        "a.l_orderkey = b.l_orderkey AND a.l_linenumber = b.l_linenumber + 0", right="lineitem", columns={"a.l_comment": "string", "b.l_comment": "string", "b.l_partkey": "int"}
    ),
    "join: full, wide rows": joined("a.id = b.id + 7", "wide", "wide", "FULL JOIN", WIDE_PAIR),
    "join: by 2 KiB strings": joined("a.body = b.body", "texts", "texts", columns={"a.noise": "string", "b.title": "string", "b.id": "int"}),
    "join: skewed keys": joined("a.k = b.k", "skewed", "keys", "FULL JOIN", {"a.s": "string", "a.id": "int", "b.label": "string"}),
    "join: keys mostly NULL": joined("a.ka = b.ka AND a.kb = b.kb", "nulls", "nulls", "LEFT JOIN", {"a.text": "string", "b.text": "string", "b.id": "int"}),
    "join: then groups": grouped(
        "lineitem JOIN orders ON l_orderkey = o_orderkey", "o_custkey, l_suppkey", [("count(*)", "int"), ("sum(l_extendedprice * (1 - l_discount))", "decimal"), ("max(o_comment)", "string")]
    ),
    "join: semi": boiled("SELECT l_comment, l_partkey FROM lineitem WHERE EXISTS (SELECT 1 FROM orders WHERE o_orderkey = l_orderkey + 0 AND o_orderkey % 3 > 0)", l_comment="string", l_partkey="int"),
    "join: anti": boiled("SELECT o_comment, o_custkey FROM orders WHERE NOT EXISTS (SELECT 1 FROM lineitem WHERE l_orderkey = o_orderkey + 0 AND l_quantity > 25)", o_comment="string", o_custkey="int"),
    "window: a number over all rows": windowed("lag(o_clerk, 7) OVER (ORDER BY o_totalprice, o_orderkey)", "string", "orders", ORDER_ROWS),
    "window: sums over few rows": windowed(
        "sum(l_quantity) OVER (PARTITION BY l_suppkey ORDER BY l_shipdate, l_orderkey, l_linenumber ROWS BETWEEN 100 PRECEDING AND 5 FOLLOWING)",
        "decimal",
        "lineitem",
        {"l_comment": "string", "l_partkey": "int"},
    ),
    "window: whole partitions": windowed("max(l_comment) OVER (PARTITION BY l_orderkey)", "string", "lineitem", {"l_shipmode": "string", "l_partkey": "int"}),
    "window: skewed partitions": windowed("rank() OVER (PARTITION BY k ORDER BY v DESC)", "int", "skewed", {"s": "string", "id": "int"}),
    "set: union": boiled("SELECT l_orderkey, l_comment FROM lineitem UNION SELECT l_partkey, l_shipinstruct FROM lineitem", l_orderkey="int", l_comment="string"),
    "set: intersect": boiled("SELECT l_orderkey, l_comment FROM lineitem INTERSECT SELECT l_orderkey, l_comment FROM lineitem WHERE l_orderkey % 3 > 0", l_orderkey="int", l_comment="string"),
    "set: except": boiled("SELECT l_comment FROM lineitem EXCEPT SELECT l_comment FROM lineitem WHERE l_orderkey % 3 = 0", l_comment="string"),
    "collect: strings": boiled("SELECT l_suppkey, string_agg(l_comment, ',' ORDER BY l_comment, l_orderkey, l_linenumber) AS s FROM lineitem GROUP BY l_suppkey", s="string"),
    "collect: arrays": "SELECT count(*) AS n, sum(a[1]) AS first, sum(array_length(a)) AS items FROM (SELECT array_agg(l_partkey ORDER BY l_partkey, l_linenumber) AS a FROM lineitem GROUP BY l_orderkey) AS t",
    "twice: one WITH": boiled(
        "WITH g AS (SELECT l_orderkey AS k, count(*) AS n, max(l_comment) AS m FROM lineitem GROUP BY l_orderkey) SELECT a.k AS c0, a.m AS c1, b.m AS c2 FROM g AS a FULL JOIN g AS b ON a.k = b.k + 1",
        c0="int",
        c1="string",
        c2="string",
    ),
    "tpch: Q9": tpch.QUERIES["q09"].rstrip().rstrip(";"),
    "tpch: Q21": tpch.QUERIES["q21"].rstrip().rstrip(";"),
}
HEAVY = tuple(Query(number, name, sql) for number, (name, sql) in enumerate(STATEMENTS.items()))
