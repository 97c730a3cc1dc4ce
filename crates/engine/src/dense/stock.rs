//! What takes over when groups cannot be found by their slots any longer: DataFusion's own aggregates.
//!
//! Keys turned out to be other than their statistics said, or memory is short. What was gathered goes into them as
//! the states of its groups, and the rest of the input as it is. They can spill.

use std::fmt;
use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, RecordBatch};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::common::Result;
use datafusion::execution::memory_pool::MemoryReservation;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode};
use datafusion::physical_plan::repartition::RepartitionExec;
use datafusion::physical_plan::stream::{EmptyRecordBatchStream, RecordBatchStreamAdapter};
use datafusion::physical_plan::streaming::{PartitionStream, StreamingTableExec};
use datafusion::physical_plan::{ExecutionPlan, Partitioning};
use futures::{StreamExt, stream};
use parking_lot::Mutex;

use crate::fit::copy;

/// What one partition has left.
pub(super) struct Left {
    /// States of groups.
    pub(super) states: Chunks,
    /// Rows not aggregated yet, whose strings may be coded.
    pub(super) rows: Option<SendableRecordBatchStream>,
}

/// A batch in pieces that give their memory back one by one: all that was gathered is held when there is none left,
/// and an aggregate that finds nothing for its first groups cannot spill any.
pub(super) struct Chunks {
    chunks: std::vec::IntoIter<RecordBatch>,
    held: MemoryReservation,
}

impl Chunks {
    /// Copies `columns`, of `schema`, into batches of at most `length` rows. `held` is the memory they take.
    ///
    /// # Errors
    /// The columns are not those of the schema.
    pub(super) async fn new(
        columns: Vec<ArrayRef>,
        schema: &SchemaRef,
        length: usize,
        held: MemoryReservation,
    ) -> Result<Self> {
        let rows = columns.first().map_or(0, |column| column.len());
        let starts = || (0..rows).step_by(length);
        let mut chunks: Vec<Vec<ArrayRef>> = starts().map(|_| Vec::with_capacity(columns.len())).collect();
        // Column by column, so that no more than one of them is there twice.
        for column in columns {
            for (chunk, start) in chunks.iter_mut().zip(starts()) {
                chunk.push(copy(&column.slice(start, length.min(rows - start)))?);
            }
            drop(column);
            tokio::task::yield_now().await;
        }
        let chunks = chunks.into_iter().map(|columns| RecordBatch::try_new(Arc::clone(schema), columns));
        let chunks = chunks.collect::<Result<Vec<_>, _>>()?;
        held.resize(chunks.iter().map(RecordBatch::get_array_memory_size).sum());
        Ok(Self { chunks: chunks.into_iter(), held })
    }
}

impl Iterator for Chunks {
    type Item = RecordBatch;

    fn next(&mut self) -> Option<RecordBatch> {
        let chunk = self.chunks.next()?;
        self.held.shrink(chunk.get_array_memory_size().min(self.held.size()));
        Some(chunk)
    }
}

/// The streams of a final aggregate over what is left; as many as there are partitions.
///
/// # Errors
/// What the aggregates say when they are made or started.
pub(super) fn finish(
    partial: &AggregateExec,
    left: Vec<Left>,
    context: &Arc<TaskContext>,
) -> Result<Vec<SendableRecordBatchStream>> {
    let partitions = left.len();
    let (states, rows): (Vec<_>, Vec<_>) = left.into_iter().map(|left| (left.states, left.rows)).unzip();
    let input = partial.input_schema();
    let rows = rows.into_iter().map(|rows| match rows {
        Some(rows) => decoded(rows, &input),
        None => Box::pin(EmptyRecordBatchStream::new(Arc::clone(&input))),
    });
    let rows = leaf(&input, rows)?;
    let (group, functions) = (partial.group_expr().clone(), partial.aggr_expr().to_vec());
    let filters = partial.filter_expr().to_vec();
    let more = AggregateExec::try_new(
        AggregateMode::Partial,
        group.clone(),
        functions.clone(),
        filters,
        rows,
        Arc::clone(&input),
    )?;
    let schema = more.schema();
    let all = states.into_iter().enumerate().map(|(partition, states)| {
        let more = more.execute(partition, Arc::clone(context))?;
        let states = stream::iter(states.map(Ok)).chain(more);
        Ok(Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&schema), states)) as SendableRecordBatchStream)
    });
    let all = leaf(&schema, all.collect::<Result<Vec<_>>>()?)?;
    let group = group.as_final();
    let exchange = RepartitionExec::try_new(all, Partitioning::Hash(group.input_exprs(), partitions))?;
    let filters = vec![None; functions.len()];
    let last =
        AggregateExec::try_new(AggregateMode::FinalPartitioned, group, functions, filters, Arc::new(exchange), input)?;
    (0..partitions).map(|partition| last.execute(partition, Arc::clone(context))).collect()
}

/// `rows` in `schema`, in which strings are not coded.
fn decoded(rows: SendableRecordBatchStream, schema: &SchemaRef) -> SendableRecordBatchStream {
    let to = Arc::clone(schema);
    let rows = rows.map(move |batch| {
        let batch = batch?;
        let columns = batch.columns().iter().zip(to.fields()).map(|(column, field)| cast(column, field.data_type()));
        Ok(RecordBatch::try_new(Arc::clone(&to), columns.collect::<Result<_, _>>()?)?)
    });
    Box::pin(RecordBatchStreamAdapter::new(Arc::clone(schema), rows))
}

/// A plan that gives these streams.
fn leaf(
    schema: &SchemaRef,
    streams: impl IntoIterator<Item = SendableRecordBatchStream>,
) -> Result<Arc<dyn ExecutionPlan>> {
    let streams = streams.into_iter().map(|stream| {
        Arc::new(Once { schema: Arc::clone(schema), stream: Mutex::new(Some(stream)) }) as Arc<dyn PartitionStream>
    });
    Ok(Arc::new(StreamingTableExec::try_new(Arc::clone(schema), streams.collect(), None, [], false, None)?))
}

/// A stream that can be taken once.
struct Once {
    schema: SchemaRef,
    stream: Mutex<Option<SendableRecordBatchStream>>,
}

impl fmt::Debug for Once {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Once")
    }
}

impl PartitionStream for Once {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
        let stream = self.stream.lock().take();
        stream.unwrap_or_else(|| Box::pin(EmptyRecordBatchStream::new(Arc::clone(&self.schema))))
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use datafusion::arrow::array::Int64Array;
    use datafusion::arrow::datatypes::{DataType, Field, Schema};
    use datafusion::execution::memory_pool::{MemoryConsumer, MemoryPool, UnboundedMemoryPool};

    use super::*;

    #[test]
    fn a_cancel_need_not_wait_until_all_columns_are_copied() {
        let pool: Arc<dyn MemoryPool> = Arc::new(UnboundedMemoryPool::default());
        let held = MemoryConsumer::new("chunks").register(&pool);
        let column: ArrayRef = Arc::new(Int64Array::from_iter_values(0..10));
        let fields = ["a", "b", "c"].map(|name| Field::new(name, DataType::Int64, false));
        let schema = Arc::new(Schema::new(fields.to_vec()));
        let mut making = pin!(Chunks::new(vec![column; 3], &schema, 4, held));
        let (mut context, mut turns) = (Context::from_waker(Waker::noop()), 0);
        let chunks = loop {
            match making.as_mut().poll(&mut context) {
                Poll::Ready(chunks) => break chunks.expect("three columns of three"),
                Poll::Pending => turns += 1,
            }
        };
        assert_eq!((turns, chunks.map(|chunk| chunk.num_rows()).collect::<Vec<_>>()), (3, vec![4, 4, 2]));
    }
}
