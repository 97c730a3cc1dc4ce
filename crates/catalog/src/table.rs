//! A snapshot as a table of DataFusion.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::array::{AsArray, BooleanArray};
use datafusion::arrow::compute::kernels::boolean::and_kleene;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::stats::Precision;
use datafusion::common::{DFSchema, Statistics};
use datafusion::config::TableParquetOptions;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::listing::helpers::expr_applicable_for_cols;
use datafusion::datasource::physical_plan::{
    FileGroup, FileScanConfig, FileScanConfigBuilder, FileSource, ParquetSource,
};
use datafusion::datasource::source::DataSourceExec;
use datafusion::error::Result as DfResult;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::empty::EmptyExec;
use updraft_hot::{HotSource, Outlook, Segments, pays_late};

use crate::config::Format;
use crate::footers::Readers;
use crate::named::NamedSource;
use crate::snapshot::{Inner, merged};
use crate::source::FilesSource;
use crate::stored::Stored;

/// The table over the pinned files of one snapshot.
pub(crate) struct FilesTable {
    snapshot: Arc<Inner>,
}

/// How a table of the catalog is stored; `None` when `table` is none of the catalog's.
pub fn stored(table: &dyn TableProvider) -> Option<&Stored> {
    Some(table.downcast_ref::<FilesTable>()?.snapshot.stored.as_ref())
}

/// What a scan of Parquet files that reads `columns` of its table has to do, as far as their footers say which row groups its
/// filter leaves. `None` = it has no filter, or is no such scan of the catalog's.
pub fn outlook(scan: &FileScanConfig, columns: &[usize]) -> Option<Outlook> {
    let filter = scan.file_source.filter()?;
    let segments = scan.file_groups.iter().find_map(|group| group.files().first())?.extension::<Segments>()?;
    let source = scan.file_source.downcast_ref::<NamedSource>()?;
    Some(segments.outlook(&scan.file_groups, columns, &filter, source.is_late()))
}

impl FilesTable {
    pub(crate) fn new(snapshot: Arc<Inner>) -> Self {
        Self { snapshot }
    }

    /// Whether a filter speaks of partition columns alone, so that it can be answered for a file without opening it.
    fn is_of_partitions(&self, filter: &Expr) -> bool {
        let fields = self.snapshot.table_schema.table_partition_cols();
        let names: Vec<&str> = fields.iter().map(|field| field.name().as_str()).collect();
        // A filter without columns is left to the plan.
        !names.is_empty() && !filter.column_refs().is_empty() && expr_applicable_for_cols(&names, filter)
    }

    /// The places of the files whose partition values pass all `filters`; `None` = of all.
    fn select(&self, session: &dyn Session, filters: &[&Expr]) -> DfResult<Option<Vec<usize>>> {
        let Some(rows) = self.snapshot.partitions.as_ref().filter(|_| !filters.is_empty()) else {
            return Ok(None);
        };
        let schema = DFSchema::try_from(rows.schema())?;
        let mut keep = BooleanArray::from(vec![true; rows.num_rows()]);
        for filter in filters {
            let passes = session.create_physical_expr((*filter).clone(), &schema)?.evaluate(rows)?;
            keep = and_kleene(&keep, passes.into_array(rows.num_rows())?.as_boolean())?;
        }
        let kept: Vec<usize> =
            (0..).zip(keep.iter()).filter_map(|(at, keep)| (keep == Some(true)).then_some(at)).collect();
        Ok(Some(kept).filter(|kept| kept.len() < self.snapshot.files.len()))
    }

    /// Whether files are read with `filters` in the reader, by a scan that does not decide that for itself; the settings may
    /// ask for it for all queries.
    fn is_late(&self, session: &dyn Session, columns: &[usize], filters: &[&Expr], all: &Statistics) -> DfResult<bool> {
        let schema = self.schema();
        let of_columns = DFSchema::try_from(schema.clone())?;
        let filters = filters.iter().map(|filter| session.create_physical_expr((*filter).clone(), &of_columns));
        let filters = filters.collect::<DfResult<Vec<_>>>()?;
        Ok(!filters.is_empty() && pays_late(&filters, columns, &schema, all.clone()))
    }

    fn source(&self, session: &dyn Session, is_late: bool) -> Arc<dyn FileSource> {
        let snapshot = &self.snapshot;
        if snapshot.shared.format != Format::Parquet {
            return Arc::new(FilesSource::new(snapshot.shared.clone(), snapshot.table_schema.clone()));
        }
        let mut options = session.config_options().execution.parquet.clone();
        options.pushdown_filters |= is_late;
        let readers = Readers { store: snapshot.shared.store.clone(), footers: snapshot.footers.clone() };
        let mut source = ParquetSource::new(snapshot.table_schema.clone())
            .with_table_parquet_options(TableParquetOptions {
                global: options.clone(),
                ..TableParquetOptions::default()
            })
            .with_parquet_file_reader_factory(Arc::new(readers));
        if let Some(hint) = options.metadata_size_hint {
            source = source.with_metadata_size_hint(hint);
        }
        match snapshot.hot {
            // It names the files that it reads itself, by their loaders.
            Some(_) => Arc::new(source),
            None => Arc::new(NamedSource::new(Arc::new(source), snapshot.shared.store.clone())),
        }
    }
}

impl std::fmt::Debug for FilesTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FilesTable({}, {} files)", self.snapshot.table, self.snapshot.files.len())
    }
}

#[async_trait]
impl TableProvider for FilesTable {
    fn schema(&self) -> SchemaRef {
        self.snapshot.table_schema.table_schema().clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn statistics(&self) -> Option<Statistics> {
        Some(self.snapshot.statistics.clone())
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> DfResult<Vec<TableProviderFilterPushDown>> {
        let answer = |filter: &&Expr| match self.is_of_partitions(filter) {
            true => TableProviderFilterPushDown::Exact,
            false => TableProviderFilterPushDown::Inexact,
        };
        Ok(filters.iter().map(answer).collect())
    }

    async fn scan(
        &self,
        session: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> DfResult<Arc<dyn ExecutionPlan>> {
        let (of_partitions, others): (Vec<&Expr>, Vec<&Expr>) =
            filters.iter().partition(|filter| self.is_of_partitions(filter));
        let all = &self.snapshot.files;
        let mut places = self.select(session, &of_partitions)?;
        let mut files = match &places {
            Some(places) => places.iter().map(|at| all[*at].clone()).collect(),
            None => all.clone(),
        };
        let mut statistics = match &places {
            None => self.snapshot.statistics.clone(),
            Some(_) => merged(&files, self.snapshot.table_schema.table_schema())?,
        };
        if let Some(limit) = limit.filter(|_| others.is_empty())
            && let Some(enough) = files_for(&files, limit)
            && enough < files.len()
        {
            files.truncate(enough);
            places = Some(places.map_or_else(|| (0..enough).collect(), |places| places[..enough].to_vec()));
            statistics = merged(&files, self.snapshot.table_schema.table_schema())?.to_inexact();
        }
        if files.is_empty() {
            let schema = self.schema();
            let schema = projection.map_or(Ok(schema.clone()), |columns| schema.project(columns).map(Arc::new))?;
            return Ok(Arc::new(EmptyExec::new(schema)));
        }
        let partitions = session.config().target_partitions().max(1);
        let groups = FileGroup::new(files).split_files(partitions);
        let hot = self.snapshot.hot.as_ref().zip(self.snapshot.segments.as_ref());
        let format = self.snapshot.shared.format;
        let is_late = match (hot, projection) {
            (None, Some(columns)) if format == Format::Parquet => {
                self.is_late(session, columns, &others, &statistics)?
            }
            _ => false,
        };
        let base = FileScanConfigBuilder::new(self.snapshot.url.clone(), self.source(session, is_late))
            .with_file_groups(groups)
            .with_statistics(statistics)
            .build();
        if let Some((cache, segments)) = hot {
            let table = self.snapshot.table.as_str().into();
            let hot = HotSource::new(base, segments.clone(), places.as_deref(), cache.clone(), table, partitions);
            let hot = hot.with_columns(projection.map(Vec::as_slice))?.with_rows(limit);
            return Ok(DataSourceExec::from_data_source(hot));
        }
        let config = FileScanConfigBuilder::from(base).with_projection_indices(projection.cloned())?;
        Ok(DataSourceExec::from_data_source(config.with_limit(limit).build()))
    }
}

/// How many of the first files hold `limit` rows, if their row counts are exact.
fn files_for(files: &[PartitionedFile], limit: usize) -> Option<usize> {
    let mut rows = 0_usize;
    for (at, file) in files.iter().enumerate() {
        if rows >= limit {
            return Some(at);
        }
        let Precision::Exact(own) = file.statistics.as_ref()?.num_rows else { return None };
        rows = rows.saturating_add(own);
    }
    Some(files.len())
}
