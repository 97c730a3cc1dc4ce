//! One partition of a scan.

use std::ops::Range;
use std::sync::Arc;

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::buffer::BooleanBuffer;
use datafusion::arrow::compute::BatchCoalescer;
use datafusion::error::Result;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::coop::cooperative;
use datafusion::physical_plan::metrics::{BaselineMetrics, Count, ExecutionPlanMetricsSet, MetricBuilder};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::StreamExt;

use super::access::Scan;
use super::codebook::Codebook;
use super::cold::Reading;
use super::dynamic::Dynamic;
use super::filter::Conjuncts;
use super::queue::{Queue, Turn};
use super::rows::{Rows, Values};
use crate::file::Asked;

/// Batches of more rows are given as they are: whoever gets them gains less by larger ones than copying costs.
const COPIED_ROWS_MAX: usize = 4096;

/// The batches of one partition.
///
/// # Errors
/// Of the stream: what reading a file and evaluating filters say.
pub(super) fn stream(
    scan: Scan,
    queue: Arc<Queue>,
    context: Arc<TaskContext>,
    partition: usize,
    metrics: &ExecutionPlanMetricsSet,
) -> SendableRecordBatchStream {
    let schema = scan.output.schema.clone();
    let reader = Reader::new(scan, queue, context, Counts::new(metrics, partition));
    let batches = futures::stream::try_unfold(reader, |mut reader| async move {
        Ok(reader.next().await?.map(|batch| (batch, reader)))
    });
    Box::pin(cooperative(RecordBatchStreamAdapter::new(schema, batches.boxed())))
}

/// What a partition counts.
struct Counts {
    baseline: BaselineMetrics,
    /// Segments scanned in memory, read from files, and left out by filters that came while the query ran.
    hot: Count,
    cold: Count,
    pruned: Count,
    /// Rows that filters looked at, or that were given as they are.
    rows: Count,
}

impl Counts {
    fn new(metrics: &ExecutionPlanMetricsSet, partition: usize) -> Self {
        let count = |name: &'static str| MetricBuilder::new(metrics).counter(name, partition);
        Self {
            baseline: BaselineMetrics::new(metrics, partition),
            hot: count("morsels_hot"),
            cold: count("segments_cold"),
            pruned: count("morsels_pruned"),
            rows: count("rows_scanned"),
        }
    }
}

struct Reader {
    scan: Scan,
    conjuncts: Conjuncts,
    dynamic: Option<Dynamic>,
    queue: Arc<Queue>,
    context: Arc<TaskContext>,
    counts: Counts,
    /// Puts small batches together; `None` where that would cost more than it saves.
    small: Option<BatchCoalescer>,
    /// One for each column of the output.
    books: Vec<Codebook>,
    /// Rows that were taken and not looked at.
    taken: Option<(Arc<Rows>, Range<usize>)>,
    /// What is being read from a file.
    file: Option<Reading>,
    /// What keeps its bytes near.
    asked: Option<Asked>,
    batch_size: usize,
    /// The last segment of which it was found out whether rows of it may pass the dynamic filters, and the answer.
    last: Option<(u32, bool)>,
    done: bool,
}

impl Reader {
    fn new(scan: Scan, queue: Arc<Queue>, context: Arc<TaskContext>, counts: Counts) -> Self {
        let batch_size = context.session_config().batch_size();
        let schema = &scan.output.schema;
        let is_coded = scan.output.columns.iter().any(|(_, coded)| *coded);
        let small = (!is_coded && !schema.fields().is_empty()).then(|| {
            let most = COPIED_ROWS_MAX.min(batch_size / 2);
            BatchCoalescer::new(schema.clone(), batch_size).with_biggest_coalesce_batch_size(Some(most))
        });
        let (conjuncts, source) = (scan.conjuncts.clone(), &scan.source);
        let dynamic = Dynamic::new(&source.dynamic, source.segments.schema(), &scan.needed);
        Self {
            conjuncts,
            dynamic,
            queue,
            context,
            counts,
            small,
            books: scan.output.columns.iter().map(|_| Codebook::default()).collect(),
            file: None,
            asked: None,
            taken: None,
            batch_size,
            last: None,
            done: false,
            scan,
        }
    }

    async fn next(&mut self) -> Result<Option<RecordBatch>> {
        loop {
            if let Some(batch) = self.small.as_mut().and_then(BatchCoalescer::next_completed_batch) {
                self.counts.baseline.record_output(batch.num_rows());
                return Ok(Some(batch));
            }
            if self.done {
                return Ok(None);
            }
            if let Some(batch) = self.step().await? {
                self.counts.baseline.record_output(batch.num_rows());
                return Ok(Some(batch));
            }
        }
    }

    /// Does the next piece of work. What is to be given at once is returned.
    async fn step(&mut self) -> Result<Option<RecordBatch>> {
        if self.taken.is_some() {
            let given = self.give()?;
            if given.is_none() {
                // Filters may leave out all of a large table: others are to have their turn meanwhile.
                tokio::task::yield_now().await;
            }
            return Ok(given);
        }
        if let Some(file) = &mut self.file {
            let batch = match self.queue.wanted() {
                Some(0) => None,
                _ => file.next(&self.scan).await?,
            };
            match batch {
                Some(batch) => {
                    let columns = batch.columns().iter().cloned().map(Values::Plain).collect();
                    let range = 0..batch.num_rows();
                    let rows = Rows::new(u32::MAX, range.end, columns);
                    self.taken = Some((Arc::new(rows), range));
                }
                None => {
                    self.asked = None;
                    if let Some(file) = self.file.take() {
                        file.end(&self.scan)?;
                    }
                }
            }
            return Ok(None);
        }
        let turn = {
            let _timer = self.counts.baseline.elapsed_compute().timer();
            self.queue.take(|segment| self.scan.look(segment))
        };
        match turn {
            Turn::Rows(rows, range) => {
                if self.may_pass(rows.number) {
                    self.counts.hot.add(1);
                    self.taken = Some((rows, range));
                } else {
                    self.counts.pruned.add(1);
                }
            }
            Turn::Absent(segment, asked) => {
                if !self.may_pass(segment) {
                    self.counts.pruned.add(1);
                    return Ok(None);
                }
                // Kept until the rows are there.
                let asked = match asked {
                    None => self.scan.ahead(segment),
                    asked => asked,
                };
                self.queue.look_ahead(|next| self.scan.ahead(next));
                match self.scan.load(segment).await? {
                    Ok(Some(rows)) => self.queue.share(rows),
                    Ok(None) => {}
                    Err(segment) => {
                        self.counts.cold.add(1);
                        self.file = Some(Reading::begin(&self.scan, segment, &self.context)?);
                        self.asked = asked;
                    }
                }
            }
            Turn::Done => {
                self.done = true;
                if let Some(small) = &mut self.small {
                    small.finish_buffered_batch()?;
                }
            }
        }
        Ok(None)
    }

    /// Reads the dynamic filters again if they have changed.
    fn refresh(&mut self) {
        if self.dynamic.as_mut().is_some_and(Dynamic::refresh) {
            self.last = None;
        }
    }

    /// Whether rows of a segment may pass the dynamic filters, as they are now.
    fn may_pass(&mut self, segment: u32) -> bool {
        self.refresh();
        let Some(dynamic) = &self.dynamic else { return true };
        let Some(pruning) = dynamic.pruning() else { return true };
        if let Some((last, may_pass)) = self.last
            && last == segment
        {
            return may_pass;
        }
        let segments = &self.scan.source.segments;
        let may_pass = !segments.prune(&[segment], pruning, Some(&self.scan.source.cache)).is_empty();
        self.last = Some((segment, may_pass));
        may_pass
    }

    /// Rows of those taken that pass: about a batch, unless they are so few that they wait for more.
    fn give(&mut self) -> Result<Option<RecordBatch>> {
        let Some((rows, range)) = self.taken.take() else { return Ok(None) };
        self.refresh();
        let elapsed = self.counts.baseline.elapsed_compute().clone();
        let _timer = elapsed.timer();
        let (end, mask) = match &mut self.dynamic {
            None if self.conjuncts.is_empty() => (range.end, None),
            dynamic => self.conjuncts.passing(&rows, &range, self.batch_size, dynamic.as_mut())?,
        };
        self.counts.rows.add(end - range.start);
        if end < range.end {
            self.taken = Some((rows.clone(), end..range.end));
        }
        let looked = range.start..end;
        let count = mask.as_ref().map_or(looked.len(), BooleanBuffer::count_set_bits);
        let (looked, mask) = match self.queue.claim(count) {
            0 => return Ok(None),
            granted if granted < count => first(granted, looked, mask),
            _ => (looked, mask),
        };
        let batch = self.scan.output.batch(&rows, &looked, mask.as_ref(), &mut self.books)?;
        match &mut self.small {
            Some(small) => {
                small.push_batch(batch)?;
                Ok(None)
            }
            None => Ok(Some(batch)),
        }
    }
}

/// The beginning of `range` in which `mask` keeps `count` rows.
fn first(count: usize, range: Range<usize>, mask: Option<BooleanBuffer>) -> (Range<usize>, Option<BooleanBuffer>) {
    let Some(mask) = mask else { return (range.start..range.start + count, None) };
    let len = count.checked_sub(1).and_then(|last| mask.set_indices().nth(last)).map_or(0, |last| last + 1);
    (range.start..range.start + len, Some(mask.slice(0, len)))
}
