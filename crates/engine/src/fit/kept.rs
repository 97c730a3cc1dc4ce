//! A node that no projection is pushed through, while a plan is being made.
//!
//! DataFusion 55.2 pushes projections through a sort-merge join without a look at its filter: a column that only
//! the filter needs is dropped, or another takes its place, and the join gives wrong rows.

use std::fmt;
use std::sync::Arc;

use datafusion::common::Result;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan};

use crate::passing::passes_rows_on;

/// Passes on what `input` gives, as it is.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) input: Arc<dyn ExecutionPlan>,
}

impl DisplayAs for Kept {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Kept")
    }
}

impl ExecutionPlan for Kept {
    fn name(&self) -> &str {
        "Kept"
    }

    passes_rows_on!();

    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        vec![false]
    }

    fn with_new_children(self: Arc<Self>, mut children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(Arc::new(Self { input: children.swap_remove(0) }))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        self.input.execute(partition, context)
    }
}

/// Takes these nodes out again, when all projections are where they will be.
#[derive(Debug)]
pub(super) struct Release;

impl PhysicalOptimizerRule for Release {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        plan.transform_up(|node| {
            Ok(match node.downcast_ref::<Kept>() {
                Some(kept) => Transformed::yes(Arc::clone(&kept.input)),
                None => Transformed::no(node),
            })
        })
        .data()
    }

    fn name(&self) -> &str {
        "Release"
    }

    fn schema_check(&self) -> bool {
        true
    }
}
