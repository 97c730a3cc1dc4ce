//! What is known about each file of a table before it is queried, from footers or beginnings: many are read at the same
//! time, and what was read is understood by all threads there are.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, OnceLock};

use datafusion::arrow::datatypes::{Schema, SchemaRef};
use datafusion::common::Statistics;
use datafusion::common::stats::Precision;
use datafusion::datasource::physical_plan::parquet::metadata::DFParquetMetadata;
use datafusion::datasource::physical_plan::parquet::transform_schema_to_view;
use datafusion::error::Result as DfResult;
use datafusion::parquet::arrow::parquet_to_arrow_schema;
use datafusion::parquet::file::metadata::{FileMetaData, KeyValue, PageIndexPolicy, ParquetMetaData};
use datafusion::parquet::schema::types::SchemaDescriptor;
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use tokio::runtime::Handle;
use tokio_util::task::AbortOnDropHandle;
use updraft_hot::Bounds;

use crate::config::{Compression, Format, TableConfig};
use crate::error::Error;
use crate::formats::Text;
use crate::pinned::{PinnedFile, PinnedStore};
use crate::snapshot::{Workshop, compression, meta};
use crate::stored::Stored;
use crate::text;

/// Files that are worth a task of their own: a footer is understood in some ten microseconds, and another thread takes as
/// long to wake up.
const TASK_FILES: usize = 32;

/// What is known about one file, however its table is queried.
#[derive(Debug)]
pub(crate) struct Facts {
    pub(crate) schema: SchemaRef,
    pub(crate) quoted_newlines: bool,
    /// Over the columns of `schema`.
    pub(crate) statistics: Option<Arc<Statistics>>,
    /// Over the columns of `schema`.
    pub(crate) stored: Stored,
    /// Rows of each row group; Parquet only.
    pub(crate) row_groups: Arc<[u64]>,
    /// What is known of the values in each row group; Parquet only, when the cache of hot columns is on.
    pub(crate) bounds: Option<Arc<Bounds>>,
}

/// How the files of one table are looked at.
pub(crate) struct Look {
    workshop: Arc<Workshop>,
    store: Arc<PinnedStore>,
    format: Format,
    config: TableConfig,
    text: Text,
    /// Of `format` and `config`, hashed.
    options: u64,
    /// The first Parquet file, and its schema: most others have the same, and making it takes as long as reading a footer.
    first: OnceLock<(Arc<ParquetMetaData>, SchemaRef)>,
}

/// What is known about each of `files`, in their order. At most `reads_max` are read at the same time; none any more once
/// the future is dropped.
///
/// # Errors
/// A file cannot be read or understood; the error names it.
pub(crate) async fn of(
    look: &Arc<Look>,
    files: &[(Path, Arc<PinnedFile>)],
    reads_max: usize,
) -> Result<Vec<Arc<Facts>>, Error> {
    let known: Vec<_> = files.iter().map(|(_, file)| look.known(file)).collect();
    let unknown = files.iter().zip(&known).filter(|(_, known)| known.is_none());
    let unknown: Vec<_> = unknown.map(|(file, _)| file.clone()).collect();
    let workers = Handle::current().metrics().num_workers().min(reads_max);
    let tasks = unknown.len().div_ceil(TASK_FILES).min(workers);
    let mut found = Vec::with_capacity(unknown.len());
    if tasks <= 1 {
        found = look.clone().each(unknown, reads_max).await?;
    } else {
        let part = |files: &[_]| look.clone().each(files.to_vec(), reads_max / tasks);
        let parts = unknown.chunks(unknown.len().div_ceil(tasks));
        let parts: Vec<_> = parts.map(|files| AbortOnDropHandle::new(tokio::spawn(part(files)))).collect();
        for part in parts {
            let ended = |e| Error::Internal { what: format!("looking at files did not end: {e}") };
            found.extend(part.await.map_err(ended)??);
        }
    }
    let mut found = found.into_iter();
    let found = known.into_iter().map(|known| known.or_else(|| found.next()));
    Ok(found.map(|facts| facts.expect("what was not known was looked for")).collect())
}

impl Look {
    pub(crate) fn new(
        workshop: Arc<Workshop>,
        store: Arc<PinnedStore>,
        format: Format,
        config: TableConfig,
        text: Text,
    ) -> Self {
        let mut options = DefaultHasher::new();
        (format, &config).hash(&mut options);
        Self { workshop, store, format, config, text, options: options.finish(), first: OnceLock::new() }
    }

    fn known(&self, file: &PinnedFile) -> Option<Arc<Facts>> {
        self.workshop.facts.get(&(file.id.clone(), self.options))
    }

    async fn each(
        self: Arc<Self>,
        files: Vec<(Path, Arc<PinnedFile>)>,
        reads_max: usize,
    ) -> Result<Vec<Arc<Facts>>, Error> {
        let reads = files.into_iter().map(move |(path, file)| {
            let look = self.clone();
            async move {
                // What the kernel holds is there without a wait: others are to have their turn.
                tokio::task::consume_budget().await;
                let facts = look.at(&path, &file).await;
                let facts = facts
                    .map_err(|e| Error::reading(look.store.table(), &file.display(), String::new(), e))
                    .map(Arc::new)?;
                look.keep(&file, &facts);
                Ok(facts)
            }
        });
        futures::stream::iter(reads).buffered(reads_max).try_collect().await
    }

    fn keep(&self, file: &PinnedFile, facts: &Arc<Facts>) {
        // Roughly what a field and the statistics of a column take.
        let bounds = facts.bounds.as_ref().map_or(0, |bounds| bounds.bytes());
        let weight = 512 + facts.schema.fields().len() * 512 + facts.row_groups.len() * size_of::<u64>() + bounds;
        self.workshop.facts.insert((file.id.clone(), self.options), facts.clone(), weight);
    }

    /// Reads the footer of a file, or its beginning.
    async fn at(&self, path: &Path, file: &PinnedFile) -> DfResult<Facts> {
        let Self { store, config, text, .. } = self;
        let meta = meta(path, file);
        let plain = |schema: SchemaRef, stored| Facts {
            schema,
            quoted_newlines: false,
            statistics: None,
            stored,
            row_groups: Arc::default(),
            bounds: None,
        };
        match self.format {
            Format::Parquet => {
                let footer = self.workshop.footers.get(store, &meta, PageIndexPolicy::Skip, None).await?;
                let schema = self.schema(&footer)?;
                let statistics = Some(Arc::new(statistics(&footer, &schema, meta.size)?));
                let stored = Stored::parquet(meta.size, &footer, &schema);
                let row_groups = footer.row_groups().iter().map(|group| u64::try_from(group.num_rows()).unwrap_or(0));
                let row_groups = row_groups.collect();
                let bounds = Some(Arc::new(Bounds::of(&footer, &schema)));
                Ok(Facts { schema, quoted_newlines: false, statistics, stored, row_groups, bounds })
            }
            Format::Csv | Format::Json => {
                let compression = compression(config, file);
                let guess = text::guess(store, path, file.name(), self.format, compression, text).await?;
                let schema = match self.format {
                    Format::Csv if !text.header && !config.columns.is_empty() => by_place(&guess.schema, config),
                    _ => guess.schema,
                };
                let stored = Stored { packed: compression != Compression::None, ..Stored::file(meta.size) };
                let quoted_newlines = guess.quoted_newlines;
                Ok(Facts { quoted_newlines, ..plain(Arc::new(schema), stored) })
            }
            Format::Arrow => {
                let (schema, stored) = crate::ipc::look(store, path, meta.size).await?;
                Ok(plain(schema, Stored { packed: true, ..stored }))
            }
            Format::Avro => {
                let store = store.clone() as Arc<dyn object_store::ObjectStore>;
                let schema = crate::avro::schema(&store, path).await?;
                Ok(plain(schema, Stored { packed: true, ..Stored::file(meta.size) }))
            }
        }
    }

    /// The schema of a Parquet file.
    fn schema(&self, footer: &Arc<ParquetMetaData>) -> DfResult<SchemaRef> {
        let file = footer.file_metadata();
        if let Some((first, schema)) = self.first.get()
            && said(first.file_metadata()) == said(file)
        {
            return Ok(schema.clone());
        }
        let schema = parquet_to_arrow_schema(file.schema_descr(), file.key_value_metadata())?;
        // The writer's notes on the schema differ from file to file and say nothing about the columns.
        let schema = Arc::new(transform_schema_to_view(&schema.with_metadata(HashMap::new())));
        let _ = self.first.set((footer.clone(), schema.clone()));
        Ok(schema)
    }
}

/// What the footer of a file of `bytes` says of all its rows.
fn statistics(footer: &ParquetMetaData, schema: &SchemaRef, bytes: u64) -> DfResult<Statistics> {
    let mut statistics = DFParquetMetadata::statistics_from_parquet_metadata(footer, schema)?;
    if statistics.total_byte_size == Precision::Absent {
        statistics.total_byte_size = bytes_of_file(bytes);
    }
    let told = Told::of(footer, schema.fields().len());
    for ((field, column), told) in schema.fields().iter().zip(&mut statistics.column_statistics).zip(told) {
        if !told.min {
            column.min_value = Precision::Absent;
        }
        if !told.max {
            column.max_value = Precision::Absent;
        }
        if !told.nulls {
            column.null_count = Precision::Absent;
        }
        if field.data_type().is_floating() {
            // Writers leave NaN out, and take one zero for the other: none of it says what a query would see.
            column.min_value = std::mem::take(&mut column.min_value).to_inexact();
            column.max_value = std::mem::take(&mut column.max_value).to_inexact();
        }
    }
    Ok(statistics)
}

/// What a footer tells of a column in all of its row groups. DataFusion goes by those that tell, as if the others had no values
/// and no NULLs.
#[derive(Debug, Clone, Copy)]
struct Told {
    min: bool,
    max: bool,
    nulls: bool,
}

impl Told {
    /// Of each top-level column of the file.
    fn of(footer: &ParquetMetaData, columns: usize) -> Vec<Self> {
        let schema = footer.file_metadata().schema_descr();
        let mut all = vec![Self { min: true, max: true, nulls: true }; columns];
        for group in footer.row_groups().iter().filter(|group| group.num_rows() > 0) {
            for (leaf, chunk) in group.columns().iter().enumerate() {
                let Some(told) = all.get_mut(schema.get_column_root_idx(leaf)) else { continue };
                let statistics = chunk.statistics();
                let nulls = statistics.and_then(|known| known.null_count_opt());
                let all_null = nulls.is_some_and(|nulls| u64::try_from(chunk.num_values()) == Ok(nulls));
                told.min &= all_null || statistics.is_some_and(|known| known.min_bytes_opt().is_some());
                told.max &= all_null || statistics.is_some_and(|known| known.max_bytes_opt().is_some());
                told.nulls &= nulls.is_some();
            }
        }
        all
    }
}

/// What is known of the bytes that the rows of a file take by how many are stored.
pub(crate) fn bytes_of_file(stored: u64) -> Precision<usize> {
    Precision::Inexact(usize::try_from(stored).unwrap_or(usize::MAX))
}

/// All of a footer that its schema is made of.
fn said(file: &FileMetaData) -> (&SchemaDescriptor, Option<&Vec<KeyValue>>) {
    (file.schema_descr(), file.key_value_metadata())
}

/// A file without a header line: the declared columns, in their order, as far as the file has columns.
fn by_place(schema: &Schema, config: &TableConfig) -> Schema {
    let fields = schema.fields().iter().enumerate().map(|(at, field)| match config.columns.get(at) {
        Some(column) => field.as_ref().clone().with_name(&column.name),
        None => field.as_ref().clone(),
    });
    Schema::new(fields.collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use datafusion::arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
    use datafusion::common::ScalarValue;
    use datafusion::parquet::arrow::ArrowWriter;
    use datafusion::parquet::file::metadata::ColumnChunkMetaData;
    use datafusion::parquet::file::properties::WriterProperties;
    use datafusion::parquet::file::statistics::Statistics as Bounds;

    use super::*;

    /// The footer of a file of numbers and strings in two row groups, the chunks of the second as `change` leaves them.
    fn footer(change: impl Fn(ColumnChunkMetaData) -> ColumnChunkMetaData) -> (ParquetMetaData, SchemaRef) {
        let columns: [(&str, ArrayRef); 2] = [
            ("n", Arc::new(Int64Array::from(vec![Some(1), Some(2), None, Some(4)]))),
            ("s", Arc::new(StringArray::from(vec!["a", "b", "c", "d"]))),
        ];
        let batch = RecordBatch::try_from_iter_with_nullable(columns.map(|(name, column)| (name, column, true)));
        let batch = batch.expect("columns of a length");
        let properties = WriterProperties::builder().set_max_row_group_row_count(Some(2)).build();
        let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), Some(properties)).expect("a writer");
        writer.write(&batch).expect("rows");
        let mut builder = writer.finish().expect("a footer").into_builder();
        let mut groups = builder.take_row_groups();
        let mut second = groups.pop().expect("two").into_builder();
        let chunks = second.take_columns().into_iter().map(change).collect();
        groups.push(second.set_column_metadata(chunks).build().expect("a row group"));
        (builder.set_row_groups(groups).build(), batch.schema())
    }

    #[test]
    fn what_one_row_group_does_not_tell_is_not_known() {
        let (whole, schema) = footer(|chunk| chunk);
        let told = statistics(&whole, &schema, 100).expect("statistics").column_statistics;
        assert_eq!(told[0].max_value, Precision::Exact(ScalarValue::Int64(Some(4))));
        assert_eq!(told[0].null_count, Precision::Exact(1));

        let (nothing, schema) = footer(|chunk| chunk.into_builder().clear_statistics().build().expect("a chunk"));
        for column in statistics(&nothing, &schema, 100).expect("statistics").column_statistics {
            let known = (column.min_value, column.max_value, column.null_count);
            assert_eq!(known, (Precision::Absent, Precision::Absent, Precision::Absent));
        }

        let only_min = |chunk: ColumnChunkMetaData| {
            let bounds = match chunk.statistics().expect("it has some") {
                Bounds::Int64(_) => Bounds::int64(Some(4), None, None, Some(1), false),
                _ => Bounds::byte_array(Some("c".into()), None, None, None, false),
            };
            chunk.into_builder().set_statistics(bounds).build().expect("a chunk")
        };
        let (some, schema) = footer(only_min);
        let told = statistics(&some, &schema, 100).expect("statistics").column_statistics;
        assert_eq!(
            (&told[0].min_value, &told[0].max_value),
            (&Precision::Exact(ScalarValue::Int64(Some(1))), &Precision::Absent)
        );
        assert_eq!((&told[0].null_count, &told[1].null_count), (&Precision::Exact(1), &Precision::Absent));
    }
}
