//! Several distinct counts of one whole table are counted one after the other.
//!
//! `SELECT count(DISTINCT a), count(DISTINCT b) FROM t` holds the values of all in an aggregate that cannot spill.
//! `SELECT count(a) FROM (SELECT DISTINCT a FROM t)` can; each gives one row, and a cross join puts them together.
//! It reads the table once for each.

use std::sync::Arc;

use datafusion::common::{Column, Result};
use datafusion::functions_aggregate::count::Count;
use datafusion::functions_aggregate::expr_fn::count;
use datafusion::logical_expr::{Aggregate, Expr, LogicalPlan, LogicalPlanBuilder};

use super::careful::is_steady;

/// Whether `aggregate` is better taken apart. Its input must give the same rows each time.
pub(super) fn is_taken_apart(aggregate: &Aggregate) -> Result<bool> {
    let counted = aggregate.aggr_expr.iter().filter(|function| distinct_count(function).is_some()).count();
    if !aggregate.group_expr.is_empty() || counted < 2 || !aggregate.aggr_expr.iter().all(is_known) {
        return Ok(false);
    }
    Ok(is_steady(&aggregate.input)? && !aggregate.aggr_expr.iter().any(Expr::is_volatile))
}

/// What is counted, if `function` is a plain distinct count.
fn distinct_count(function: &Expr) -> Option<&Expr> {
    let Expr::AggregateFunction(function) = unaliased(function) else { return None };
    let params = &function.params;
    match params.args.as_slice() {
        [value] if params.distinct && params.filter.is_none() && function.func.inner().is::<Count>() => Some(value),
        _ => None,
    }
}

fn is_known(function: &Expr) -> bool {
    matches!(unaliased(function), Expr::AggregateFunction(_))
}

fn unaliased(mut expression: &Expr) -> &Expr {
    while let Expr::Alias(alias) = expression {
        expression = &alias.expr;
    }
    expression
}

/// One aggregate for each of its distinct counts, and one for the rest.
pub(super) fn take_apart(aggregate: Aggregate) -> Result<LogicalPlan> {
    let Aggregate { input, aggr_expr, schema, .. } = aggregate;
    let (counts, others): (Vec<_>, Vec<_>) =
        aggr_expr.into_iter().zip(schema.iter()).partition(|(function, _)| distinct_count(function).is_some());
    let mut parts = Vec::new();
    if !others.is_empty() {
        let others: Vec<_> = others.into_iter().map(|(function, _)| function).collect();
        parts.push(LogicalPlan::Aggregate(Aggregate::try_new(Arc::clone(&input), Vec::new(), others)?));
    }
    for (function, (_, field)) in &counts {
        let Some(value) = distinct_count(function) else { continue };
        let distinct = Aggregate::try_new(Arc::clone(&input), vec![value.clone()], Vec::new())?;
        let value = Expr::Column(Column::from(distinct.schema.qualified_field(0)));
        let counted = count(value).alias(field.name());
        let counted = Aggregate::try_new(Arc::new(LogicalPlan::Aggregate(distinct)), Vec::new(), vec![counted])?;
        parts.push(LogicalPlan::Aggregate(counted));
    }
    let mut parts = parts.into_iter();
    let first = LogicalPlanBuilder::from(parts.next().unwrap_or_else(|| input.as_ref().clone()));
    let together = parts.try_fold(first, |left, right| left.cross_join(right))?;
    together.project(schema.columns().into_iter().map(Expr::Column))?.build()
}

#[cfg(test)]
mod tests {
    use super::super::testing::attempt;

    #[tokio::test]
    async fn distinct_counts_of_a_whole_table_spill() {
        let table = "(SELECT value AS v, concat('a text for number ', nullif(value, 7)) AS t FROM range(100000))";
        let sql = format!(
            "SELECT 1 + count(DISTINCT v) AS a, count(DISTINCT t), sum(v), count(DISTINCT nullif(v % 9, 3)),
             count(DISTINCT v) FILTER (WHERE v < 50) FROM {table}"
        );
        let expected = attempt(1 << 30, false, &sql).await.expect("there is room");
        let little = 8 << 20;
        assert!(attempt(little, false, &sql).await.is_err(), "then this module is not needed");
        assert_eq!(attempt(little, true, &sql).await.expect("it spills"), expected);
    }
}
