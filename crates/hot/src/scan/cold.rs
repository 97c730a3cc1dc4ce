//! How segments that are not in memory are read from their files, and when they are loaded instead.

use std::sync::Arc;

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

use super::access::Scan;
use super::estimate;
use super::filter::never_fails;
use super::source::HotSource;
use super::unpruned::Unpruned;
use crate::cache::When;
use crate::key::ColumnKey;

/// Values that are loaded the first time: that takes a few milliseconds.
const SMALL: usize = 1 << 20;
/// Values that take as long as opening a file, which is done however few are read.
const OPENING: usize = 64 << 10;
/// When one row in so many passes, or fewer, the columns that no filter names are read for those rows alone.
const FEW: f64 = 32.0;

/// How the files of a scan are read.
pub(super) struct Cold {
    /// Filters and columns, but not the place.
    source: Arc<dyn FileSource>,
    limit: Option<usize>,
    /// The reader looks at the columns of filters first, and at the others where rows pass.
    pub(super) is_late: bool,
    /// For each needed column whether a filter names it.
    in_filter: Vec<bool>,
    pub(super) when: When,
}

impl Cold {
    pub(super) fn new(source: &HotSource, needed: &[usize]) -> Result<Self> {
        let schema = source.segments.schema();
        let named: Vec<_> = source.filters.iter().flat_map(collect_columns).map(|column| column.index()).collect();
        let in_filter: Vec<bool> = needed.iter().map(|column| named.contains(column)).collect();
        let asked_for = source.base.file_source().downcast_ref::<ParquetSource>();
        let asked_for = asked_for.is_some_and(|parquet| parquet.table_parquet_options().global.pushdown_filters);
        let saves = in_filter.contains(&true) && in_filter.contains(&false);
        let is_late = asked_for || saves && estimate::passing_share(source).is_some_and(|share| share * FEW <= 1.0);
        let rows: usize = source.may_pass().iter().map(|segment| source.segments.get(*segment).rows).sum();
        let is_small = rows.saturating_mul(needed.len()) <= SMALL;
        let when = if is_small && !is_late { When::AtOnce } else { When::Paid };

        let is_float = |column: &Column| schema.field(column.index()).data_type().is_floating();
        let is_trusted = |filter: &Arc<dyn PhysicalExpr>| !collect_columns(filter).iter().any(is_float);
        let filters: Vec<_> = match is_late {
            // Looked at row by row, in an order of the reader's own. What others leave out comes later.
            true => {
                let safe = source.filters.iter().filter(|filter| never_fails(filter));
                safe.map(|filter| match is_trusted(filter) {
                    true => filter.clone(),
                    false => Arc::new(Unpruned(filter.clone())),
                })
                .collect()
            }
            false => {
                source.filters.iter().chain(&source.dynamic).filter(|filter| is_trusted(filter)).cloned().collect()
            }
        };
        let mut file = source.base.file_source().clone();
        if let Some(parquet) = file.downcast_ref::<ParquetSource>().filter(|_| !filters.is_empty()) {
            file = Arc::new(parquet.with_predicate(conjunction(filters)).with_pushdown_filters(is_late));
        }
        let columns = ProjectionExprs::from_indices(needed, schema);
        let file = file.try_pushdown_projection(&columns)?.unwrap_or(file);
        // With a filter it is not known how many rows it takes to find those that are wanted.
        let limit = source.fetch.filter(|_| source.filters.is_empty() && source.dynamic.is_empty());
        Ok(Self { source: file, limit, is_late, in_filter, when })
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
        let config = FileScanConfigBuilder::new(base.object_store_url.clone(), self.source.clone())
            .with_limit(self.limit)
            .with_file_groups(vec![FileGroup::new(vec![file])])
            .with_expr_adapter(base.expr_adapter_factory.clone())
            .build();
        config.open(0, context.clone())
    }

    /// Whether all rows of a needed column, by its place among those, are read, and not only those that pass.
    pub(super) fn reads_whole(&self, place: usize) -> bool {
        !self.is_late || self.in_filter[place]
    }

    /// Tells the cache that a segment is being read, of which its file stores the columns `keys`, at these `places` among
    /// those needed.
    pub(super) fn begins(&self, source: &HotSource, places: &[usize], keys: &[ColumnKey]) {
        let read = places.iter().zip(keys).filter(|(place, _)| self.reads_whole(**place));
        source.cache.pay(read.map(|(_, key)| key), 1.0);
    }

    /// Tells the cache that it was read, and that this `share` of its rows was given.
    pub(super) fn ends(&self, source: &HotSource, places: &[usize], keys: &[ColumnKey], share: f64) {
        let read = places.iter().zip(keys).filter(|(place, _)| !self.reads_whole(**place));
        source.cache.pay(read.map(|(_, key)| key), share);
    }
}

/// A segment that is being read from its file.
pub(super) struct Reading {
    pub(super) batches: SendableRecordBatchStream,
    segment: u32,
    /// Rows that were given.
    pub(super) rows: usize,
}

impl Reading {
    /// Begins to read a segment.
    pub(super) fn begin(scan: &Scan, segment: u32, context: &Arc<TaskContext>) -> Result<Self> {
        let cold = scan.cold()?;
        let (places, keys) = scan.keys(segment);
        cold.begins(&scan.source, &places, &keys);
        Ok(Self { batches: cold.read(&scan.source, segment, context)?, segment, rows: 0 })
    }

    /// After the last batch, or when no more are wanted.
    pub(super) fn end(self, scan: &Scan) -> Result<()> {
        let (places, keys) = scan.keys(self.segment);
        let all = scan.source.segments.get(self.segment).rows * keys.len();
        let read = self.rows * keys.len() + OPENING;
        scan.cold()?.ends(&scan.source, &places, &keys, read as f64 / all.max(1) as f64);
        Ok(())
    }
}
