//! Copies slices of large batches before an operator that keeps and counts what it is given.
//!
//! An aggregate turns all its groups into one batch and hands it on in slices, joins and windows do so with what
//! a batch becomes. A sort of DataFusion 55.2 reserves the whole buffers of every slice: a thousand slices of
//! one batch count as a thousand batches, and a sort that could stay in memory spills slice by slice, or fails.

use std::fmt;
use std::sync::Arc;

use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, MutableArrayData, RecordBatch, RecordBatchOptions, make_array,
};
use datafusion::arrow::datatypes::DataType;
use datafusion::common::Result;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::common::utils::memory::get_record_batch_memory_size;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::joins::{CrossJoinExec, NestedLoopJoinExec};
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    ChildrenPropertiesMode, DisplayAs, DisplayFormatType, ExecutionPlan, ReplaceChildrenOptions,
};
use futures::TryStreamExt;

use crate::passing::passes_rows_on;

/// What a batch may keep alive beyond its own rows without being copied.
const SLACK_BYTES: usize = 64 << 10;

/// Puts [`CompactExec`] below the operators that keep batches.
#[derive(Debug)]
pub(super) struct Compact;

impl PhysicalOptimizerRule for Compact {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        plan.transform_up(|node| {
            // One that gives only the first rows keeps no more than those.
            let sorts_all = node.downcast_ref::<SortExec>().is_some_and(|sort| sort.fetch().is_none());
            if !sorts_all && !node.is::<NestedLoopJoinExec>() && !node.is::<CrossJoinExec>() {
                return Ok(Transformed::no(node));
            }
            let mut children: Vec<_> = node.children().into_iter().cloned().collect();
            children[0] = Arc::new(CompactExec { input: Arc::clone(&children[0]) });
            let options = ReplaceChildrenOptions::new(ChildrenPropertiesMode::Keep);
            Ok(Transformed::yes(node.replace_children(children, options)?))
        })
        .data()
    }

    fn name(&self) -> &str {
        "Compact"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// Gives what `input` gives, in batches that keep little alive beside their own rows.
#[derive(Debug)]
struct CompactExec {
    input: Arc<dyn ExecutionPlan>,
}

impl DisplayAs for CompactExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl ExecutionPlan for CompactExec {
    fn name(&self) -> &str {
        "CompactExec"
    }

    passes_rows_on!();

    fn with_new_children(self: Arc<Self>, mut children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(Arc::new(Self { input: children.swap_remove(0) }))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let input = self.input.execute(partition, context)?;
        let batches = input.and_then(async |batch| compact(batch));
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), batches)))
    }
}

/// `batch`, or a copy of its rows when it keeps twice as much alive.
pub(crate) fn compact(batch: RecordBatch) -> Result<RecordBatch> {
    let held = get_record_batch_memory_size(&batch);
    if held <= SLACK_BYTES || held <= 2 * batch.columns().iter().map(own_bytes).sum::<usize>() {
        return Ok(batch);
    }
    let columns = batch.columns().iter().map(copy).collect::<Result<_>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    Ok(RecordBatch::try_new_with_options(batch.schema(), columns, &options)?)
}

fn own_bytes(array: &ArrayRef) -> usize {
    let buffers = match array.data_type() {
        DataType::Utf8View => array.as_string_view().total_buffer_bytes_used(),
        DataType::BinaryView => array.as_binary_view().total_buffer_bytes_used(),
        // What it cannot say is taken for needed.
        _ => return array.to_data().get_slice_memory_size().unwrap_or(usize::MAX / 1024),
    };
    buffers + array.len() * size_of::<u128>()
}

/// The values of `array` in memory of their own, which is no more than they need.
pub(crate) fn copy(array: &ArrayRef) -> Result<ArrayRef> {
    // This leaves what views point at, but not the views and the NULLs: these are still a part of the whole.
    let data = match array.data_type() {
        DataType::Utf8View => array.as_string_view().gc().to_data(),
        DataType::BinaryView => array.as_binary_view().gc().to_data(),
        _ => array.to_data(),
    };
    let mut copy = MutableArrayData::new(vec![&data], false, data.len());
    copy.try_extend(0, 0, data.len())?;
    Ok(make_array(copy.freeze()))
}

#[cfg(test)]
mod tests {
    use datafusion::arrow::array::{Int64Array, StringArray, StringViewArray};
    use datafusion::execution::memory_pool::GreedyMemoryPool;
    use datafusion::physical_plan::collect;

    use super::super::testing::context;
    use super::*;

    #[test]
    fn a_slice_is_copied_and_a_whole_is_not() {
        let text = |row: i64| (row % 7 != 0).then(|| format!("a text of some length, number {row}"));
        let whole = RecordBatch::try_from_iter([
            ("a", Arc::new((0..10_000).map(|row| (row % 3 != 0).then_some(row)).collect::<Int64Array>()) as ArrayRef),
            ("b", Arc::new((0..10_000).map(text).collect::<StringViewArray>())),
            ("c", Arc::new((0..10_000).map(text).collect::<StringArray>())),
            // They are in their views, which point at nothing.
            ("d", Arc::new((0..10_000).map(|row| (row % 5 != 0).then_some("short")).collect::<StringViewArray>())),
        ]);
        let whole = whole.expect("columns of one length");
        let kept = compact(whole.clone()).expect("it copies nothing");
        assert!(kept.column(0).to_data().ptr_eq(&whole.column(0).to_data()));
        let slice = whole.slice(5_000, 100);
        let copied = compact(slice.clone()).expect("it copies");
        assert_eq!(copied, slice);
        assert!(get_record_batch_memory_size(&copied) < get_record_batch_memory_size(&slice) / 50);
        for (own, shared) in copied.columns().iter().zip(slice.columns()) {
            assert!(own.get_array_memory_size() < shared.get_array_memory_size() / 20, "{}", own.data_type());
        }
    }

    #[tokio::test]
    async fn groups_are_sorted_in_little_more_than_they_take() {
        let context = context(1, 1024, None, Some(Arc::new(GreedyMemoryPool::new(16 << 20))));
        let sql = "SELECT value * 7919 % 100003 AS k, count(*) AS n FROM range(100000) GROUP BY k ORDER BY n, k DESC";
        let plan = context.sql(sql).await.expect("it plans").create_physical_plan().await.expect("it plans");
        let rows = collect(Arc::clone(&plan), context.task_ctx()).await.expect("it fits");
        assert_eq!(rows.iter().map(RecordBatch::num_rows).sum::<usize>(), 100_000);
        assert_eq!(spills(&plan), 0, "it stays in memory");
    }

    fn spills(plan: &Arc<dyn ExecutionPlan>) -> usize {
        let own = plan.metrics().and_then(|metrics| metrics.spill_count()).unwrap_or(0);
        own + plan.children().into_iter().map(spills).sum::<usize>()
    }
}
