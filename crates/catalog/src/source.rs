//! The scan of text, Arrow and Avro files.
//!
//! DataFusion's own sources read CSV and Arrow by place and expect the table's schema in each file; here each file brings
//! its own, and its rows are brought into the table's. Parquet goes through DataFusion's source, which does that already.

use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions, new_null_array};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::{AvroSource, FileOpenFuture, FileOpener, FileScanConfig, FileSource};
use datafusion::datasource::projection::{ProjectionOpener, SplitProjection};
use datafusion::datasource::table_schema::TableSchema;
use datafusion::error::{DataFusionError, Result as DfResult};
use datafusion::physical_expr::projection::ProjectionExprs;
use datafusion::physical_plan::PhysicalExpr;
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use futures::{FutureExt, StreamExt, TryStreamExt};
use object_store::ObjectStore;

use crate::config::{Compression, Format};
use crate::error::Error;
use crate::formats::Text;
use crate::pinned::PinnedStore;
use crate::{ipc, text};

/// What a file brings along; attached to its `PartitionedFile`.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    /// The columns in the file, in its order.
    pub(crate) physical: SchemaRef,
    pub(crate) compression: Compression,
}

/// What all files of a scan share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) store: Arc<PinnedStore>,
    pub(crate) format: Format,
    pub(crate) text: Text,
    /// Files may be read in parts.
    pub(crate) splits: bool,
}

/// A `FileSource` over the pinned files of one snapshot, which it keeps alive.
#[derive(Debug, Clone)]
pub(crate) struct FilesSource {
    shared: Arc<Shared>,
    table_schema: TableSchema,
    projection: SplitProjection,
    batch_size: usize,
    metrics: ExecutionPlanMetricsSet,
}

impl FilesSource {
    pub(crate) fn new(shared: Arc<Shared>, table_schema: TableSchema) -> Self {
        let projection = SplitProjection::unprojected(&table_schema);
        Self { shared, table_schema, projection, batch_size: 8192, metrics: ExecutionPlanMetricsSet::new() }
    }
}

impl FileSource for FilesSource {
    fn create_file_opener(
        &self,
        _store: Arc<dyn ObjectStore>,
        config: &FileScanConfig,
        partition: usize,
    ) -> DfResult<Arc<dyn FileOpener>> {
        let file_schema = self.table_schema.file_schema();
        let target = Arc::new(file_schema.project(&self.projection.file_indices)?);
        let avro = match self.shared.format {
            Format::Avro => Some(self.avro(config, partition)?),
            _ => None,
        };
        let opener = Opener { shared: self.shared.clone(), target, avro, batch_size: self.batch_size };
        ProjectionOpener::try_new(self.projection.clone(), Arc::new(opener), file_schema)
    }

    fn table_schema(&self) -> &TableSchema {
        &self.table_schema
    }

    fn with_batch_size(&self, batch_size: usize) -> Arc<dyn FileSource> {
        Arc::new(Self { batch_size, ..self.clone() })
    }

    fn projection(&self) -> Option<&ProjectionExprs> {
        Some(&self.projection.source)
    }

    fn metrics(&self) -> &ExecutionPlanMetricsSet {
        &self.metrics
    }

    fn file_type(&self) -> &str {
        match self.shared.format {
            Format::Parquet => "parquet",
            Format::Csv => "csv",
            Format::Json => "json",
            Format::Arrow => "arrow",
            Format::Avro => "avro",
        }
    }

    fn supports_repartitioning(&self) -> bool {
        self.shared.splits
    }

    fn try_pushdown_projection(&self, projection: &ProjectionExprs) -> DfResult<Option<Arc<dyn FileSource>>> {
        let merged = self.projection.source.try_merge(projection)?;
        let projection = SplitProjection::new(self.table_schema.file_schema(), &merged);
        Ok(Some(Arc::new(Self { projection, ..self.clone() })))
    }

    fn apply_expressions(
        &self,
        f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> DfResult<TreeNodeRecursion>,
    ) -> DfResult<TreeNodeRecursion> {
        datafusion::physical_plan::apply_expression_roots(self.projection.source.iter(), f)
    }
}

impl FilesSource {
    /// DataFusion's opener for the columns of this scan; it goes by name, and gives NULL for what a file lacks.
    fn avro(&self, config: &FileScanConfig, partition: usize) -> DfResult<Arc<dyn FileOpener>> {
        let file_schema = self.table_schema.file_schema();
        let columns = ProjectionExprs::from_indices(&self.projection.file_indices, file_schema);
        let source = AvroSource::new(TableSchema::from(file_schema)).with_batch_size(self.batch_size);
        let source = source.try_pushdown_projection(&columns)?.unwrap_or(source);
        source.create_file_opener(self.shared.store.clone(), config, partition)
    }
}

struct Opener {
    shared: Arc<Shared>,
    /// The table's columns that the scan reads from files.
    target: SchemaRef,
    avro: Option<Arc<dyn FileOpener>>,
    batch_size: usize,
}

impl FileOpener for Opener {
    fn open(&self, file: PartitionedFile) -> DfResult<FileOpenFuture> {
        let layout = file.extension::<Layout>().cloned().ok_or_else(|| {
            DataFusionError::from(Error::Internal { what: "a file of the scan has no layout".to_owned() })
        })?;
        let (shared, target, batch_size) = (self.shared.clone(), self.target.clone(), self.batch_size);
        let name = shared.store.display(&file.object_meta.location);
        let place = match &file.range {
            Some(range) if range.start > 0 => format!(", lines counted from byte {}", range.start),
            _ => String::new(),
        };
        let avro = self.avro.as_ref().map(|avro| avro.open(file.clone())).transpose()?;
        let opened = async move {
            let store = shared.store.clone();
            let Layout { physical, compression } = layout;
            let rows = match (shared.format, avro) {
                (Format::Csv, _) => {
                    text::csv(store, file, physical, target.clone(), compression, &shared.text, batch_size).await?
                }
                (Format::Json, _) => text::json(store, file, target.clone(), compression, batch_size).await?,
                (_, Some(avro)) => avro.await?,
                _ => {
                    let wanted = |(at, field): (usize, &_)| has(&target, field).then_some(at);
                    ipc::read(store, file, physical.fields().iter().enumerate().filter_map(wanted).collect()).await?
                }
            };
            Ok(rows.and_then(move |batch| futures::future::ready(adapt(&batch, &target))).boxed())
        };
        let table = self.shared.store.table().to_owned();
        let named = move |e: DataFusionError| DataFusionError::from(Error::reading(&table, &name, place.clone(), e));
        Ok(async move {
            match opened.await {
                Ok(rows) => Ok(rows.map_err(named).boxed()),
                Err(e) => Err(named(e)),
            }
        }
        .boxed())
    }
}

fn has(schema: &SchemaRef, field: &datafusion::arrow::datatypes::FieldRef) -> bool {
    schema.field_with_name(field.name()).is_ok()
}

/// The columns of `target`, by name: NULL where the file has none, cast where its type is another.
fn adapt(batch: &RecordBatch, target: &SchemaRef) -> DfResult<RecordBatch> {
    let columns = target.fields().iter().map(|field| {
        Ok(match batch.column_by_name(field.name()) {
            None => new_null_array(field.data_type(), batch.num_rows()),
            Some(column) if column.data_type() == field.data_type() => column.clone(),
            Some(column) => cast(column, field.data_type())?,
        })
    });
    let columns = columns.collect::<DfResult<Vec<ArrayRef>>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    Ok(RecordBatch::try_new_with_options(target.clone(), columns, &options)?)
}
