//! A column of a segment in memory: its values, and what is known of them.

use datafusion::arrow::array::{Array, ArrayRef};
use datafusion::arrow::datatypes::DataType;
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
    /// `Dictionary(UInt8 | UInt16, Utf8View)`. Such a dictionary holds each value once, no NULL, and none that no row has.
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
        // A dictionary that comes from a file keeps no promise: it may hold what no row has, or a value twice.
        let zone_known = !matches!(values.data_type(), DataType::Dictionary(..));
        let data = coding::compact(values);
        let zone = if zone_known { Zone::of(&data)? } else { Zone::unknown(&data)? };
        Ok(Self { data, zone, room: None })
    }

    /// Bytes that it takes in memory.
    pub fn bytes(&self) -> u64 {
        (self.data.get_array_memory_size() + self.zone.bytes() + OVERHEAD) as u64
    }
}
