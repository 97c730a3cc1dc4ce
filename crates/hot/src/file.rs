//! A Parquet file of a pinned table, as the cache and the scan see it.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::array::ArrayRef;
use datafusion::arrow::datatypes::DataType;
use datafusion::error::{DataFusionError, Result};

use crate::key::{ColumnKey, FileKey, SegmentId};

/// A Parquet file of a pinned table. Attached to its `PartitionedFile`, so that plans carry it.
#[derive(Debug, Clone)]
pub struct File {
    /// Its exact version.
    pub key: FileKey,
    /// Rows of each row group.
    pub rows: Arc<[u64]>,
    /// For each column of the table that files have (partition columns are none of them): its number among the top-level
    /// columns of this file; `None` = the file has no such column, and its values are NULL.
    pub columns: Arc<[Option<u32>]>,
    /// Reads the file.
    pub loader: Arc<dyn Load>,
}

impl File {
    /// The key of a column of one row group: `column` is the table's, and `data_type` its type. `None` when the file does
    /// not have it.
    pub fn column(&self, row_group: u32, column: usize, data_type: &DataType) -> Option<ColumnKey> {
        let column = self.columns.get(column).copied().flatten()?;
        let segment = SegmentId { file: self.key.clone(), row_group };
        Some(ColumnKey { segment, column, data_type: data_type.clone() })
    }
}

/// Bytes that are on their way.
pub type Asked = Box<dyn Any + Send + Sync>;

/// Reads columns of one file.
#[async_trait]
pub trait Load: fmt::Debug + Send + Sync {
    /// Bytes that reading each of `keys` takes in memory at most, as far as the footer tells.
    ///
    /// # Errors
    /// The footer cannot be read; the error names the file.
    async fn sizes(&self, keys: &[ColumnKey]) -> Result<Vec<Size>>;

    /// The values of a column of a row group, as an array of `key.data_type`.
    ///
    /// # Errors
    /// The file cannot be read or decoded; the error names the file.
    async fn load(&self, key: &ColumnKey) -> Result<ArrayRef>;

    /// What went wrong when the file was read in another way, with the file's name.
    fn named(&self, error: DataFusionError) -> DataFusionError {
        error
    }

    /// Has the bytes of `keys` brought near before they are read, where that takes time. Until it is dropped, what this
    /// returns keeps them there. `None` = nothing was done: there is no need, or no room.
    fn ahead(&self, _keys: &[ColumnKey]) -> Option<Asked> {
        None
    }
}

/// What a column takes in memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Size {
    /// At most, while it is read.
    pub reading: u64,
    /// About, once it is in memory.
    pub kept: u64,
}
