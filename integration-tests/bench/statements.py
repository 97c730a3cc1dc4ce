"""What is asked: the eight queries over the table of ten columns, and TPC-H."""

import dataclasses

import tpch


@dataclasses.dataclass(frozen=True)
class Statement:
    """`ordered`: its ORDER BY names each row, so that the order of the rows is part of the answer."""

    name: str
    sql: str
    ordered: bool = False


EIGHT = (
    Statement("filtered 5 %", "SELECT * FROM t WHERE score > 95"),
    Statement("projection", "SELECT id, score FROM t"),
    Statement("full scan", "SELECT * FROM t"),
    Statement("count", "SELECT count(*) AS n FROM t"),
    Statement("20 groups", "SELECT category, count(*) AS n, sum(amount) AS total, avg(score) AS mean FROM t GROUP BY category"),
    Statement(
        "complex",
        "SELECT category, region, count(*) AS n, sum(amount) AS total, avg(score) AS mean FROM t WHERE score > 50 AND qty < 80 "
        "GROUP BY category, region HAVING count(*) > 100 ORDER BY total DESC LIMIT 10",
        ordered=True,
    ),
    Statement("n/10 groups, top 10", "SELECT user_id, count(*) AS n, sum(amount) AS total FROM t GROUP BY user_id ORDER BY total DESC, user_id LIMIT 10", ordered=True),
    Statement("point lookup", "SELECT * FROM t WHERE id = 4242"),
)
BY_NAME = {statement.name: statement for statement in EIGHT}


def tpch_at(scale):
    """The 22 queries. The least value that q11 asks for depends on the scale, and is that of 0.1 in its file."""
    fraction = f"{0.0001 / scale:f}"
    assert "* 0.001\n" in tpch.QUERIES["q11"], "q11 has another fraction"
    return tuple(Statement(name, sql.replace("* 0.001\n", f"* {fraction}\n"), name in tpch.ORDERED) for name, sql in tpch.QUERIES.items())
