//! How segments that are not in memory are read from their files, and when they are loaded instead.

use std::sync::Arc;

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::common::Statistics;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::parquet::ParquetAccessPlan;
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfigBuilder, FileSource, ParquetSource};
use datafusion::datasource::source::DataSource;
use datafusion::error::Result;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::projection::ProjectionExprs;
use datafusion::physical_expr::utils::{collect_columns, conjunction};
use futures::StreamExt;

use super::access::Scan;
use super::estimate;
use super::filter::never_fails;
use super::source::HotSource;
use super::unpruned::Unpruned;
use crate::cache::When;

/// Values that are loaded the first time: that takes a few milliseconds.
const SMALL: usize = 1 << 20;
/// Values that take as long as opening a file, which is done however few are read.
const OPENING: usize = 64 << 10;
/// Rows that are a lookup's answer: it does not wait until whole columns are loaded.
const LOOKUP: f64 = 1024.0;
/// Rows of a page, as most writers make them. A page is decoded for one row of it.
const PAGE: usize = 20_000;
/// When so many rows of each page pass, on average, hardly any page has none.
const PASSING: f64 = 4.0;
/// When one row in so many passes, or fewer, the columns that no filter names are read for those rows alone. Of more, nearly
/// every page has one and is decompressed for it, and to skip from one to the next takes longer than to decode them all.
const FEW: f64 = 1000.0;

/// With a file of a plan: the index of its pages will be looked at, so it is worth keeping with the footer.
#[derive(Debug, Clone, Copy)]
pub struct ByPages;

/// How the files of a scan are read.
pub(super) struct Cold {
    /// Filters, but not the place.
    source: Arc<dyn FileSource>,
    columns: ProjectionExprs,
    is_filtered: bool,
    limit: Option<usize>,
    /// The reader looks at the columns of filters first, and at the others where rows pass.
    pub(super) is_late: bool,
    /// Though late, nearly every page has a row that passes.
    is_all_over: bool,
    /// For each needed column whether a filter names it.
    in_filter: Vec<bool>,
    pub(super) when: When,
}

impl Cold {
    pub(super) fn new(source: &HotSource, needed: &[usize]) -> Result<Self> {
        let schema = source.segments.schema();
        let filtered = estimate::filter_columns(&source.filters, needed);
        let in_filter: Vec<bool> = needed.iter().map(|column| filtered.contains(column)).collect();
        let late = source.late();
        let is_late = late.is_some();
        let is_float = |column: &Column| schema.field(column.index()).data_type().is_floating();
        let is_trusted = |filter: &Arc<dyn PhysicalExpr>| !collect_columns(filter).iter().any(is_float);
        // The reader looks at rows in an order of its own: what may fail on some of them comes later.
        let safe = source.filters.iter().filter(|filter| never_fails(filter));
        let filters: Vec<Arc<dyn PhysicalExpr>> = match is_late {
            true => {
                let hidden = |filter: &Arc<dyn PhysicalExpr>| Arc::new(Unpruned(filter.clone())) as _;
                safe.map(|filter| if is_trusted(filter) { filter.clone() } else { hidden(filter) }).collect()
            }
            false => {
                source.filters.iter().chain(&source.dynamic).filter(|filter| is_trusted(filter)).cloned().collect()
            }
        };
        let rows: usize = source.may_pass().iter().map(|segment| source.segments.get(*segment).rows).sum();
        let few = |share: f64| share * rows as f64 <= LOOKUP;
        let when = if late.is_some_and(few) {
            When::Behind
        } else if source.is_asked_again || rows.saturating_mul(needed.len()) <= SMALL {
            When::AtOnce
        } else {
            When::Paid
        };
        // As if they were anywhere. Where they are not, most row groups are left out before they are read.
        let is_all_over = late.is_some_and(|share| share * PAGE as f64 >= PASSING);
        let mut file = source.base.file_source().clone();
        let is_filtered = !filters.is_empty();
        if let Some(parquet) = file.downcast_ref::<ParquetSource>().filter(|_| is_filtered) {
            let filtered = parquet.with_predicate(conjunction(filters)).with_pushdown_filters(is_late);
            // The index of some columns only is not kept, and would be read anew for each segment.
            let indexed = source.may_pass().iter().any(|segment| source.segments.is_indexed(*segment));
            file = Arc::new(if indexed { filtered } else { filtered.with_enable_page_index(false) });
        }
        let columns = ProjectionExprs::from_indices(needed, schema);
        // With a filter it is not known how many rows it takes to find those that are wanted.
        let limit = source.fetch.filter(|_| source.filters.is_empty() && source.dynamic.is_empty());
        Ok(Self { source: file, columns, is_filtered, limit, is_late, is_all_over, in_filter, when })
    }

    /// The needed columns of a segment, as its file has them, by the scan there would be without the cache: all rows that
    /// pass the filters, and maybe others.
    pub(super) fn read(
        &self,
        source: &HotSource,
        segment: u32,
        context: &Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        let HotSource { base, segments, .. } = source;
        let row_groups = segments.file_of(segment).rows.len();
        let mut plan = ParquetAccessPlan::new_none(row_groups);
        plan.scan(segments.get(segment).row_group as usize);
        let mut file: PartitionedFile = segments.scan_of(segment).clone().with_extension(plan);
        // They are of the whole file, and of floats not to be trusted.
        file.statistics = None;
        if self.is_filtered && segments.is_indexed(segment) {
            file = file.with_extension(ByPages);
        }
        let reader = apart(&self.source);
        let reader = reader.try_pushdown_projection(&self.columns)?.unwrap_or(reader);
        let config = FileScanConfigBuilder::new(base.object_store_url.clone(), reader)
            .with_limit(self.limit)
            .with_file_groups(vec![FileGroup::new(vec![file])])
            .with_expr_adapter(base.expr_adapter_factory.clone())
            .build();
        config.open(0, context.clone())
    }

    /// Whether the whole of a needed column is read of a segment, by its place among those, and not only some pages.
    pub(super) fn reads_whole(&self, source: &HotSource, segment: u32, place: usize) -> bool {
        !self.is_late || self.is_all_over || (self.in_filter[place] && !source.segments.is_indexed(segment))
    }

    /// The share of a segment that was read when `given` of its rows were.
    fn share(&self, source: &HotSource, segment: u32, given: usize) -> f64 {
        let rows = source.segments.get(segment).rows;
        // As if each row were in a page of its own: with some thousand of them that is all pages.
        let near = given.saturating_mul(PAGE).min(rows);
        // With an index of its pages a column of a filter is read where rows pass as well.
        let looked_at = if source.segments.is_indexed(segment) { near } else { rows };
        let values = |in_filter: &bool| if *in_filter { looked_at } else { near };
        let read = OPENING + self.in_filter.iter().map(values).sum::<usize>();
        read as f64 / (rows * self.in_filter.len()).max(1) as f64
    }
}

/// `source`, of all columns, with metrics of its own: a reader adds some ten kilobytes of them for each file it opens, which
/// is each segment here, and nobody looks at them.
fn apart(source: &Arc<dyn FileSource>) -> Arc<dyn FileSource> {
    let Some(parquet) = source.downcast_ref::<ParquetSource>() else { return source.clone() };
    let options = parquet.table_parquet_options();
    let mut apart = ParquetSource::new(parquet.table_schema().clone()).with_table_parquet_options(options.clone());
    if let Some(hint) = options.global.metadata_size_hint {
        apart = apart.with_metadata_size_hint(hint);
    }
    if let Some(readers) = parquet.parquet_file_reader_factory() {
        apart = apart.with_parquet_file_reader_factory(readers.clone());
    }
    if let Some(predicate) = parquet.filter() {
        apart = apart.with_predicate(predicate);
    }
    Arc::new(apart)
}

/// The share of rows that pass the filters, when columns that no filter names are to be read for those rows alone.
pub(super) fn late(source: &HotSource) -> Option<f64> {
    if !source.filters.iter().any(never_fails) {
        return None;
    }
    let parquet = source.base.file_source().downcast_ref::<ParquetSource>();
    let is_wanted = parquet.is_some_and(|parquet| parquet.table_parquet_options().global.pushdown_filters);
    // What is not known is not few.
    let share = estimate::passing_share(source).unwrap_or(f64::INFINITY);
    (is_wanted || saves(&source.filters, &source.columns(), share)).then_some(share)
}

/// Whether it takes less time to read those of `columns` that no filter names for the rows alone that pass, a `share` of all.
fn saves(filters: &[Arc<dyn PhysicalExpr>], columns: &[usize], share: f64) -> bool {
    estimate::filter_columns(filters, columns).len() < columns.len() && share * FEW <= 1.0
}

/// Whether the Parquet reader of a scan without the cache should look at `filters` first, and at the others of `columns`
/// where rows pass. Both are over `schema`, that of the table, of which `all` is known.
pub fn pays_late(filters: &[Arc<dyn PhysicalExpr>], columns: &[usize], schema: &SchemaRef, all: Statistics) -> bool {
    // That scan gives the reader all filters or none.
    filters.iter().all(never_fails)
        && estimate::share_of(schema, filters, all).is_some_and(|share| saves(filters, columns, share))
}

/// A segment that is being read from its file.
pub(super) struct Reading {
    batches: SendableRecordBatchStream,
    segment: u32,
    /// Rows that were given.
    rows: usize,
}

impl Reading {
    /// Begins to read a segment.
    pub(super) fn begin(scan: &Scan, segment: u32, context: &Arc<TaskContext>) -> Result<Self> {
        let cold = scan.cold()?;
        // All who read it at the same time pay for it, so that the next loads it.
        if !cold.is_late {
            scan.source.cache.pay(&scan.keys(segment).1, 1.0);
        }
        Ok(Self { batches: cold.read(&scan.source, segment, context)?, segment, rows: 0 })
    }

    /// The next batch.
    ///
    /// # Errors
    /// The file cannot be read or decoded; the error names the file. No filter that the reader is given fails.
    pub(super) async fn next(&mut self, scan: &Scan) -> Result<Option<RecordBatch>> {
        let batch = self.batches.next().await.transpose();
        let batch = batch.map_err(|e| scan.source.segments.file_of(self.segment).loader.named(e))?;
        self.rows += batch.as_ref().map_or(0, RecordBatch::num_rows);
        Ok(batch)
    }

    /// After the last batch, or when no more are wanted.
    pub(super) fn end(self, scan: &Scan) -> Result<()> {
        let cold = scan.cold()?;
        if cold.is_late {
            scan.source.cache.pay(&scan.keys(self.segment).1, cold.share(&scan.source, self.segment, self.rows));
        }
        Ok(())
    }
}
