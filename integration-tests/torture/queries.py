"""Heavy statements, made up from a seed: number I of seed S is the same text for ever, whatever else is run.

Each statement is one SQL text that DataFusion and DuckDB both take and that has one right answer: an order is total or does not
matter, LIMIT cuts only identical rows apart, sums are of whole numbers and decimals. Where the dialects differ the text says what
is meant (NULLS FIRST) or stays away (/, avg, INTERSECT ALL).
"""

import dataclasses
import random

import tpch


@dataclasses.dataclass(frozen=True)
class Query:
    index: int
    shape: str
    sql: str
    # Whether the answer's order is part of it.
    ordered: bool = False


@dataclasses.dataclass(frozen=True)
class Table:
    """What the shapes know of a table: `key` names a row; `joins` are columns many rows share; the rest by kind."""

    name: str
    key: tuple[str, ...]
    joins: tuple[str, ...]
    ints: tuple[str, ...]
    decimals: tuple[str, ...]
    strings: tuple[str, ...]
    dates: tuple[str, ...] = ()

    def kinds(self):
        kinds = dict.fromkeys((*self.key, *self.joins, *self.ints), "int")
        return kinds | dict.fromkeys(self.decimals, "decimal") | dict.fromkeys(self.strings, "string") | dict.fromkeys(self.dates, "date")


def columns(prefix, *names):
    return tuple(f"{prefix}{name}" for name in names)


LINEITEM = Table(
    "lineitem",
    ("l_orderkey", "l_linenumber"),
    columns("l_", "orderkey", "partkey", "suppkey"),
    (),
    columns("l_", "quantity", "extendedprice", "discount", "tax"),
    columns("l_", "comment", "shipinstruct", "shipmode", "returnflag"),
    columns("l_", "shipdate", "commitdate", "receiptdate"),
)
ORDERS = Table("orders", ("o_orderkey",), ("o_custkey",), ("o_shippriority",), ("o_totalprice",), columns("o_", "comment", "clerk", "orderpriority"), ("o_orderdate",))
PARTSUPP = Table("partsupp", columns("ps_", "partkey", "suppkey"), columns("ps_", "partkey", "suppkey"), ("ps_availqty",), ("ps_supplycost",), ("ps_comment",))
WIDE = Table(
    "wide", ("id",), ("i4", "i5", "i10"), columns("i", *range(1, 17)), columns("d", *range(1, 9)), columns("s", *range(1, 21)), columns("t", *range(1, 6))
)
TEXTS = Table("texts", ("id",), ("grp",), (), (), ("title", "body", "noise"))
SKEWED = Table("skewed", ("id",), ("k", "v"), ("v", "n"), (), ("s",))
NULLS = Table("nulls", ("id",), ("ka", "kb"), (), ("amount",), ("text",))
BIG = (LINEITEM, ORDERS, PARTSUPP, WIDE, TEXTS, SKEWED, NULLS)

# How a core of a statement is finished: weights.
FINISHES = {"digest": 5, "rows": 2, "top": 2, "sorted": 2}


def digest_of(name, kind):
    """One row says enough of a column to find a wrong value in it, and costs the client nothing."""
    match kind:
        case "int":
            return [f"sum({name} % 1000003)", f"count({name})"]
        case "decimal":
            return [f"sum({name})", f"count({name})"]
        case "string":
            return [f"sum(length({name}))", f"min(substr({name}, 1, 40))", f"max(substr({name}, 1, 40))"]
        case _:
            return [f"min({name})", f"max({name})", f"count({name})"]


class Maker:
    """The shapes. Each returns the SQL of a table without order, and {column: kind}."""

    def __init__(self, rng):
        self.rng = rng

    def one(self, options):
        return self.rng.choice(list(options))

    def some(self, options, least, most):
        options = list(dict.fromkeys(options))
        return self.rng.sample(options, min(len(options), self.rng.randint(least, most)))

    def where(self, table, alias="", least=30):
        """A condition that keeps between `least` and 100 percent of the rows, spread over the whole table."""
        percent = self.rng.randint(least, 130)
        return "TRUE" if percent >= 100 else f"({alias}{table.key[0]} * 7919) % 100 < {percent}"

    def aggregates(self, table, alias="", most=4):
        """[(SQL, kind)] of aggregates whose result no order of the input changes."""
        found = [("count(*)", "int")]
        for name, kind in table.kinds().items():
            name = f"{alias}{name}"
            match kind:
                case "int":
                    found += [(f"sum({name})", "int"), (f"bit_xor({name})", "int"), (f"max({name})", "int")]
                case "decimal":
                    found += [(f"sum({name})", "decimal"), (f"min({name})", "decimal")]
                case _:
                    found += [(f"min({name})", kind), (f"max({name})", kind)]
        return self.some(found, 1, most)

    def order_of(self, value, table):
        """A total order that begins with `value`. It names no column twice: DataFusion 55.2 does not take that in an aggregate."""
        return ", ".join([f"{value} NULLS LAST", *(key for key in table.key if key != value)])

    def select(self, items):
        """"a AS c0, ..." and {"c0": kind} of [(SQL, kind)]."""
        return ", ".join(f"{sql} AS c{n}" for n, (sql, _) in enumerate(items)), {f"c{n}": kind for n, (_, kind) in enumerate(items)}

    def sort_wide(self):
        """Whole rows through a sort; the row number makes its order part of the answer."""
        table = self.one(BIG)
        kinds = table.kinds()
        keys = self.some([name for name in kinds if name not in table.key], 1, 3)
        order = ", ".join(f"{key} {self.one(('ASC', 'DESC'))} NULLS {self.one(('FIRST', 'LAST'))}" for key in keys)
        kept = self.some(kinds, 3, len(kinds))
        inner = f"SELECT {', '.join(kept)}, row_number() OVER (ORDER BY {order}, {', '.join(table.key)}) AS place FROM {table.name} WHERE {self.where(table)}"
        return f"SELECT * FROM ({inner}) WHERE place % {self.one((1, 7, 101))} = 0", {name: kinds[name] for name in kept} | {"place": "int"}

    def group_high(self):
        """More groups than fit."""
        table = self.one(BIG)
        kinds = table.kinds()
        keys = self.some((*table.key, *table.joins, *table.strings), 1, 3)
        items, named = self.select([(key, kinds[key]) for key in keys] + self.aggregates(table, most=6))
        return f"SELECT {items} FROM {table.name} WHERE {self.where(table)} GROUP BY {', '.join(keys)}", named

    def group_few(self):
        """Few groups with a wide state."""
        table = self.one((WIDE, LINEITEM, SKEWED))
        key = self.one({"wide": ("i1", "i6", "s6"), "lineitem": ("l_suppkey", "l_shipdate"), "skewed": ("n", "k")}[table.name])
        items, named = self.select([(key, table.kinds()[key])] + self.aggregates(table, most=16))
        return f"SELECT {items} FROM {table.name} WHERE {self.where(table)} GROUP BY {key}", named

    def distinct(self):
        table = self.one(BIG)
        kinds = table.kinds()
        kept = self.some(kinds, 1, 5)
        return f"SELECT DISTINCT {', '.join(kept)} FROM {table.name} WHERE {self.where(table)}", {name: kinds[name] for name in kept}

    def count_distinct(self):
        table = self.one(BIG)
        kinds = table.kinds()
        counted = self.some(kinds, 1, 4)
        items = [(f"count(DISTINCT {name})", "int") for name in counted] + self.aggregates(table, most=2)
        if self.rng.random() < 0.5:
            items, named = self.select(items)
            return f"SELECT {items} FROM {table.name} WHERE {self.where(table)}", named
        key = self.one((*table.joins, *table.strings))
        items, named = self.select([(key, kinds[key]), *items])
        return f"SELECT {items} FROM {table.name} WHERE {self.where(table)} GROUP BY {key}", named

    # (left, right, equality): pairs whose join does not explode.
    PAIRS = (
        (LINEITEM, ORDERS, "a.l_orderkey = b.o_orderkey"),
        (LINEITEM, PARTSUPP, "a.l_partkey = b.ps_partkey AND a.l_suppkey = b.ps_suppkey"),
        (LINEITEM, LINEITEM, "a.l_orderkey = b.l_orderkey AND a.l_linenumber = b.l_linenumber"),
        (ORDERS, ORDERS, "a.o_orderkey + 32 = b.o_orderkey"),
        (WIDE, WIDE, "a.id = b.id + 1"),
        (WIDE, TEXTS, "a.id = b.id"),
        (SKEWED, WIDE, "a.k = b.id"),
        (SKEWED, SKEWED, "a.id = b.id + 17"),
        (NULLS, NULLS, "a.ka = b.ka AND a.kb = b.kb"),
        (NULLS, SKEWED, "a.ka = b.id"),
        (TEXTS, TEXTS, "a.body = b.body"),
    )

    def pair(self):
        left, right, on = self.one(self.PAIRS)
        if self.rng.random() < 0.3:
            # Nothing is known of a computed key: no statistics, no order.
            on = " AND ".join(f"{side.split(' = ')[0]} = {side.split(' = ')[1]} + 0" if "body" not in side else side for side in on.split(" AND "))
        return left, right, on

    def join(self):
        """Both sides big; inner and outer, some with a condition beside the equality."""
        left, right, on = self.pair()
        kind = self.one(("JOIN", "JOIN", "LEFT JOIN", "RIGHT JOIN", "FULL JOIN"))
        lefts, rights = self.some(left.kinds(), 1, 5), self.some(right.kinds(), 1, 5)
        items, named = self.select([(f"a.{name}", left.kinds()[name]) for name in lefts] + [(f"b.{name}", right.kinds()[name]) for name in rights])
        a = f"(SELECT * FROM {left.name} WHERE {self.where(left)})"
        b = f"(SELECT * FROM {right.name} WHERE {self.where(right)})"
        if self.rng.random() < 0.3 and kind != "FULL JOIN":
            on += f" AND (a.{left.key[0]} + b.{right.key[0]}) % 3 <> 1"
        return f"SELECT {items} FROM {a} AS a {kind} {b} AS b ON {on}", named

    def join_then_group(self):
        left, right, on = self.pair()
        key, kind = self.one([(f"a.{name}", left.kinds()[name]) for name in (*left.key, *left.joins)] + [(f"b.{name}", "string") for name in right.strings])
        items, named = self.select([(key, kind), *self.aggregates(left, "a."), *self.aggregates(right, "b.")])
        return f"SELECT {items} FROM {left.name} AS a JOIN {right.name} AS b ON {on} WHERE {self.where(left, 'a.')} GROUP BY {key}", named

    def semi_anti(self):
        left, right, on = self.pair()
        kept = self.some(left.kinds(), 1, 6)
        items, named = self.select([(f"a.{name}", left.kinds()[name]) for name in kept])
        more = f" AND {self.where(right, 'b.')}"
        if self.rng.random() < 0.25:
            # NOT IN over keys without NULL; over keys with NULL the answer is empty, or nearly.
            return f"SELECT {items} FROM {left.name} AS a WHERE a.{left.key[0]} NOT IN (SELECT b.{right.key[0]} FROM {right.name} AS b WHERE TRUE{more})", named
        return f"SELECT {items} FROM {left.name} AS a WHERE {self.one(('EXISTS', 'NOT EXISTS'))} (SELECT 1 FROM {right.name} AS b WHERE {on}{more})", named

    def skew_join(self):
        """One key holds a twentieth of all rows."""
        kind = self.one(("JOIN", "LEFT JOIN", "FULL JOIN"))
        if self.rng.random() < 0.5:
            items, named = self.select([("a.id", "int"), ("a.s", "string"), ("b.label", "string"), ("b.weight", "int")])
            return f"SELECT {items} FROM skewed AS a {kind} keys AS b ON a.k = b.k WHERE a.id IS NULL OR {self.where(SKEWED, 'a.')}", named
        items, named = self.select([("a.k", "int"), ("count(*)", "int"), ("sum(a.v)", "int"), ("max(b.s)", "string")])
        few = self.rng.randint(5_000, 20_000)
        return f"SELECT {items} FROM (SELECT * FROM skewed WHERE id < {few}) AS a JOIN (SELECT * FROM skewed WHERE id < {few}) AS b ON a.k = b.k GROUP BY a.k", named

    def nested_join(self):
        """No equality: every row of one side meets every row of the other, so both sides are cut short."""
        few, many = self.rng.randint(100, 1000), self.rng.randint(2_000, 20_000)
        left, right = self.one((SKEWED, NULLS, WIDE)), self.one((TEXTS, WIDE))
        condition = self.one(
            (f"a.{left.key[0]} % 997 < b.{right.key[0]} % 13", f"a.{left.key[0]} % 101 = b.{right.key[0]} % 103 AND a.{left.key[0]} < b.{right.key[0]} * 5", f"a.{left.joins[0]} > b.id * 3")
        )
        kind = self.one(("JOIN", "LEFT JOIN", "RIGHT JOIN", "FULL JOIN")) if "=" not in condition else "JOIN"
        items, named = self.select([*self.aggregates(left, "a."), *self.aggregates(right, "b.")])
        a, b = f"(SELECT * FROM {left.name} WHERE id < {many})", f"(SELECT * FROM {right.name} WHERE id < {few})"
        return f"SELECT {items} FROM {a} AS a {kind} {b} AS b ON {condition}", named

    def window(self):
        table = self.one(BIG)
        kinds = table.kinds()
        parts = self.one(((), (table.joins[0],), (table.joins[-1],), (table.strings[0],)))
        order = ", ".join([f"{self.one(list(kinds))} {self.one(('ASC', 'DESC'))} NULLS LAST", *table.key])
        over = (f"PARTITION BY {', '.join(parts)} " if parts else "") + f"ORDER BY {order}"
        number = self.one([name for name, kind in kinds.items() if kind in ("int", "decimal")])
        text = self.one(table.strings)
        frames = ("ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW", "ROWS BETWEEN 100 PRECEDING AND 5 FOLLOWING", "ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING")
        calls = [
            ("row_number() OVER ({over})", "int"),
            ("rank() OVER ({over})", "int"),
            (f"lag({text}, {self.rng.randint(1, 50)}) OVER ({{over}})", "string"),
            (f"lead({number}, 3) OVER ({{over}})", kinds[number]),
            (f"sum({number}) OVER ({{over}} {self.one(frames)})", kinds[number]),
            (f"max({number}) OVER ({{over}} {self.one(frames[:1])})", kinds[number]),
            (f"first_value({text}) OVER ({{over}} {self.one(frames)})", "string"),
            (f"last_value({text}) OVER ({{over}} {frames[2]})", "string"),
        ]
        if parts:
            calls.append((f"count(*) OVER (PARTITION BY {parts[0]})", "int"))
        chosen = [(sql.format(over=over), kind) for sql, kind in self.some(calls, 1, 3)]
        kept = self.some(kinds, 1, 4)
        items, named = self.select([(name, kinds[name]) for name in kept] + chosen)
        return f"SELECT {items} FROM {table.name} WHERE {self.where(table)}", named

    def set_operation(self):
        table = self.one(BIG)
        kinds = table.kinds()
        kept = self.some(kinds, 1, 6)
        part = lambda: f"SELECT {', '.join(kept)} FROM {table.name} WHERE {self.where(table)}"  # noqa: E731
        operation = self.one(("UNION", "UNION ALL", "INTERSECT", "EXCEPT"))
        return f"{part()} {operation} {part()}", {name: kinds[name] for name in kept}

    def string_agg(self):
        table, key, text = self.one(
            ((LINEITEM, "l_suppkey", "l_comment"), (ORDERS, "o_custkey", "o_comment"), (SKEWED, "n", "s"), (TEXTS, "grp", "title"), (TEXTS, "grp", "body"), (WIDE, "i4", "s5"))
        )
        call = f"string_agg({text}, ',' ORDER BY {self.order_of(text, table)})"
        if self.rng.random() < 0.2 and text != "body":
            return f"SELECT {call} AS c0 FROM {table.name} WHERE {self.where(table)}", {"c0": "string"}
        items, named = self.select([(key, table.kinds()[key]), (call, "string"), *self.aggregates(table, most=2)])
        return f"SELECT {items} FROM {table.name} WHERE {self.where(table)} GROUP BY {key}", named

    def array_agg(self):
        table, key, value = self.one(((LINEITEM, "l_orderkey", "l_partkey"), (ORDERS, "o_custkey", "o_orderkey"), (SKEWED, "k", "v"), (WIDE, "i10", "i6"), (NULLS, "ka", "kb")))
        items, named = self.select([(key, "int"), (f"array_agg({value} ORDER BY {self.order_of(value, table)})", "list"), ("count(*)", "int")])
        return f"SELECT {items} FROM {table.name} WHERE {self.where(table)} GROUP BY {key}", named

    def cte_twice(self):
        table = self.one((LINEITEM, ORDERS, SKEWED, WIDE))
        key = table.joins[0]
        items, named = self.select([("a.g", "int"), ("a.m", "string"), ("b.m", "string"), ("a.n + b.n", "int")])
        inner = f"SELECT {key} AS g, count(*) AS n, max({table.strings[0]}) AS m FROM {table.name} WHERE {self.where(table)} GROUP BY {key}"
        return f"SELECT {items} FROM g AS a {self.one(('JOIN', 'LEFT JOIN', 'FULL JOIN'))} g AS b ON a.g = b.g + {self.rng.randint(1, 3)}", named, f"WITH g AS ({inner}) "

    def grouping_sets(self):
        table = self.one((LINEITEM, SKEWED, WIDE, ORDERS))
        kinds = table.kinds()
        keys = self.some((*table.joins, *table.strings[:3]), 2, 3)
        items, named = self.select([(key, kinds[key]) for key in keys] + self.aggregates(table, most=3))
        return f"SELECT {items} FROM {table.name} WHERE {self.where(table)} GROUP BY {self.one(('ROLLUP', 'CUBE'))} ({', '.join(keys)})", named

    def subquery(self):
        """A scalar for each row, and IN over a big set."""
        if self.rng.random() < 0.5:
            items, named = self.select([("o_orderkey", "int"), ("o_comment", "string"), ("o_totalprice", "decimal")])
            inner = "SELECT max(l_extendedprice) FROM lineitem WHERE l_orderkey = o_orderkey"
            return f"SELECT {items} FROM orders WHERE o_totalprice > {self.rng.randint(1, 3)} * ({inner}) AND {self.where(ORDERS)}", named
        items, named = self.select([("l_orderkey", "int"), ("l_comment", "string")])
        inner = f"SELECT l_partkey FROM lineitem GROUP BY l_partkey HAVING sum(l_quantity) > {self.rng.randint(500, 900)}"
        return f"SELECT {items} FROM lineitem WHERE l_partkey IN ({inner}) AND {self.where(LINEITEM)}", named

    def made_strings(self):
        """Values that are in no file: their size shows only when they are there."""
        times = self.rng.randint(4, 60)
        table = self.one((SKEWED, ORDERS, NULLS))
        made = f"repeat(md5(CAST({table.key[0]} % {self.rng.randint(10_000, 60_000)} AS VARCHAR)), {times})"
        items, named = self.select([("made", "string"), ("count(*)", "int"), ("max(id)", "int")])
        return f"SELECT {items} FROM (SELECT {made} AS made, {table.key[0]} AS id FROM {table.name} WHERE {self.where(table)}) GROUP BY made", named

    def deep(self):
        """A join into groups into a window: three operators that each want everything."""
        items, named = self.select([("k", "int"), ("n", "int"), ("total", "decimal"), ("rank() OVER (PARTITION BY n ORDER BY total DESC, k)", "int"), ("lag(words, 1) OVER (ORDER BY k)", "string")])
        inner = (
            "SELECT o_custkey AS k, count(DISTINCT l_partkey) AS n, sum(l_extendedprice * (1 - l_discount)) AS total, max(l_comment) AS words "
            f"FROM lineitem JOIN orders ON l_orderkey = o_orderkey WHERE {self.where(LINEITEM)} GROUP BY o_custkey"
        )
        return f"SELECT {items} FROM ({inner})", named

    def finish(self, sql, named, before=""):
        """The core as it is, sorted, cut to its first rows, or boiled down to one row."""
        how = self.rng.choices(list(FINISHES), FINISHES.values())[0]
        if how == "rows":
            return before + sql, False
        if how == "digest":
            items = [item for name, kind in named.items() for item in digest_of(name, kind)]
            return f"{before}SELECT count(*) AS n, {', '.join(f'{item} AS x{n}' for n, item in enumerate(items))} FROM ({sql}) AS core", False
        order = ", ".join(f"{name} {self.one(('ASC', 'DESC'))} NULLS {self.one(('FIRST', 'LAST'))}" for name in named)
        cut = f" LIMIT {self.one((10, 1000, 50_000))}" if how == "top" else ""
        return f"{before}SELECT * FROM ({sql}) AS core ORDER BY {order}{cut}", True


# TPC-H's own, but for those that average or divide (DuckDB does it in doubles, DataFusion in decimals), and Q18, whose LIMIT cuts ties.
TPCH = tuple(name for name, sql in tpch.QUERIES.items() if "avg(" not in sql.lower() and "/" not in sql and name != "q18")
SHAPES = {
    "sort_wide": 6,
    "group_high": 8,
    "group_few": 3,
    "distinct": 4,
    "count_distinct": 4,
    "join": 10,
    "join_then_group": 6,
    "semi_anti": 6,
    "skew_join": 3,
    "nested_join": 3,
    "window": 8,
    "set_operation": 6,
    "string_agg": 4,
    "array_agg": 3,
    "cte_twice": 3,
    "grouping_sets": 3,
    "subquery": 3,
    "made_strings": 3,
    "deep": 3,
    "tpch": 4,
}


def make(seed, index):
    """Statement `index` of `seed`."""
    rng = random.Random(f"{seed}/{index}")
    shape = rng.choices(list(SHAPES), SHAPES.values())[0]
    if shape == "tpch":
        name = rng.choice(TPCH)
        return Query(index, f"tpch {name}", tpch.QUERIES[name].rstrip().rstrip(";"))
    maker = Maker(rng)
    sql, ordered = maker.finish(*getattr(maker, shape)())
    return Query(index, shape, sql, ordered)
