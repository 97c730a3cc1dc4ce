//! How the cache of hot columns reads a pinned Parquet file: one column of one row group at a time, as the scan would.

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::array::{ArrayRef, new_empty_array};
use datafusion::arrow::compute::concat;
use datafusion::arrow::datatypes::{DataType, Field, Schema};
use datafusion::datasource::physical_plan::parquet::apply_file_schema_type_coercions;
use datafusion::error::{DataFusionError, Result as DfResult};
use datafusion::logical_expr::ColumnarValue;
use datafusion::parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions};
use datafusion::parquet::arrow::async_reader::ParquetRecordBatchStreamBuilder;
use datafusion::parquet::arrow::{ProjectionMask, parquet_to_arrow_schema};
use datafusion::parquet::basic::Type;
use datafusion::parquet::errors::ParquetError;
use datafusion::parquet::file::metadata::{PageIndexPolicy, ParquetMetaData, RowGroupMetaData};
use futures::TryStreamExt;
use object_store::ObjectMeta;
use updraft_hot::{Asked, ColumnKey, File, FileKey, Load, Size};

use crate::error::Error;
use crate::follow::bytes_of;
use crate::footers::Readers;
use crate::pinned::PinnedFile;

/// Bytes of a view of a string.
const VIEW: u64 = 16;
/// Bytes that a view has room for.
const INLINE: u64 = 12;
/// Bytes of the length of a string, as stored.
const LENGTH: u64 = 4;
/// Bytes of a code of a string.
const CODE: u64 = 2;
/// Bytes that finding the few different strings of a column takes, at most.
const CODING_MAX: u64 = 8 << 20;
/// What every column takes beside its values.
const OVERHEAD: u64 = 1 << 10;

/// A pinned file for the cache. `row_groups` are its rows, and `columns` where the table's columns are in it.
pub(crate) fn file(
    readers: &Readers,
    file: &PinnedFile,
    meta: ObjectMeta,
    row_groups: Arc<[u64]>,
    columns: Arc<[Option<u32>]>,
) -> File {
    let key = FileKey::new(format!("{:?}", file.id));
    File { key, rows: row_groups, columns, loader: Arc::new(Columns { readers: readers.clone(), meta }) }
}

/// The columns of one pinned file.
#[derive(Debug)]
struct Columns {
    readers: Readers,
    meta: ObjectMeta,
}

#[async_trait]
impl Load for Columns {
    async fn sizes(&self, keys: &[ColumnKey]) -> DfResult<Vec<Size>> {
        let footer = self.footer().await.map_err(|e| self.named(e))?;
        let sizes = keys.iter().map(|key| size(&footer, group(&footer, key)?, key));
        sizes.collect::<DfResult<_>>().map_err(|e| self.named(e))
    }

    async fn load(&self, key: &ColumnKey) -> DfResult<ArrayRef> {
        self.read(key).await.map_err(|e| self.named(e))
    }

    fn named(&self, error: DataFusionError) -> DataFusionError {
        self.readers.store.named(&self.meta.location, error)
    }

    fn ahead(&self, keys: &[ColumnKey]) -> Option<Asked> {
        let store = &self.readers.store;
        let file = store.file(&self.meta.location).ok().filter(|file| file.is_remote())?;
        let footer = self.readers.footers.known(&file.id)?;
        let ranges: Vec<_> = keys.iter().flat_map(|key| ranges(&footer, key)).collect();
        store.read_ahead(&self.meta.location, &ranges).map(|pieces| Box::new(pieces) as Asked)
    }
}

impl Columns {
    async fn footer(&self) -> DfResult<Arc<ParquetMetaData>> {
        self.readers.footers.get(&self.readers.store, &self.meta, PageIndexPolicy::Skip, None).await
    }

    async fn read(&self, key: &ColumnKey) -> DfResult<ArrayRef> {
        let footer = self.footer().await?;
        let rows = usize::try_from(group(&footer, key)?.num_rows()).unwrap_or_default();
        let column = key.column as usize;
        let file = footer.file_metadata();
        let physical = parquet_to_arrow_schema(file.schema_descr(), file.key_value_metadata())?;
        let name = physical.fields().get(column).ok_or_else(no_such_part)?.name();
        // Strings are read as the table has them, as the scan does it: a cast would cost more than the reading.
        let wanted = Schema::new(vec![Field::new(name, key.data_type.clone(), true)]);
        let options = match apply_file_schema_type_coercions(&wanted, &physical) {
            Some(schema) => ArrowReaderOptions::new().with_schema(Arc::new(schema)),
            None => ArrowReaderOptions::new(),
        };
        let mask = ProjectionMask::roots(file.schema_descr(), [column]);
        let metadata = ArrowReaderMetadata::try_new(footer, options)?;
        let reader = self.readers.open(self.meta.clone());
        // All rows in one batch: they are decoded into the place where they stay.
        let batches = ParquetRecordBatchStreamBuilder::new_with_metadata(reader, metadata)
            .with_row_groups(vec![key.segment.row_group as usize])
            .with_projection(mask)
            .with_batch_size(rows.max(1))
            .build()?
            .try_collect::<Vec<_>>()
            .await?;
        let parts: Vec<ArrayRef> = batches.iter().map(|batch| batch.column(0).clone()).collect();
        let values = match parts.as_slice() {
            [] => new_empty_array(&key.data_type),
            [values] => values.clone(),
            parts => concat(&parts.iter().map(|part| part.as_ref()).collect::<Vec<_>>())?,
        };
        if values.len() != rows {
            let problem = format!("row group {} has {} values for {rows} rows", key.segment.row_group, values.len());
            return Err(ParquetError::General(problem).into());
        }
        ColumnarValue::Array(values).cast_to(&key.data_type, None)?.into_array(rows)
    }
}

fn group<'a>(footer: &'a ParquetMetaData, key: &ColumnKey) -> DfResult<&'a RowGroupMetaData> {
    footer.row_groups().get(key.segment.row_group as usize).ok_or_else(no_such_part)
}

/// Where a column of a row group is in the file.
fn ranges<'a>(footer: &'a ParquetMetaData, key: &ColumnKey) -> impl Iterator<Item = Range<u64>> + use<'a> {
    let leaves = footer.file_metadata().schema_descr();
    let (group, column) = (footer.row_groups().get(key.segment.row_group as usize), key.column as usize);
    let chunks = group.into_iter().flat_map(|group| group.columns().iter().enumerate());
    let chunks = chunks.filter(move |(leaf, _)| leaves.get_column_root_idx(*leaf) == column);
    chunks.map(|(_, chunk)| bytes_of(chunk))
}

fn no_such_part() -> DataFusionError {
    Error::Internal { what: "the cache asks for a part that the file does not have".to_owned() }.into()
}

/// What a column of a row group will take, by its footer.
fn size(footer: &ParquetMetaData, group: &RowGroupMetaData, key: &ColumnKey) -> DfResult<Size> {
    let leaves = footer.file_metadata().schema_descr();
    let chunks = group.columns().iter().enumerate();
    let chunks = chunks.filter(|(leaf, _)| leaves.get_column_root_idx(*leaf) == key.column as usize);
    let (mut stored, mut plain, mut values, mut width) = (0_u64, 0_u64, 0_u64, None);
    for (_, chunk) in chunks {
        width = match chunk.column_type() {
            Type::INT32 | Type::FLOAT => Some(4),
            Type::INT64 | Type::DOUBLE => Some(8),
            _ => None,
        };
        stored = stored.saturating_add(positive(chunk.compressed_size()));
        plain = plain.saturating_add(positive(chunk.uncompressed_size()));
        values = values.saturating_add(positive(chunk.num_values()));
    }
    let rows = positive(group.num_rows());
    Ok(Sizes { rows, stored, plain, values, width }.of(&key.data_type))
}

/// A size from a file, which is not to be trusted.
fn positive(bytes: i64) -> u64 {
    u64::try_from(bytes).unwrap_or_default()
}

/// What a footer says of a column of a row group.
struct Sizes {
    rows: u64,
    /// Bytes as stored.
    stored: u64,
    /// Bytes of its pages before compression.
    plain: u64,
    /// Of all leaves.
    values: u64,
    /// Bytes of a number as stored, where it may be one of the table's as it is.
    width: Option<usize>,
}

impl Sizes {
    /// What it takes in memory as `data_type`.
    fn of(&self, data_type: &DataType) -> Size {
        let Self { rows, stored, plain, values, width } = *self;
        let of_rows = |bytes: u64| rows.saturating_mul(bytes);
        let nulls = rows / 8;
        let views = of_rows(VIEW).saturating_add(plain);
        // Less than there would be for any strings: the file itself has them as codes.
        let few = plain < of_rows(LENGTH);
        let (kept, reading) = match data_type {
            DataType::Boolean => (rows / 8 + nulls, rows),
            DataType::Utf8View if few => {
                let coded = of_rows(CODE).saturating_add(plain);
                (coded, views.saturating_add(coded).saturating_add(plain.saturating_mul(4).min(CODING_MAX)))
            }
            DataType::BinaryView if few => (views, views.saturating_mul(2)),
            DataType::Utf8View | DataType::BinaryView => {
                // Short ones are in the views.
                let text = Some(plain - of_rows(LENGTH)).filter(|text| *text > of_rows(INLINE)).unwrap_or_default();
                // As they come from the reader, and as they are kept.
                (of_rows(VIEW).saturating_add(text), views.saturating_mul(2).saturating_add(CODING_MAX))
            }
            DataType::FixedSizeBinary(width) => {
                let bytes = of_rows(positive((*width).into()));
                (bytes, bytes.saturating_mul(2))
            }
            _ => {
                let own = data_type.primitive_width();
                let bytes = match own {
                    Some(width) => of_rows(width as u64),
                    None => values.saturating_mul(VIEW).saturating_add(plain),
                };
                // Decoded into its place, which grows; or as the file's type, and then as the table's.
                let as_it_is = own.is_some() && own == width && !data_type.is_decimal();
                (bytes, if as_it_is { bytes.saturating_add(bytes / 2) } else { bytes.saturating_mul(3) })
            }
        };
        let (kept, reading) = (kept.saturating_add(nulls), reading.saturating_add(2 * nulls));
        let kept = kept.saturating_add(OVERHEAD);
        Size { kept, reading: reading.saturating_add(stored).saturating_add(2 * OVERHEAD).max(kept) }
    }
}
