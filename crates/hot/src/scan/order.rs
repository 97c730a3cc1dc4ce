//! Sorts of rows that are in order already.
//!
//! Once a column is in memory it is known whether its values ascend, in each row group and from one to the next. A scan
//! that gives its row groups one after the other then needs no sort, and of a sort's first rows it reads those alone.

use std::sync::Arc;

use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::datasource::source::{DataSource, DataSourceExec};
use datafusion::error::Result;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::sorts::sort_preserving_merge::SortPreservingMergeExec;

use super::source::HotSource;

/// Takes the sort away where the rows of a hot table are in its order. To run before DataFusion's `PushdownSort`, which puts
/// a buffer in the place of each sort that a source makes needless.
///
/// Only where nothing is computed between the sort, the scan and the merge of partitions: all of these compute, and the scan
/// in order has one.
#[derive(Debug)]
pub struct InOrder;

impl PhysicalOptimizerRule for InOrder {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        plan.transform_down(|node| {
            let scan = in_order(node.as_ref());
            Ok(scan.map_or_else(|| Transformed::no(node), Transformed::yes))
        })
        .data()
    }

    fn name(&self) -> &str {
        "InOrder"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// What gives the rows of `node`, a sort of a scan or the merge of one, without sorting.
fn in_order(node: &dyn ExecutionPlan) -> Option<Arc<dyn ExecutionPlan>> {
    if let Some(merge) = node.downcast_ref::<SortPreservingMergeExec>() {
        return merged(merge.input().as_ref(), merge.fetch());
    }
    let sort = node.downcast_ref::<SortExec>()?;
    // Who gets several sorted partitions may count on their number.
    (sort.properties().partitioning.partition_count() == 1).then(|| sorted(sort, None))?
}

/// The same of what is merged, of whose rows `fetch` are wanted.
fn merged(input: &dyn ExecutionPlan, fetch: Option<usize>) -> Option<Arc<dyn ExecutionPlan>> {
    if let Some(sort) = input.downcast_ref::<SortExec>() {
        return sorted(sort, fetch);
    }
    let projection = input.downcast_ref::<ProjectionExec>()?;
    let columns = projection.expr();
    if !columns.iter().all(|column| column.expr.is::<Column>()) {
        return None;
    }
    let input = merged(projection.input().as_ref(), fetch)?;
    Some(Arc::new(ProjectionExec::try_new(columns.iter().cloned(), input).ok()?))
}

fn sorted(sort: &SortExec, fetch: Option<usize>) -> Option<Arc<dyn ExecutionPlan>> {
    let scan = HotSource::of(sort.input().as_ref())?;
    let fetches = [fetch, sort.fetch(), scan.fetch()];
    let scan = scan.in_order_of(sort.expr())?.with_rows(fetches.into_iter().flatten().min());
    Some(DataSourceExec::from_data_source(scan))
}
