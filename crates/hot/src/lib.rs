//! The hot-table cache: decoded columns of the tables that are asked for most, kept in memory.
//!
//! A *segment* is one row group of one exact version of a Parquet file. The cache holds its columns one by one, so that part
//! of a table can be hot, and a replaced file is never answered from memory. Bytes are counted before they are loaded.
//!
//! Never: file access (that is the [`Load`]er's), listing, names of tables (those are the catalog's), or memory outside its
//! limit.
//!
//! - [`Config`]: the settings of section `hot`
//! - `key`: what a column is known by; `file`: a file as the scan sees it, and the seam through which it is read
//! - `column`: a column in memory; `coding`: strings with few different values; `zone`: what is known of its values
//! - `cache`: lookup, and loading by one for all; `shelf`: what is kept, and who goes first; `room`: bytes taken and given back
//! - `preload`: whole tables before anybody asks; `statistics`: what the cache did, per table

mod cache;
mod coding;
mod column;
mod config;
mod file;
mod key;
mod preload;
mod room;
mod scan;
mod shelf;
mod statistics;
mod zone;

pub use cache::{Cache, When};
pub use column::Column;
pub use config::Config;
pub use file::{Asked, File, Load, Size};
pub use key::{ColumnKey, FileKey, SegmentId};
pub use preload::{PreloadError, Table};
pub use scan::{Bounds, ByPages, ColumnBounds, HotSource, InOrder, LoadOnce, Outlook, Segments, pays_late};
pub use statistics::{Statistics, TableStatistics};
pub use zone::Zone;
