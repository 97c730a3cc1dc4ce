//! What the footer of a Parquet file says of the values in its row groups.

use datafusion::arrow::array::{Array, ArrayRef, UInt64Array};
use datafusion::arrow::datatypes::{DataType, Schema};
use datafusion::parquet::arrow::arrow_reader::statistics::StatisticsConverter;
use datafusion::parquet::file::metadata::ParquetMetaData;

/// What the footer of a file says of its columns. Attached to a `PartitionedFile`.
#[derive(Debug, Clone, Default)]
pub struct Bounds {
    /// By the column's number among the top-level columns of the file; `None` = nothing is known.
    pub columns: Vec<Option<ColumnBounds>>,
    /// By the same number, whether the file holds strings of few values, each once.
    pub coded: Vec<bool>,
    /// The file says what values are in which page.
    pub indexed: bool,
}

/// What a footer says of one column: one entry for each row group.
#[derive(Debug, Clone)]
pub struct ColumnBounds {
    /// No value is smaller; NULL = not known. Of the column's type in the file's schema.
    pub min: ArrayRef,
    /// No value is larger; NULL = not known. Of the same type.
    pub max: ArrayRef,
    /// Number of NULLs; NULL = not known.
    pub nulls: UInt64Array,
}

impl Bounds {
    /// What `footer` says of the columns that `schema`, the file's own, names.
    pub fn of(footer: &ParquetMetaData, schema: &Schema) -> Self {
        let columns = schema.fields().iter().map(|field| {
            let stored = footer.file_metadata().schema_descr();
            let converter = StatisticsConverter::try_new(field.name(), schema, stored).ok()?;
            let converter = converter.with_missing_null_counts_as_zero(false);
            // A column of several leaves has no order.
            converter.parquet_column_index()?;
            let mut min = converter.row_group_mins(footer.row_groups()).ok()?;
            let mut max = converter.row_group_maxes(footer.row_groups()).ok()?;
            // Those of strings come with room for a thousand row groups: of many small files that is most of what they take.
            min.shrink_to_fit();
            max.shrink_to_fit();
            let nulls = converter.row_group_null_counts(footer.row_groups()).ok()?;
            Some(ColumnBounds { min, max, nulls })
        });
        let mut chunks = footer.row_groups().iter().flat_map(|group| group.columns());
        let indexed = chunks.all(|chunk| chunk.column_index_offset().is_some());
        Self { columns: columns.collect(), coded: coded(footer, schema), indexed }
    }

    /// Bytes that it takes in memory.
    pub fn bytes(&self) -> usize {
        let bytes = |column: &ColumnBounds| {
            column.min.get_array_memory_size()
                + column.max.get_array_memory_size()
                + column.nulls.get_array_memory_size()
        };
        let own = self.columns.len() * size_of::<Option<ColumnBounds>>() + self.coded.len();
        self.columns.iter().flatten().map(bytes).sum::<usize>() + own
    }
}

/// For each column of `schema` whether its strings take little more than a byte each, whatever their length: they are codes
/// of few values.
fn coded(footer: &ParquetMetaData, schema: &Schema) -> Vec<bool> {
    let stored = footer.file_metadata().schema_descr();
    let mut coded: Vec<bool> = schema.fields().iter().map(|field| field.data_type() == &DataType::Utf8View).collect();
    for group in footer.row_groups() {
        for (leaf, chunk) in group.columns().iter().enumerate() {
            let values = chunk.num_values();
            let is_coded = chunk.uncompressed_size() < values.saturating_add(values / 4);
            if let Some(column) = coded.get_mut(stored.get_column_root_idx(leaf)) {
                *column &= is_coded;
            }
        }
    }
    coded
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use datafusion::arrow::array::{Int64Array, RecordBatch, StringViewArray};
    use datafusion::parquet::arrow::{ArrowWriter, parquet_to_arrow_schema};

    use super::*;

    #[test]
    fn bounds_take_no_more_room_than_there_is_in_them() {
        let strings = StringViewArray::from(vec!["a", "a string that has no place in its view"]);
        let columns = [
            ("number", Arc::new(Int64Array::from(vec![1, 2])) as ArrayRef),
            ("text", Arc::new(strings.clone())),
            ("more", Arc::new(strings)),
        ];
        let batch = RecordBatch::try_from_iter(columns).expect("columns of a length");
        let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), None).expect("a writer");
        writer.write(&batch).expect("written");
        let footer = writer.finish().expect("a footer");
        let stored = footer.file_metadata();
        let schema = parquet_to_arrow_schema(stored.schema_descr(), stored.key_value_metadata()).expect("a schema");
        let bounds = Bounds::of(&footer, &schema);
        assert_eq!(bounds.columns.iter().flatten().count(), 3);
        // Some hundred bytes for each array, however many row groups a builder expects.
        assert!(bounds.bytes() < 3 * 3 * 512, "{} bytes", bounds.bytes());
    }
}
