//! The allocator of the process, and what it says of itself.
//!
//! jemalloc, because it gives freed pages back after a while that can be set, and because it counts: the
//! engine's memory guard compares what queries have reserved with what is really there.

use tikv_jemalloc_ctl::{epoch, stats};

#[global_allocator]
static JEMALLOC: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Bytes in live allocations now.
pub(crate) fn allocated() -> Option<u64> {
    epoch::advance().ok()?;
    Some(stats::allocated::read().ok()? as u64)
}
