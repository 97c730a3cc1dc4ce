//! Small batches put together: a message costs a client some 100 µs, whatever is in it.

use std::pin::Pin;
use std::task::{Context, Poll};

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::compute::concat_batches;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::error::Result;
use datafusion::execution::SendableRecordBatchStream;
use futures::{Stream, StreamExt};

use super::convert::batch_bytes;

/// Batches up to here, as they are on the wire, are copied into a common one.
const SMALL: usize = 64 << 10;
/// The common one is sent from here on.
const ENOUGH: usize = 512 << 10;

/// The rows of a query's batches, small ones together. The first batch is given at once, and so is all there is when the
/// query has to wait or gives way to others: nothing is kept for longer than the query works at a stretch.
pub(crate) struct Gathered {
    batches: SendableRecordBatchStream,
    wire_schema: SchemaRef,
    rows_max: usize,
    /// What a row takes at least.
    row_bytes: usize,
    /// Small batches that wait, and what they have together.
    waiting: Vec<RecordBatch>,
    rows: usize,
    bytes: usize,
    /// To be given next, as they are.
    given: std::vec::IntoIter<RecordBatch>,
    is_first: bool,
    /// The query wanted others to run, and has not been asked since.
    gives_way: bool,
    has_ended: bool,
}

impl Gathered {
    /// `wire_schema` is what they are sent as. No more than `rows_max` rows are put together.
    pub(crate) fn new(batches: SendableRecordBatchStream, wire_schema: SchemaRef, rows_max: usize) -> Self {
        let row_bytes = wire_schema.fields().iter().filter_map(|field| field.data_type().primitive_width()).sum();
        Self {
            batches,
            wire_schema,
            rows_max,
            row_bytes,
            waiting: Vec::new(),
            rows: 0,
            bytes: 0,
            given: Vec::new().into_iter(),
            is_first: true,
            gives_way: false,
            has_ended: false,
        }
    }

    /// Makes one batch of those that wait, and gives `last` after it.
    fn give(&mut self, last: Option<RecordBatch>) {
        (self.rows, self.bytes) = (0, 0);
        let mut waiting = std::mem::take(&mut self.waiting);
        if waiting.len() > 1
            // Where they cannot be one, as with dictionaries whose values are too many together, they stay several.
            && let Ok(together) = concat_batches(waiting[0].schema_ref(), &waiting)
        {
            waiting = vec![together];
        }
        waiting.extend(last);
        self.given = waiting.into_iter();
    }
}

impl Stream for Gathered {
    type Item = Result<RecordBatch>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            if let Some(batch) = this.given.next() {
                this.is_first = false;
                return Poll::Ready(Some(Ok(batch)));
            }
            if this.has_ended {
                return Poll::Ready(None);
            }
            if std::mem::take(&mut this.gives_way) {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let batch = match this.batches.poll_next_unpin(cx) {
                Poll::Ready(Some(batch)) => batch?,
                Poll::Ready(None) => {
                    this.has_ended = true;
                    this.give(None);
                    continue;
                }
                Poll::Pending if this.waiting.is_empty() => return Poll::Pending,
                Poll::Pending => {
                    this.gives_way = true;
                    this.give(None);
                    continue;
                }
            };
            if batch.num_rows() == 0 {
                continue;
            }
            let rows = batch.num_rows();
            // Text is only measured where it may matter.
            let is_large = this.is_first || rows * this.row_bytes > SMALL;
            let bytes = if is_large { 0 } else { batch_bytes(&batch, &this.wire_schema) };
            if is_large || bytes > SMALL {
                this.give(Some(batch));
                continue;
            }
            if this.rows + rows > this.rows_max || this.bytes >= ENOUGH {
                this.give(None);
            }
            this.rows += rows;
            this.bytes += bytes;
            this.waiting.push(batch);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::wire::tests::{batch_of, every_column};
    use crate::wire::{WireOptions, wire_schema};
    use datafusion::arrow::array::Int64Array;
    use datafusion::error::DataFusionError;
    use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
    use futures::executor::block_on;
    use futures::stream;

    /// Gives `batches`, and waits once where there is none.
    fn gathered(batches: Vec<Option<RecordBatch>>, rows_max: usize) -> Vec<RecordBatch> {
        let schema = batches.iter().flatten().next().expect("a batch").schema();
        let mut batches = batches.into_iter();
        let waiting = stream::poll_fn(move |cx| match batches.next() {
            Some(Some(batch)) => Poll::Ready(Some(Ok::<_, DataFusionError>(batch))),
            Some(None) => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            None => Poll::Ready(None),
        });
        let wire = Arc::new(wire_schema(&schema, &WireOptions::default()));
        let batches = Box::pin(RecordBatchStreamAdapter::new(schema, waiting));
        block_on(Gathered::new(batches, wire, rows_max).map(|batch| batch.expect("no error")).collect())
    }

    fn rows(batches: Vec<Option<RecordBatch>>) -> Vec<usize> {
        gathered(batches, 100_000).iter().map(RecordBatch::num_rows).collect()
    }

    fn ints(rows: i64) -> Option<RecordBatch> {
        Some(batch_of(vec![Arc::new(Int64Array::from_iter_values(0..rows))]))
    }

    #[test]
    fn small_batches_go_together_and_large_ones_alone() {
        let small = || ints(10);
        assert_eq!(rows(vec![small(), small(), small()]), [10, 20], "the first goes at once");
        assert_eq!(rows(vec![small(), small(), ints(10_000), small()]), [10, 10, 10_000, 10], "order stays");
        assert_eq!(rows(vec![small(), small(), small(), None, small()]), [10, 20, 10], "nobody waits for more");
        assert_eq!(rows(vec![ints(0), small(), ints(0), small()]), [10, 10], "what is empty is left out");
        assert_eq!(rows(vec![ints(0)]), [] as [usize; 0]);
        let many = (0..20).map(|_| ints(8000)).collect();
        assert_eq!(rows(many), [8000, 72_000, 72_000, 8000], "a common one has an end");
        let capped = gathered((0..6).map(|_| ints(10)).collect(), 25);
        assert_eq!(capped.iter().map(RecordBatch::num_rows).collect::<Vec<_>>(), [10, 20, 20, 10], "by rows too");
    }

    #[test]
    fn rows_of_every_type_stay_what_they_are() {
        let whole = batch_of(every_column(60));
        let slices = (0..20).map(|at| Some(whole.slice(at * 3, 3))).collect();
        let mut row = 0;
        for batch in gathered(slices, 100) {
            for (column, expected) in batch.columns().iter().zip(whole.slice(row, batch.num_rows()).columns()) {
                assert_eq!(column, expected, "{} from row {row}", expected.data_type());
            }
            row += batch.num_rows();
        }
        assert_eq!(row, 60);
    }
}
