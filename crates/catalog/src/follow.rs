//! Reading ahead for a scan that does not say what comes next: who reads row groups one after the other is taken to go on,
//! and each time twice as many of them are asked for.

use std::ops::Range;
use std::sync::Arc;

use datafusion::parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData, RowGroupMetaData};
use object_store::path::Path;

use crate::ahead::Piece;
use crate::pinned::PinnedStore;

/// Row groups that are asked for at most.
const GROUPS_MAX: usize = 16;

/// One reader of a file of row groups.
#[derive(Debug, Default)]
pub(crate) struct Following {
    /// The row group that was read last.
    last: Option<usize>,
    /// How many to ask for after it.
    more: usize,
    /// What was asked for, by row group.
    kept: Vec<(usize, Vec<Arc<Piece>>)>,
}

impl Following {
    /// `ranges` of the file at `location` are about to be read, by one who reads no row group that begins outside of `part`.
    pub(crate) fn reads(
        &mut self,
        store: &PinnedStore,
        location: &Path,
        footer: &ParquetMetaData,
        part: &Range<u64>,
        ranges: &[Range<u64>],
    ) {
        let groups = footer.row_groups();
        let Some((group, columns)) = self.place(groups, ranges) else {
            // Pages, or something else that is not the same in the next row group.
            *self = Self::default();
            return;
        };
        self.more = match self.last {
            Some(last) if last == group => self.more,
            Some(last) if last + 1 == group => (2 * self.more).clamp(1, GROUPS_MAX),
            _ => 0,
        };
        self.last = Some(group);
        self.kept.retain(|(kept, _)| *kept >= group);
        let is_own = |group: &RowGroupMetaData| {
            group.columns().first().map(bytes_of).is_some_and(|first| part.contains(&first.start))
        };
        for (next, of_next) in groups.iter().enumerate().skip(group + 1).take(self.more) {
            if !is_own(of_next) {
                return;
            }
            let ranges: Vec<_> = columns.iter().map(|column| bytes_of(of_next.column(*column))).collect();
            let Some(pieces) = store.read_ahead(location, &ranges) else { return };
            self.kept.push((next, pieces));
        }
    }

    /// The row group of which `ranges` are whole columns, and those columns.
    fn place(&self, groups: &[RowGroupMetaData], ranges: &[Range<u64>]) -> Option<(usize, Vec<usize>)> {
        let first = ranges.first()?;
        let holds = |group: &usize| {
            let columns = groups.get(*group).map(|group| group.columns()).unwrap_or_default();
            columns.iter().any(|column| bytes_of(column) == *first)
        };
        let next = self.last.map_or(0, |last| last + 1);
        let group = [next, next.saturating_sub(1)].into_iter().chain(0..groups.len()).find(holds)?;
        let columns = groups[group].columns();
        let place = |range: &Range<u64>| columns.iter().position(|column| bytes_of(column) == *range);
        Some((group, ranges.iter().map(place).collect::<Option<_>>()?))
    }
}

/// Where the bytes of a column of a row group are in the file.
pub(crate) fn bytes_of(column: &ColumnChunkMetaData) -> Range<u64> {
    // Sizes from a file are not to be trusted.
    let positive = |bytes: i64| u64::try_from(bytes).unwrap_or_default();
    let start = positive(column.dictionary_page_offset().unwrap_or(column.data_page_offset()));
    start..start.saturating_add(positive(column.compressed_size()))
}
