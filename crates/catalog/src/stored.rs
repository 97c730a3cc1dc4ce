//! How large the parts of a table are as stored: what a scan will hold in memory is known before it begins.

use datafusion::arrow::datatypes::Schema;
use datafusion::parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData};

/// Sizes of a table over all its files. Attached to each of its `PartitionedFile`s, so that plans carry it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stored {
    /// Bytes of all files.
    pub bytes: u64,
    /// The largest file.
    pub largest_file: u64,
    /// The parts one reader takes at a time: row groups of Parquet, record batches of Arrow. `None` = not known.
    pub parts: Option<u64>,
    /// Bytes of the largest such part, all columns.
    pub largest_part: Option<u64>,
    /// What each column takes, in the table's order; empty where a format does not store columns apart.
    pub columns: Vec<StoredColumn>,
    /// Compressed as a whole: it may be a thousand times larger when it is read.
    pub packed: bool,
    /// Bytes that a scan may read before it needs them; 0 = it does not.
    pub ahead: u64,
}

/// What one column takes, over all files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StoredColumn {
    /// Bytes as stored.
    pub bytes: u64,
    /// Bytes as stored of the row group that has most.
    pub largest: u64,
    /// The same, before compression.
    pub largest_plain: u64,
    /// Bytes of all values before any encoding if the files say so, else before compression.
    pub values: u64,
}

impl Stored {
    /// No file yet.
    pub(crate) fn nothing() -> Self {
        Self { parts: Some(0), largest_part: Some(0), ..Self::default() }
    }

    /// One file of which only the size is known.
    pub(crate) fn file(bytes: u64) -> Self {
        Self { bytes, largest_file: bytes, ..Self::default() }
    }

    /// One file of `parts`, by their sizes.
    pub(crate) fn in_parts(bytes: u64, parts: impl ExactSizeIterator<Item = u64>) -> Self {
        let count = parts.len() as u64;
        Self { parts: Some(count), largest_part: Some(parts.max().unwrap_or_default()), ..Self::file(bytes) }
    }

    /// A Parquet file, its columns in the order of `schema`.
    pub(crate) fn parquet(bytes: u64, footer: &ParquetMetaData, schema: &Schema) -> Self {
        let size = |group: &datafusion::parquet::file::metadata::RowGroupMetaData| positive(group.compressed_size());
        let mut stored = Self::in_parts(bytes, footer.row_groups().iter().map(size));
        let leaves = footer.file_metadata().schema_descr();
        stored.columns = vec![StoredColumn::default(); schema.fields().len()];
        for group in footer.row_groups() {
            let mut of_group = vec![StoredColumn::default(); schema.fields().len()];
            for (leaf, chunk) in group.columns().iter().enumerate() {
                // A nested column is stored as several.
                if let Some(column) = of_group.get_mut(leaves.get_column_root_idx(leaf)) {
                    column.add(&StoredColumn::of(chunk));
                }
            }
            for (all, one) in stored.columns.iter_mut().zip(&of_group) {
                all.add_group(one);
            }
        }
        stored
    }

    /// Counts in `file`, whose column at `places[i]` is the table's column `i`.
    pub(crate) fn add(&mut self, file: &Self, places: &[Option<usize>]) {
        self.bytes = self.bytes.saturating_add(file.bytes);
        self.largest_file = self.largest_file.max(file.largest_file);
        self.packed |= file.packed;
        self.parts = self.parts.zip(file.parts).map(|(a, b)| a.saturating_add(b));
        self.largest_part = self.largest_part.zip(file.largest_part).map(|(a, b)| a.max(b));
        if file.columns.is_empty() {
            return;
        }
        self.columns.resize(places.len(), StoredColumn::default());
        for (column, place) in self.columns.iter_mut().zip(places) {
            if let Some(one) = place.and_then(|place| file.columns.get(place)) {
                column.add_group(one);
            }
        }
    }
}

impl StoredColumn {
    fn of(chunk: &ColumnChunkMetaData) -> Self {
        let (stored, plain) = (positive(chunk.compressed_size()), positive(chunk.uncompressed_size()));
        let values = chunk.unencoded_byte_array_data_bytes().map_or(plain, positive);
        Self { bytes: stored, largest: stored, largest_plain: plain, values }
    }

    /// Another part of the same column in the same row group.
    fn add(&mut self, other: &Self) {
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.largest = self.largest.saturating_add(other.largest);
        self.largest_plain = self.largest_plain.saturating_add(other.largest_plain);
        self.values = self.values.saturating_add(other.values);
    }

    /// The same column in another row group.
    fn add_group(&mut self, other: &Self) {
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.largest = self.largest.max(other.largest);
        self.largest_plain = self.largest_plain.max(other.largest_plain);
        self.values = self.values.saturating_add(other.values);
    }
}

/// A size from a file, which is not to be trusted.
fn positive(bytes: i64) -> u64 {
    u64::try_from(bytes).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_add_up_and_the_largest_part_counts() {
        let column = |bytes, largest| StoredColumn { bytes, largest, largest_plain: largest * 2, values: bytes * 3 };
        let mut table = Stored::nothing();
        let a = Stored { columns: vec![column(10, 6), column(100, 60)], ..Stored::in_parts(120, [66, 44].into_iter()) };
        let b = Stored { columns: vec![column(50, 50)], ..Stored::in_parts(60, [50].into_iter()) };
        table.add(&a, &[Some(0), Some(1)]);
        table.add(&b, &[None, Some(0)]);
        assert_eq!((table.bytes, table.largest_file, table.parts, table.largest_part), (180, 120, Some(3), Some(66)));
        assert_eq!(table.columns, [column(10, 6), StoredColumn { values: 450, ..column(150, 60) }]);
        table.add(&Stored::file(7), &[Some(0), None]);
        assert_eq!((table.bytes, table.parts), (187, None), "a part unknown makes their number unknown");
    }

    #[test]
    fn absurd_sizes_do_not_overflow() {
        let huge = StoredColumn { bytes: u64::MAX, largest: u64::MAX, largest_plain: u64::MAX, values: u64::MAX };
        let file = Stored { columns: vec![huge], ..Stored::in_parts(u64::MAX, [u64::MAX].into_iter()) };
        let mut table = Stored::nothing();
        table.add(&file, &[Some(0)]);
        table.add(&file, &[Some(0)]);
        assert_eq!((table.bytes, table.columns[0]), (u64::MAX, huge));
        assert_eq!(positive(-1), 0);
    }
}
