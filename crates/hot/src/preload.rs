//! Whole tables into memory, before anybody asks for them.

use std::sync::Arc;

use bytesize::ByteSize;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::error::DataFusionError;
use futures::{StreamExt, TryStreamExt};

use crate::cache::{Cache, When};
use crate::file::{File, Load};
use crate::key::ColumnKey;

/// Segments that are asked for at the same time: enough to keep all cores busy, and few enough that what is set aside while
/// they are read does not stand in the way of the last.
const SEGMENTS_AT_ONCE: usize = 4;
/// Footers that are read at the same time.
const FOOTERS_AT_ONCE: usize = 32;
/// What a table that is preloaded counts for: as one that was asked for as often as it takes to be let in.
const USES: u8 = 2;

/// A table to load.
#[derive(Debug, Clone)]
pub struct Table {
    /// `schema.name`.
    pub name: Arc<str>,
    /// The columns that its files have.
    pub schema: SchemaRef,
    /// Its files.
    pub files: Vec<File>,
}

/// Why a table was not loaded.
#[derive(Debug, thiserror::Error)]
pub enum PreloadError {
    /// There is not as much room as its columns need.
    #[error(
        "table {table:?} needs about {} in memory, and {} are there (hot.memory_limit is {}); hint: raise hot.memory_limit, \
         or preload fewer tables", ByteSize(*needed), ByteSize(*available), ByteSize(*limit)
    )]
    TooLarge {
        /// The table.
        table: Arc<str>,
        /// Bytes that its columns need.
        needed: u64,
        /// Bytes that are free, or held by what was asked for less.
        available: u64,
        /// `hot.memory_limit`.
        limit: u64,
    },
    /// A file cannot be read.
    #[error("load table {table:?}: {source}")]
    Load {
        /// The table.
        table: Arc<str>,
        /// What went wrong; it names the file.
        #[source]
        source: DataFusionError,
    },
}

/// One segment of a table, with all its columns that are not in memory yet.
struct Segment {
    table: Arc<str>,
    loader: Arc<dyn Load>,
    keys: Vec<ColumnKey>,
    /// Bytes that they need.
    needed: u64,
}

impl Cache {
    /// Loads all columns of `tables`, several at a time.
    ///
    /// # Errors
    /// Of the first table that does not fit beside those before it, before anything is loaded, as far as the footers of its
    /// files tell; or that cannot be read.
    pub async fn preload(self: &Arc<Self>, tables: &[Table]) -> Result<(), PreloadError> {
        let mut segments = Vec::new();
        for table in tables {
            segments.push(self.segments(table).await?);
        }
        let available = self.available(USES);
        let mut before = 0_u64;
        for (table, segments) in tables.iter().zip(&segments) {
            let needed = segments.iter().map(|segment| segment.needed).sum::<u64>();
            if before.saturating_add(needed) > available {
                return Err(self.too_large(&table.name, needed, available.saturating_sub(before)));
            }
            before += needed;
        }
        let loads = segments.iter().flatten().map(|segment| async move {
            let loaded = self.load(segment).await?;
            Ok((!loaded).then_some(segment))
        });
        let loads: Vec<_> = loads.collect();
        let refused: Vec<_> = futures::stream::iter(loads).buffer_unordered(SEGMENTS_AT_ONCE).try_collect().await?;
        // What the others had set aside while they were read is free now.
        for segment in refused.into_iter().flatten() {
            if !self.load(segment).await? {
                return Err(self.too_large(&segment.table, segment.needed, self.available(USES)));
            }
        }
        Ok(())
    }

    async fn load(self: &Arc<Self>, segment: &Segment) -> Result<bool, PreloadError> {
        let asked = self.ask(&segment.table, &segment.loader, &segment.keys, When::AtOnce, USES).await;
        let failed = |source| PreloadError::Load { table: Arc::clone(&segment.table), source };
        Ok(asked.map_err(failed)?.is_some())
    }

    async fn segments(&self, table: &Table) -> Result<Vec<Segment>, PreloadError> {
        let failed = |source| PreloadError::Load { table: Arc::clone(&table.name), source };
        let all = table.files.iter().flat_map(|file| (0..file.rows.len() as u32).map(move |group| (file, group)));
        let each = all.map(|(file, group)| async move {
            let fields = table.schema.fields().iter().enumerate();
            let keys = fields.filter_map(|(at, field)| file.column(group, at, field.data_type()));
            let keys: Vec<_> = keys.filter(|key| self.peek(key).is_none()).collect();
            let sizes = file.loader.sizes(&keys).await.map_err(failed)?;
            let needed = sizes.iter().map(|size| size.kept).sum();
            Ok(Segment { table: Arc::clone(&table.name), loader: Arc::clone(&file.loader), keys, needed })
        });
        let each: Vec<_> = each.collect();
        futures::stream::iter(each).buffered(FOOTERS_AT_ONCE).try_collect().await
    }

    fn too_large(&self, table: &Arc<str>, needed: u64, available: u64) -> PreloadError {
        PreloadError::TooLarge { table: Arc::clone(table), needed, available, limit: self.limit() }
    }
}
