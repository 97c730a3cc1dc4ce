//! Gives every operator that can make many batches of one a place to stop.
//!
//! DataFusion makes leaves and exchanges yield to the runtime now and then. A join reads one batch of its
//! leaf and may make millions of it, and an aggregate above takes them all within one poll: such a query
//! holds its thread, cannot be cancelled, and two of them hold the whole CPU runtime
//! (apache/datafusion#19358). Wrapped in `CooperativeExec` they yield every so many batches.

use std::sync::Arc;

use datafusion::common::Result;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::coop::CooperativeExec;

/// Operators whose output is not bounded by a few times their input.
const MULTIPLYING: [&str; 8] = [
    "CrossJoinExec",
    "HashJoinExec",
    "NestedLoopJoinExec",
    "PiecewiseMergeJoinExec",
    "RecursiveQueryExec",
    "SortMergeJoinExec",
    "SymmetricHashJoinExec",
    "UnnestExec",
];

/// Wraps each multiplying operator of a plan. Must run after all rules that look for joins.
#[derive(Debug)]
pub(crate) struct Cooperate;

impl PhysicalOptimizerRule for Cooperate {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        plan.transform_up(|node| {
            Ok(if MULTIPLYING.contains(&node.name()) {
                Transformed::yes(Arc::new(CooperativeExec::new(node)) as Arc<dyn ExecutionPlan>)
            } else {
                Transformed::no(node)
            })
        })
        .data()
    }

    fn name(&self) -> &str {
        "Cooperate"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use datafusion::execution::session_state::SessionStateBuilder;
    use datafusion::prelude::{SessionConfig, SessionContext};

    use super::*;

    #[tokio::test]
    async fn a_join_below_an_aggregate_can_be_cancelled() {
        let state = SessionStateBuilder::new()
            .with_config(SessionConfig::new().with_target_partitions(1))
            .with_default_features()
            .with_physical_optimizer_rule(Arc::new(Cooperate))
            .build();
        let context = SessionContext::new_with_state(state);
        for join in ["CROSS JOIN range(1000000) b", "JOIN range(1000000) b ON a.value % 2 = b.value % 2"] {
            let sql = format!("SELECT sum((a.value * b.value) % 7) FROM range(1000000) a {join}");
            let query = context.sql(&sql).await.expect("it plans").collect();
            // On one thread the timer can only fire when the query yields.
            assert!(tokio::time::timeout(Duration::from_millis(500), query).await.is_err(), "{sql}");
        }
    }
}
