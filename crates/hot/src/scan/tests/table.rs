//! Tables in files, with and without the cache.

use std::fs::File as DiskFile;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::array::{ArrayRef, RecordBatch};
use datafusion::arrow::compute::{cast, concat};
use datafusion::arrow::datatypes::{Schema, SchemaRef};
use datafusion::arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::catalog::{MemTable, Session, TableProvider};
use datafusion::common::{ScalarValue, Statistics};
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::parquet::metadata::DFParquetMetadata;
use datafusion::datasource::physical_plan::parquet::transform_schema_to_view;
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfig, FileScanConfigBuilder, ParquetSource};
use datafusion::datasource::source::DataSourceExec;
use datafusion::datasource::table_schema::TableSchema;
use datafusion::error::Result;
use datafusion::execution::SessionStateBuilder;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use datafusion::parquet::arrow::ArrowWriter;
use datafusion::parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use datafusion::parquet::file::properties::WriterProperties;
use datafusion::physical_optimizer::optimizer::PhysicalOptimizer;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::prelude::{SessionConfig, SessionContext};
use parking_lot::Mutex;

use super::super::{Bounds, HotSource, InOrder, Segments};
use crate::cache::{Cache, When};
use crate::file::{Asked, File, Load, Size};
use crate::key::{ColumnKey, FileKey};

/// A table of Parquet files.
#[derive(Debug, Clone)]
pub(super) struct Table {
    pub(super) schema: TableSchema,
    pub(super) files: Vec<PartitionedFile>,
    statistics: Statistics,
    pub(super) segments: Arc<Segments>,
    /// `None` = the scan there would be without it.
    pub(super) cache: Option<Arc<Cache>>,
    /// Files are read with the filters in the reader, whatever they are.
    pub(super) late: bool,
    /// What was asked for ahead: row groups and columns.
    pub(super) ahead: Ahead,
}

/// Row group and column, of any file.
type Ahead = Arc<Mutex<Vec<(u32, u32)>>>;

/// Writes `batches`, each as a row group.
pub(super) fn write(path: &Path, batches: &[RecordBatch]) {
    let properties = WriterProperties::builder().set_max_row_group_row_count(Some(1 << 20)).build();
    let file = DiskFile::create(path).expect("create");
    let mut writer = ArrowWriter::try_new(file, batches[0].schema(), Some(properties)).expect("writer");
    for batch in batches {
        writer.write(batch).expect("write");
        writer.flush().expect("flush");
    }
    writer.close().expect("close");
}

impl Table {
    /// The table whose columns are `columns`, then `partitions`, of which each file has a value each.
    pub(super) fn new(columns: &Schema, partitions: &Schema, files: &[(&Path, Vec<ScalarValue>)]) -> Self {
        let columns = Arc::new(columns.clone());
        let schema =
            TableSchema::builder(columns.clone()).with_table_partition_cols(partitions.fields().clone()).build();
        let (mut pinned, mut all, ahead) = (Vec::new(), Vec::new(), Ahead::default());
        for (path, values) in files {
            let reader = ParquetRecordBatchReaderBuilder::try_new(DiskFile::open(path).expect("open")).expect("footer");
            let own = Arc::new(transform_schema_to_view(reader.schema()));
            let footer = reader.metadata().clone();
            let place = |field: &Arc<_>| own.index_of(datafusion::arrow::datatypes::Field::name(field)).ok();
            let mut statistics =
                DFParquetMetadata::statistics_from_parquet_metadata(&footer, &own).expect("statistics");
            statistics.column_statistics = Statistics::new_unknown(schema.table_schema()).column_statistics;
            let size = std::fs::metadata(path).expect("size").len();
            let mut file = PartitionedFile::new(path.to_str().expect("utf8"), size)
                .with_extension(Bounds::of(&footer, &own))
                .with_extension(File {
                    key: FileKey::new(path.to_string_lossy()),
                    rows: footer.row_groups().iter().map(|group| group.num_rows() as u64).collect(),
                    columns: columns.fields().iter().map(|field| place(field).map(|at| at as u32)).collect(),
                    loader: Arc::new(Disk { path: path.to_path_buf(), ahead: ahead.clone() }),
                });
            file.partition_values = values.clone();
            all.push(statistics);
            pinned.push(file);
        }
        let statistics = Statistics::try_merge_iter(&all, schema.table_schema()).expect("merge");
        let segments = Segments::new(schema.table_schema().clone(), pinned.clone()).expect("all are known");
        Self { schema, files: pinned, statistics, segments: Arc::new(segments), cache: None, late: false, ahead }
    }

    pub(super) fn with_cache(&self, cache: &Arc<Cache>) -> Self {
        Self { cache: Some(cache.clone()), ..self.clone() }
    }

    pub(super) fn base(&self) -> FileScanConfig {
        let url = ObjectStoreUrl::local_filesystem();
        let source = ParquetSource::new(self.schema.clone()).with_pushdown_filters(self.late);
        FileScanConfigBuilder::new(url, Arc::new(source))
            .with_file_groups(vec![FileGroup::new(self.files.clone())])
            .with_statistics(self.statistics.clone())
            .build()
    }

    pub(super) fn source(&self, partitions: usize) -> Option<HotSource> {
        let cache = self.cache.clone()?;
        Some(HotSource::new(self.base(), self.segments.clone(), None, cache, "public.t".into(), partitions))
    }

    /// Gets some columns of segments into memory: those that `wanted` wants.
    pub(super) async fn load(&self, wanted: impl Fn(u32, usize) -> bool) {
        let cache = self.cache.as_ref().expect("a cache");
        for segment in self.segments.all() {
            let file = self.segments.file_of(segment);
            let row_group = self.segments.get(segment).row_group;
            for (column, field) in self.schema.file_schema().fields().iter().enumerate() {
                if let Some(key) = file.column(row_group, column, field.data_type()).filter(|_| wanted(segment, column))
                {
                    cache.get_or_load(&"public.t".into(), &file.loader, &[key], When::AtOnce).await.expect("loaded");
                }
            }
        }
    }
}

/// Reads a file from disk.
#[derive(Debug)]
struct Disk {
    path: std::path::PathBuf,
    ahead: Ahead,
}

#[async_trait]
impl Load for Disk {
    async fn sizes(&self, keys: &[ColumnKey]) -> Result<Vec<Size>> {
        Ok(vec![Size { reading: 64 << 10, kept: 16 << 10 }; keys.len()])
    }

    async fn load(&self, key: &ColumnKey) -> Result<ArrayRef> {
        let reader = ParquetRecordBatchReaderBuilder::try_new(DiskFile::open(&self.path)?)?;
        let reader = reader.with_row_groups(vec![key.segment.row_group as usize]).build()?;
        let batches = reader.collect::<std::result::Result<Vec<_>, _>>()?;
        let columns: Vec<_> = batches.iter().map(|batch| batch.column(key.column as usize).as_ref()).collect();
        Ok(cast(&concat(&columns)?, &key.data_type)?)
    }

    fn ahead(&self, keys: &[ColumnKey]) -> Option<Asked> {
        self.ahead.lock().extend(keys.iter().map(|key| (key.segment.row_group, key.column)));
        Some(Box::new(()))
    }
}

#[async_trait]
impl TableProvider for Table {
    fn schema(&self) -> SchemaRef {
        self.schema.table_schema().clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    async fn scan(
        &self,
        session: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        if let Some(source) = self.source(session.config().target_partitions()) {
            let source = source.with_columns(projection.map(Vec::as_slice))?.with_rows(limit);
            return Ok(DataSourceExec::from_data_source(source));
        }
        let config = FileScanConfigBuilder::from(self.base());
        let config = config.with_projection_indices(projection.cloned())?.with_limit(limit).build();
        Ok(DataSourceExec::from_data_source(config))
    }
}

/// A session in which `t` is `table`.
pub(super) fn session(table: Arc<dyn TableProvider>, partitions: usize, batch_size: usize) -> SessionContext {
    let config = SessionConfig::new().with_target_partitions(partitions).with_batch_size(batch_size);
    let mut rules = PhysicalOptimizer::new().rules;
    let sorts = rules.iter().position(|rule| rule.name() == "PushdownSort").expect("DataFusion has this rule");
    rules.insert(sorts, Arc::new(InOrder));
    let state = SessionStateBuilder::new().with_config(config).with_default_features();
    let context = SessionContext::new_with_state(state.with_physical_optimizer_rules(rules).build());
    context.register_table("t", table).expect("registered");
    context
}

/// The rows of `table`, without anything that could leave out some of them: scans of files do not know about NaN.
pub(super) async fn in_memory(table: &Table) -> Arc<dyn TableProvider> {
    let files = Table { cache: None, ..table.clone() };
    let batches = session(Arc::new(files), 1, 64).sql("select * from t").await.expect("a plan").collect().await;
    let memory = MemTable::try_new(table.schema.table_schema().clone(), vec![batches.expect("rows")]);
    Arc::new(memory.expect("a table"))
}

/// The answer of `sql`, each row a text.
pub(super) async fn answer(context: &SessionContext, sql: &str) -> Result<Vec<String>> {
    Ok(texts(&context.sql(sql).await?.collect().await?))
}

pub(super) fn texts(batches: &[RecordBatch]) -> Vec<String> {
    let options = FormatOptions::new().with_null("NULL");
    let mut rows = Vec::new();
    for batch in batches {
        let columns = batch.columns().iter().map(|column| ArrayFormatter::try_new(column, &options).expect("format"));
        let columns: Vec<_> = columns.collect();
        rows.extend((0..batch.num_rows()).map(|row| {
            let values: Vec<String> = columns.iter().map(|column| column.value(row).to_string()).collect();
            values.join("|")
        }));
    }
    rows
}
