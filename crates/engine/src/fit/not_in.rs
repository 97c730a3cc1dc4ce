//! `NOT IN` becomes a join that spills, and a look at the NULLs that it was asked for.
//!
//! `a.x NOT IN (SELECT y FROM b)` gives no row when there is a NULL among the `y`, none for an `x` that is NULL, and all rows
//! when `b` is empty. The hash join of DataFusion 55.2 that does so gathers all of `a`, in one partition, and never spills;
//! no other join does it. What rows have no partner any anti join tells, and of `b` it is enough to know how many rows it
//! has, and how many of them have a `y`. That is counted beside the join, so that `b` is read twice.

use std::sync::Arc;

use datafusion::common::Result;
use datafusion::functions_aggregate::expr_fn::count;
use datafusion::logical_expr::{Aggregate, Expr, Join, JoinType, LogicalPlan, LogicalPlanBuilder, ident, lit};

use super::careful::is_steady;

/// How many rows the subquery has.
const ROWS: &str = "not_in_rows";
/// How many of them have a value.
const VALUES: &str = "not_in_values";

/// Whether `join` is such a one, of a single value. Its right side must give the same rows each time.
pub(super) fn is_taken_apart(join: &Join) -> Result<bool> {
    let [(key, value)] = join.on.as_slice() else { return Ok(false) };
    let is_not_in = join.null_aware && join.join_type == JoinType::LeftAnti && join.filter.is_none();
    Ok(is_not_in && !key.is_volatile() && !value.is_volatile() && is_steady(&join.right)?)
}

/// An anti join beside a count of its right side, and a filter.
pub(super) fn take_apart(join: Join) -> Result<LogicalPlan> {
    let (key, value) = join.on[0].clone();
    let counts = vec![count(lit(1)).alias(ROWS), count(value).alias(VALUES)];
    let counts = Aggregate::try_new(Arc::clone(&join.right), Vec::new(), counts)?;
    let columns = join.schema.columns();
    let anti = LogicalPlan::Join(Join { null_aware: false, ..join });
    let nobody_has_null = ident(ROWS).eq(ident(VALUES)).and(key.is_not_null());
    // A cross join gathers its left side: one row.
    LogicalPlanBuilder::from(LogicalPlan::Aggregate(counts))
        .cross_join(anti)?
        .filter(ident(ROWS).eq(lit(0_i64)).or(nobody_has_null))?
        .project(columns.into_iter().map(Expr::Column))?
        .build()
}

#[cfg(test)]
mod tests {
    use super::super::testing::attempt;

    #[tokio::test]
    async fn rows_that_are_not_in_what_may_be_null_are_found_by_spilling() {
        let outer =
            "(SELECT nullif(value, 5) AS x, concat('a longer text for number ', value) AS t FROM range(100000))";
        let little = 4 << 20;
        for (rows, inner) in [
            (66_665, "SELECT nullif(value, -1) AS y FROM range(0, 100000, 3)"),
            (0, "SELECT nullif(value, 300) AS y FROM range(0, 100000, 3)"),
            (100_000, "SELECT nullif(value, -1) AS y FROM range(0, 100000, 3) WHERE value < 0"),
        ] {
            // What is read of each row keeps the join from leaving it out.
            let sql = format!(
                "SELECT count(*) AS n, coalesce(max(length(t)), 0) - coalesce(max(length(t)), 0) + 7 AS seven
                 FROM {outer} WHERE x NOT IN ({inner})"
            );
            let expected = attempt(1 << 30, false, &sql).await.expect("there is room");
            assert!(expected.contains(&format!("| {rows} ")), "{expected}");
            assert!(attempt(little, false, &sql).await.is_err(), "then this module is not needed");
            assert_eq!(attempt(little, true, &sql).await.expect("it spills"), expected, "{sql}");
        }
    }

    #[tokio::test]
    async fn what_else_is_not_in_stays_right() {
        for (sql, rows) in [
            ("SELECT value FROM range(9) WHERE value NOT IN (SELECT value + 5 FROM range(9))", 5),
            (
                "SELECT value FROM range(9) WHERE nullif(value, 2) + 1 NOT IN (SELECT nullif(value, 9) * 2 FROM range(9))",
                4,
            ),
            ("SELECT * FROM (VALUES (1), (NULL)) v (a) WHERE a NOT IN (SELECT a FROM (VALUES (2), (3)) v (a))", 1),
        ] {
            let sql = format!("SELECT count(*) AS n FROM ({sql})");
            let careful = attempt(1 << 30, true, &sql).await.expect("there is room");
            assert_eq!(careful, attempt(1 << 30, false, &sql).await.expect("there is room"), "{sql}");
            assert!(careful.contains(&format!("| {rows} ")), "{sql}: {careful}");
        }
    }
}
