//! The scan of Parquet files: DataFusion's own, whose errors say which file they are of.
//!
//! What the store or a footer says is named by the reader. What goes wrong when a page is decoded passes no code of ours
//! until it leaves the scan, which may read many files.

use std::fmt;
use std::sync::Arc;

use datafusion::arrow::array::RecordBatch;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::{FileOpener, FileScanConfig, FileSource, ParquetSource};
use datafusion::datasource::table_schema::TableSchema;
use datafusion::error::{DataFusionError, Result as DfResult};
use datafusion::physical_expr::projection::ProjectionExprs;
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr, PhysicalSortExpr};
use datafusion::physical_plan::filter_pushdown::FilterPushdownPropagation;
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use datafusion::physical_plan::{DisplayFormatType, SortOrderPushdownResult};
use datafusion_datasource::morsel::{Morsel, MorselPlan, MorselPlanner, Morselizer};
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::ObjectStore;
use object_store::path::Path;

use crate::error::find;
use crate::pinned::PinnedStore;

/// A `FileSource` whose errors name the file of `store`.
#[derive(Clone)]
pub(crate) struct NamedSource {
    inner: Arc<dyn FileSource>,
    store: Arc<PinnedStore>,
}

impl NamedSource {
    pub(crate) fn new(inner: Arc<dyn FileSource>, store: Arc<PinnedStore>) -> Self {
        Self { inner, store }
    }

    /// Whether the reader looks at the columns of filters first, and at the others where rows pass.
    pub(crate) fn is_late(&self) -> bool {
        let parquet = self.inner.downcast_ref::<ParquetSource>();
        parquet.is_some_and(|parquet| parquet.table_parquet_options().global.pushdown_filters)
    }

    fn around(&self, inner: Arc<dyn FileSource>) -> Arc<dyn FileSource> {
        Arc::new(Self { inner, ..self.clone() })
    }
}

impl FileSource for NamedSource {
    fn create_file_opener(
        &self,
        store: Arc<dyn ObjectStore>,
        config: &FileScanConfig,
        partition: usize,
    ) -> DfResult<Arc<dyn FileOpener>> {
        self.inner.create_file_opener(store, config, partition)
    }

    fn create_morselizer(
        &self,
        store: Arc<dyn ObjectStore>,
        config: &FileScanConfig,
        partition: usize,
    ) -> DfResult<Box<dyn Morselizer>> {
        let inner = self.inner.create_morselizer(store, config, partition)?;
        Ok(Box::new(NamedMorselizer { inner, store: self.store.clone() }))
    }

    fn table_schema(&self) -> &TableSchema {
        self.inner.table_schema()
    }

    fn with_batch_size(&self, batch_size: usize) -> Arc<dyn FileSource> {
        self.around(self.inner.with_batch_size(batch_size))
    }

    fn filter(&self) -> Option<Arc<dyn PhysicalExpr>> {
        self.inner.filter()
    }

    fn projection(&self) -> Option<&ProjectionExprs> {
        self.inner.projection()
    }

    fn metrics(&self) -> &ExecutionPlanMetricsSet {
        self.inner.metrics()
    }

    fn file_type(&self) -> &str {
        self.inner.file_type()
    }

    fn fmt_extra(&self, t: DisplayFormatType, f: &mut fmt::Formatter) -> fmt::Result {
        self.inner.fmt_extra(t, f)
    }

    fn try_pushdown_filters(
        &self,
        filters: Vec<Arc<dyn PhysicalExpr>>,
        config: &ConfigOptions,
    ) -> DfResult<FilterPushdownPropagation<Arc<dyn FileSource>>> {
        let FilterPushdownPropagation { filters, updated_node } = self.inner.try_pushdown_filters(filters, config)?;
        Ok(FilterPushdownPropagation { filters, updated_node: updated_node.map(|inner| self.around(inner)) })
    }

    fn try_pushdown_sort(
        &self,
        order: &[PhysicalSortExpr],
        properties: &EquivalenceProperties,
    ) -> DfResult<SortOrderPushdownResult<Arc<dyn FileSource>>> {
        Ok(self.inner.try_pushdown_sort(order, properties)?.map(|inner| self.around(inner)))
    }

    fn reorder_files(&self, files: Vec<PartitionedFile>) -> Vec<PartitionedFile> {
        self.inner.reorder_files(files)
    }

    fn try_pushdown_projection(&self, projection: &ProjectionExprs) -> DfResult<Option<Arc<dyn FileSource>>> {
        Ok(self.inner.try_pushdown_projection(projection)?.map(|inner| self.around(inner)))
    }

    fn apply_expressions(
        &self,
        f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> DfResult<TreeNodeRecursion>,
    ) -> DfResult<TreeNodeRecursion> {
        self.inner.apply_expressions(f)
    }
}

#[derive(Debug)]
struct NamedMorselizer {
    inner: Box<dyn Morselizer>,
    store: Arc<PinnedStore>,
}

impl Morselizer for NamedMorselizer {
    fn plan_file(&self, file: PartitionedFile) -> DfResult<Box<dyn MorselPlanner>> {
        let place = Place { store: self.store.clone(), location: file.object_meta.location.clone() };
        place.planner(self.inner.plan_file(file))
    }
}

/// A file that is being read.
#[derive(Debug, Clone)]
struct Place {
    store: Arc<PinnedStore>,
    location: Path,
}

impl Place {
    fn named(&self, error: DataFusionError) -> DataFusionError {
        // The scan evaluates expressions too: what they say is not of a file.
        if find(&error).is_none() { error } else { self.store.named(&self.location, error) }
    }

    fn planner(&self, planner: DfResult<Box<dyn MorselPlanner>>) -> DfResult<Box<dyn MorselPlanner>> {
        let named = |inner| Box::new(Named { inner, place: self.clone() }) as Box<dyn MorselPlanner>;
        planner.map(named).map_err(|e| self.named(e))
    }
}

/// A step of reading a file.
#[derive(Debug)]
struct Named<T> {
    inner: T,
    place: Place,
}

impl MorselPlanner for Named<Box<dyn MorselPlanner>> {
    fn plan(self: Box<Self>) -> DfResult<Option<MorselPlan>> {
        let Self { inner, place } = *self;
        let Some(mut plan) = inner.plan().map_err(|e| place.named(e))? else { return Ok(None) };
        let morsels = plan.take_morsels().into_iter();
        let morsels = morsels.map(|inner| Box::new(Named { inner, place: place.clone() }) as Box<dyn Morsel>);
        let planners = plan.take_ready_planners().into_iter().map(|planner| place.planner(Ok(planner)));
        let named = MorselPlan::new().with_morsels(morsels.collect()).with_planners(planners.collect::<DfResult<_>>()?);
        Ok(Some(match plan.take_pending_planner() {
            Some(pending) => named.with_pending_planner(async move { place.planner(pending.await) }),
            None => named,
        }))
    }
}

impl Morsel for Named<Box<dyn Morsel>> {
    fn into_stream(self: Box<Self>) -> BoxStream<'static, DfResult<RecordBatch>> {
        let Self { inner, place } = *self;
        inner.into_stream().map(move |batch| batch.map_err(|e| place.named(e))).boxed()
    }
}
