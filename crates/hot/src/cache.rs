//! The cache of decoded columns.

use std::sync::Arc;

use datafusion::error::Result;

use crate::column::Column;
use crate::file::Load;
use crate::key::ColumnKey;

/// Decoded columns in memory, shared by the whole process. Bytes in it, and bytes that are being loaded, never pass its limit.
#[derive(Debug)]
pub struct Cache {}

impl Cache {
    /// The columns `keys` of one segment, when all are in memory; each then counts as a hit of `table` (`schema.name`).
    /// Nothing is counted otherwise: ask [`Self::get_or_load`] next. Ask once per segment and scan, as asking is what makes
    /// a column worth its room.
    pub fn get(&self, table: &Arc<str>, keys: &[ColumnKey]) -> Option<Vec<Arc<Column>>> {
        todo!()
    }

    /// Whether a column is in memory now, without counting: for plans and EXPLAIN.
    pub fn peek(&self, key: &ColumnKey) -> Option<Arc<Column>> {
        todo!()
    }

    /// The columns `keys` of one segment: from memory, or read by `loader` when they are let in. Counts hits and misses of
    /// `table`. A column that somebody else loads is waited for. `None` = read this segment from its file: it is not worth
    /// the room, for now.
    ///
    /// Dropping the future ends the loading, unless another waits for the same column.
    ///
    /// # Errors
    /// As `loader`. All who wait get the error, and the next to ask loads again.
    pub async fn get_or_load(
        self: &Arc<Self>,
        table: &Arc<str>,
        loader: &Arc<dyn Load>,
        keys: &[ColumnKey],
    ) -> Result<Option<Vec<Arc<Column>>>> {
        todo!()
    }
}
