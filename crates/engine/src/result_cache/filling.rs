//! A result that is collected while it goes to the client who asked first.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::common::utils::memory::get_record_batch_memory_size;
use datafusion::error::Result;
use datafusion::execution::{RecordBatchStream, SendableRecordBatchStream};
use futures::{Stream, StreamExt};

use super::{ENTRY_BYTES, Kept, Key, ResultCache, SHARE};
use crate::fit::compact;
use crate::plan::Versions;

/// The part of a result that has been made. Dropped before its end, as by a client that went away, it leaves nothing.
#[derive(Debug)]
pub(crate) struct Filling {
    cache: Arc<ResultCache>,
    key: Key,
    versions: Arc<Versions>,
    batches: Vec<RecordBatch>,
    /// Bytes taken of the cache's budget.
    reserved: usize,
}

impl Filling {
    pub(super) fn new(cache: Arc<ResultCache>, key: Key, versions: Arc<Versions>) -> Self {
        Self { cache, key, versions, batches: Vec::new(), reserved: 0 }
    }

    /// `batches`, kept when they have come to their end.
    pub(crate) fn watch(self, batches: SendableRecordBatchStream) -> SendableRecordBatchStream {
        Box::pin(Watched { batches, filling: self.reserve(ENTRY_BYTES) })
    }

    /// Takes one more; `None` when the result is too large to be kept.
    fn add(mut self, batch: &RecordBatch) -> Option<Self> {
        // A slice would keep alive all of what it is a slice of, such as a column that many results have rows of.
        let batch = compact(batch.clone()).ok()?;
        let bytes = get_record_batch_memory_size(&batch);
        self.batches.push(batch);
        self.reserve(bytes)
    }

    fn reserve(mut self, bytes: usize) -> Option<Self> {
        let fits =
            self.reserved.saturating_add(bytes) <= self.cache.budget / SHARE && self.cache.results.reserve(bytes);
        fits.then(|| {
            self.reserved += bytes;
            self
        })
    }

    /// Keeps what was collected: it is all there is.
    fn keep(mut self) {
        let (cache, key, bytes) = (Arc::clone(&self.cache), self.key.clone(), self.reserved);
        let (versions, batches) = (Arc::clone(&self.versions), std::mem::take(&mut self.batches));
        let kept = Arc::new(Kept { versions, batches, bytes });
        // Gives back what was reserved, of which the entry takes the place.
        drop(self);
        cache.results.insert(key, kept, bytes);
    }
}

impl Drop for Filling {
    fn drop(&mut self) {
        self.cache.results.release(self.reserved);
    }
}

/// Batches on their way to a client, and what collects them.
struct Watched {
    batches: SendableRecordBatchStream,
    filling: Option<Filling>,
}

impl Stream for Watched {
    type Item = Result<RecordBatch>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = self.batches.poll_next_unpin(cx);
        match &next {
            Poll::Ready(Some(Ok(batch))) => self.filling = self.filling.take().and_then(|filling| filling.add(batch)),
            Poll::Ready(Some(Err(_))) => self.filling = None,
            Poll::Ready(None) => self.filling.take().into_iter().for_each(Filling::keep),
            Poll::Pending => {}
        }
        next
    }
}

impl RecordBatchStream for Watched {
    fn schema(&self) -> SchemaRef {
        self.batches.schema()
    }
}
