//! One partition of a scan.

use std::ops::Range;
use std::sync::Arc;

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::buffer::BooleanBuffer;
use datafusion::arrow::compute::BatchCoalescer;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::parquet::ParquetAccessPlan;
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfigBuilder, ParquetSource};
use datafusion::datasource::source::DataSource;
use datafusion::error::Result;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::Column as ColumnExpr;
use datafusion::physical_expr::projection::ProjectionExprs;
use datafusion::physical_expr::utils::{collect_columns, conjunction};
use datafusion::physical_plan::coop::cooperative;
use datafusion::physical_plan::metrics::{BaselineMetrics, Count, ExecutionPlanMetricsSet, MetricBuilder};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::StreamExt;

use super::dynamic::Dynamic;
use super::filter::Conjuncts;
use super::queue::{Queue, Turn};
use super::rows::{Output, Rows, Values};
use super::source::HotSource;
use crate::column::Column;
use crate::key::ColumnKey;

/// What all partitions of a scan do alike.
pub(super) struct Scan {
    source: HotSource,
    /// The columns of the table that are looked at, ascending.
    pub(super) needed: Arc<[usize]>,
    conjuncts: Conjuncts,
    output: Output,
}

impl Scan {
    /// The scan of `source`, whose batches have `schema`.
    pub(super) fn new(source: &HotSource, schema: &SchemaRef) -> Result<Self> {
        let needed: Arc<[usize]> = source.columns().into();
        let conjuncts = Conjuncts::new(&source.filters, source.segments.schema(), &needed)?;
        let place = |output: usize| source.column_of(output).and_then(|column| needed.binary_search(&column).ok());
        let columns = source.coded().iter().enumerate();
        let columns = columns.filter_map(|(output, coded)| Some((place(output)?, *coded))).collect();
        let output = Output { schema: schema.clone(), columns };
        Ok(Self { source: source.clone(), needed, conjuncts, output })
    }

    /// The keys of the needed columns that the file of a segment stores, each with its place among those needed.
    fn keys(&self, segment: u32) -> (Vec<usize>, Vec<ColumnKey>) {
        let segments = &self.source.segments;
        let (file, row_group) = (segments.file_of(segment), segments.get(segment).row_group);
        let key = |(place, column): (usize, &usize)| {
            let data_type = segments.schema().field(*column).data_type();
            Some((place, file.column(row_group, *column, data_type)?))
        };
        self.needed.iter().enumerate().filter_map(key).unzip()
    }

    /// The rows of a segment of which those columns that its file stores are `columns`, in the order of their `places`.
    /// `None` = no row can pass.
    fn rows(&self, segment: u32, places: &[usize], columns: &[Arc<Column>]) -> Option<Rows> {
        let segments = &self.source.segments;
        let stored = |place: usize| places.binary_search(&place).ok().and_then(|at| columns.get(at));
        let values = self.needed.iter().enumerate().map(|(place, column)| match stored(place) {
            Some(stored) => Values::new(&stored.data, segments.schema().field(*column).data_type()),
            None => Values::Constant(segments.constant(segment, *column).expect("a column is stored or has one value")),
        });
        let values = values.collect();
        let len = segments.get(segment).rows;
        let mut rows = Rows { number: segment, columns: values, passed: Vec::new(), range: 0..len };
        self.conjuncts.narrow(&mut rows, |place| stored(place).is_some_and(|column| column.zone.sorted));
        (!rows.range.is_empty()).then_some(rows)
    }

    /// The rows of a segment if all that is needed is in memory.
    fn look(&self, segment: u32) -> Result<Option<Rows>, u32> {
        let (places, keys) = self.keys(segment);
        let columns = match keys.is_empty() {
            true => Vec::new(),
            false => self.source.cache.get(&self.source.table, &keys).ok_or(segment)?,
        };
        Ok(self.rows(segment, &places, &columns))
    }

    /// The rows of a segment, got into memory; `Err` = it is to be read from its file.
    async fn load(&self, segment: u32) -> Result<Result<Option<Rows>, u32>> {
        // Few rows are read from the file faster than a whole row group is decoded.
        let few = |fetch| fetch < self.source.segments.get(segment).rows && self.conjuncts.is_empty();
        if self.source.fetch.is_some_and(few) {
            return Ok(Err(segment));
        }
        let (places, keys) = self.keys(segment);
        let loader = &self.source.segments.file_of(segment).loader;
        let columns = self.source.cache.get_or_load(&self.source.table, loader, &keys).await?;
        Ok(columns.map(|columns| self.rows(segment, &places, &columns)).ok_or(segment))
    }

    /// The rows of a segment of which it is not known that they do not pass, `Some(None)` = no such row, if all that is
    /// needed is in memory. Nothing is counted.
    pub(super) fn peek(&self, segment: u32) -> Option<Option<Rows>> {
        let (places, keys) = self.keys(segment);
        let columns = keys.iter().map(|key| self.source.cache.peek(key)).collect::<Option<Vec<_>>>()?;
        Some(self.rows(segment, &places, &columns))
    }

    /// How many of the rows `range` pass the filters that are known beforehand.
    pub(super) fn count(&self, rows: &Rows, range: Range<usize>) -> Result<usize> {
        let (_, mask) = self.conjuncts.clone().passing(rows, &range, usize::MAX, &mut |_, mask| Ok(mask))?;
        Ok(mask.map_or(range.len(), |mask| mask.count_set_bits()))
    }

    /// The needed columns of a segment, as its file has them, by the scan there would be without the cache.
    fn read(&self, segment: u32, context: &Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let HotSource { base, segments, .. } = &self.source;
        let mut source = base.file_source().clone();
        let filters = self.source.filters.iter().chain(&self.source.dynamic).filter(|filter| self.is_trusted(filter));
        let filters: Vec<_> = filters.cloned().collect();
        if let Some(parquet) = source.downcast_ref::<ParquetSource>().filter(|_| !filters.is_empty()) {
            source = Arc::new(parquet.with_predicate(conjunction(filters)));
        }
        let columns = ProjectionExprs::from_indices(&self.needed, segments.schema());
        let source = source.try_pushdown_projection(&columns)?.unwrap_or(source);
        let row_groups = segments.file_of(segment).rows.len();
        let mut plan = ParquetAccessPlan::new_none(row_groups);
        plan.scan(segments.get(segment).row_group as usize);
        let mut file: PartitionedFile = segments.scan_of(segment).clone().with_extension(plan);
        // They are of the whole file, and of floats not to be trusted.
        file.statistics = None;
        let config = FileScanConfigBuilder::new(base.object_store_url.clone(), source)
            .with_file_groups(vec![FileGroup::new(vec![file])])
            .with_expr_adapter(base.expr_adapter_factory.clone())
            .build();
        config.open(0, context.clone())
    }

    /// Whether a file's own statistics may be asked about a filter: those of floats leave out NaN, which is larger than all
    /// other numbers here.
    fn is_trusted(&self, filter: &Arc<dyn PhysicalExpr>) -> bool {
        let schema = self.source.segments.schema();
        let is_float = |column: &ColumnExpr| schema.field(column.index()).data_type().is_floating();
        !collect_columns(filter).iter().any(is_float)
    }
}

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
    /// Rows that were taken and not looked at.
    taken: Option<(Arc<Rows>, Range<usize>)>,
    /// What is being read from a file.
    file: Option<SendableRecordBatchStream>,
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
            // More than that is given as it is: it is not worth copying.
            BatchCoalescer::new(schema.clone(), batch_size).with_biggest_coalesce_batch_size(Some(batch_size / 2))
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
            file: None,
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
                _ => file.next().await.transpose()?,
            };
            match batch {
                Some(batch) => {
                    let columns = batch.columns().iter().cloned().map(Values::Plain).collect();
                    let range = 0..batch.num_rows();
                    let rows = Rows { number: u32::MAX, columns, passed: Vec::new(), range: range.clone() };
                    self.taken = Some((Arc::new(rows), range));
                }
                None => self.file = None,
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
            Turn::Absent(segment) => {
                if !self.may_pass(segment) {
                    self.counts.pruned.add(1);
                    return Ok(None);
                }
                match self.scan.load(segment).await? {
                    Ok(Some(rows)) => self.queue.share(rows),
                    Ok(None) => {}
                    Err(segment) => {
                        self.counts.cold.add(1);
                        self.file = Some(self.scan.read(segment, &self.context)?);
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
        let may_pass = !segments.prune(&[segment], pruning, &self.scan.source.cache).is_empty();
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
            dynamic => self.conjuncts.passing(&rows, &range, self.batch_size, &mut |block, mask| match dynamic {
                Some(dynamic) => dynamic.narrow(&rows, block, mask),
                None => Ok(mask),
            })?,
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
        let batch = self.scan.output.batch(&rows, &looked, mask.as_ref())?;
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
