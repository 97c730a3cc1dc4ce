//! A column of a segment in memory: its values, and what is known of them.

use datafusion::arrow::array::{Array, ArrayRef};
use datafusion::error::Result;

use crate::coding;
use crate::room::Room;
use crate::zone::Zone;

/// What a column takes beside its values: key, slot, statistics.
const OVERHEAD: usize = 512;

/// One column of one segment, decoded. Immutable, shared; its bytes count against the cache's limit until it is dropped.
#[derive(Debug)]
pub struct Column {
    /// The values: of the table's column type, or, for strings with few different values ("coded"),
    /// `Dictionary(UInt8 | UInt16, Utf8View)`. A dictionary holds each value once, no NULL, and none that is not used.
    pub data: ArrayRef,
    /// What is known of the values.
    pub zone: Zone,
    pub(crate) room: Option<Room>,
}

impl Column {
    /// A column of `values`, which are stored as small as they are fast to use.
    ///
    /// # Errors
    /// None for arrays that are valid.
    pub fn new(values: ArrayRef) -> Result<Self> {
        let data = coding::compact(values);
        let zone = Zone::of(&data)?;
        Ok(Self { data, zone, room: None })
    }

    /// Bytes that it takes in memory.
    pub fn bytes(&self) -> u64 {
        (self.data.get_array_memory_size() + self.zone.bytes() + OVERHEAD) as u64
    }
}
