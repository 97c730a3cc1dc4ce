//! Optimized plans for a careful attempt, in which nothing is asked of memory that can be had by reading a table twice.

use std::sync::Arc;

use datafusion::common::Result;
use datafusion::common::tree_node::{Transformed, TreeNodeRecursion};
use datafusion::logical_expr::LogicalPlan;
use datafusion::optimizer::optimize_projections::OptimizeProjections;
use datafusion::optimizer::{Optimizer, OptimizerContext};

use super::{apart, not_in};

/// `plan` with operators that spill in the place of some that cannot.
pub(crate) fn careful_logical(plan: LogicalPlan) -> Result<LogicalPlan> {
    let careful = plan.transform_up_with_subqueries(|node| match node {
        LogicalPlan::Aggregate(aggregate) if apart::is_taken_apart(&aggregate)? => {
            Ok(Transformed::yes(apart::take_apart(aggregate)?))
        }
        LogicalPlan::Join(join) if not_in::is_taken_apart(&join)? => Ok(Transformed::yes(not_in::take_apart(join)?)),
        node => Ok(Transformed::no(node)),
    })?;
    if !careful.transformed {
        return Ok(careful.data);
    }
    // Each reads its own columns only.
    let narrow = Optimizer::with_rules(vec![Arc::new(OptimizeProjections::new())]);
    narrow.optimize(careful.data, &OptimizerContext::new(), |_, _| {})
}

/// Whether `plan` gives the same rows each time.
pub(crate) fn is_steady(plan: &LogicalPlan) -> Result<bool> {
    let mut steady = true;
    plan.apply_with_subqueries(|node| {
        steady &= !matches!(node, LogicalPlan::Limit(_));
        node.apply_expressions(|expression| {
            steady &= !expression.is_volatile();
            Ok(TreeNodeRecursion::Continue)
        })
    })?;
    Ok(steady)
}

#[cfg(test)]
mod tests {
    use datafusion::prelude::{DataFrame, SessionContext};

    use super::*;

    #[tokio::test]
    async fn an_input_that_may_change_is_read_once() {
        for input in [
            "(SELECT value AS v, random() AS r FROM range(9))",
            "(SELECT value AS v, value AS r FROM range(9) LIMIT 3)",
        ] {
            for sql in [
                format!("SELECT count(DISTINCT v), count(DISTINCT r) FROM {input}"),
                format!("SELECT v FROM {input} WHERE v NOT IN (SELECT nullif(r, 3) FROM {input})"),
            ] {
                let plan = SessionContext::new().sql(&sql).await.and_then(DataFrame::into_optimized_plan);
                let plan = plan.expect("a plan");
                assert_eq!(careful_logical(plan.clone()).expect("a plan"), plan);
            }
        }
    }
}
