//! First rows of an order that are too many to keep become a sort that spills, and a limit.
//!
//! `SortExec` with a limit keeps as many rows in memory and cannot spill them: the first 100,000 wide rows fail where a
//! sort of all rows would not.

use std::sync::Arc;

use datafusion::common::Result;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::limit::{GlobalLimitExec, LocalLimitExec};
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties};

use super::{Fit, size};

/// What is kept of rows beside themselves: their keys, and the batches they were cut from.
const KEPT: usize = 3;
/// The part of the room that first rows may take, and in a careful plan.
const PART: usize = 4;
const PART_CAREFUL: usize = 16;

/// Replaces sorts with a large limit. Without [`Fit`] plans stay as they are.
#[derive(Debug)]
pub(super) struct FitTopK;

impl PhysicalOptimizerRule for FitTopK {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, options: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        let Some(fit) = options.extensions.get::<Fit>() else { return Ok(plan) };
        let most = fit.room / if fit.careful { PART_CAREFUL } else { PART };
        plan.transform_up(|node| {
            let Some(sort) = node.downcast_ref::<SortExec>() else { return Ok(Transformed::no(node)) };
            let Some(fetch) = sort.fetch() else { return Ok(Transformed::no(node)) };
            let partitions = node.output_partitioning().partition_count();
            let kept = size::row_bytes(sort).saturating_mul(fetch).saturating_mul(KEPT).saturating_mul(partitions);
            // One row may hold the strings of a whole group.
            if kept <= most && !(fit.careful && size::is_guessed(sort)) {
                return Ok(Transformed::no(node));
            }
            let all = SortExec::new(sort.expr().clone(), Arc::clone(sort.input()));
            let all = Arc::new(all.with_preserve_partitioning(sort.preserve_partitioning()));
            Ok(Transformed::yes(match sort.preserve_partitioning() {
                true => Arc::new(LocalLimitExec::new(all, fetch)) as Arc<dyn ExecutionPlan>,
                false => Arc::new(GlobalLimitExec::new(all, 0, Some(fetch))),
            }))
        })
        .data()
    }

    fn name(&self) -> &str {
        "FitTopK"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use datafusion::arrow::util::pretty::pretty_format_batches;
    use datafusion::physical_plan::{collect, displayable};
    use datafusion::prelude::SessionContext;

    use super::super::testing::context;
    use super::*;

    #[tokio::test]
    async fn many_first_rows_are_sorted_and_few_are_kept() {
        for partitions in [1, 3] {
            for (limit, room, careful, value, kept) in [
                (10, 1 << 20, false, "value", true),
                (5000, 1 << 19, false, "value", false),
                (5000, 1 << 30, false, "value", true),
                (10, 1 << 20, true, "value", true),
                (10, 1 << 20, true, "concat(value, ' as text') AS value", false),
            ] {
                let context = context(partitions, 8192, Some(Fit { room, share: room, careful }), None);
                let sql = format!(
                    "SELECT value * 7919 % 10007 AS k, {value} FROM range(10000) ORDER BY k, value DESC LIMIT {limit} OFFSET 3"
                );
                let plan = context.sql(&sql).await.expect("it plans").create_physical_plan().await.expect("it plans");
                let text = displayable(plan.as_ref()).indent(false).to_string();
                assert_eq!(text.contains("TopK"), kept, "{text}");
                let rows = collect(plan, context.task_ctx()).await.expect("it runs");
                let stock = SessionContext::new().sql(&sql).await.expect("it plans").collect().await.expect("it runs");
                let shown = |batches| pretty_format_batches(batches).expect("rows").to_string();
                assert_eq!(shown(&rows), shown(&stock), "{sql}");
            }
        }
    }
}
