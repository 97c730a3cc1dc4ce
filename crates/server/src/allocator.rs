//! The allocator of the process, and what it says of itself.
//!
//! jemalloc, because it gives freed pages back after a time that can be set, and because it counts: the
//! engine's memory guard compares what queries have reserved with what is really there. C libraries use it as well.
//!
//! How many arenas there are and what threads keep is compiled in, by `.cargo/config.toml`: the rest can be set while it runs.

use tikv_jemalloc_ctl::{Access, AsName, arenas, background_thread, epoch, stats};
use tracing::warn;

#[global_allocator]
static JEMALLOC: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// How long freed pages are kept for the next allocation, in milliseconds. Long enough for a query that
/// allocates batch after batch; short enough that memory is back a second after a query.
const DECAY_MS: isize = 1_000;

/// Blocks of this size and more have an arena of their own, which is made with the first of them.
const LARGE_BYTES: usize = 8 << 20;

/// jemalloc, as the engine asks it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Jemalloc;

impl Jemalloc {
    /// Has freed pages given back in time, also by arenas that nobody uses any more.
    pub(crate) fn tune() -> Self {
        // That arena gives pages back at once, and has to clear new ones for the next column chunk, unless it is told to
        // wait when it is there.
        drop(std::hint::black_box(Vec::<u8>::with_capacity(LARGE_BYTES)));
        let tuned = background_thread::write(true)
            .and_then(|()| b"arenas.dirty_decay_ms\0".name().write(DECAY_MS))
            .and_then(|()| b"arenas.muzzy_decay_ms\0".name().write(0_isize))
            .and_then(|()| set_decay(DECAY_MS));
        if let Err(error) = tuned {
            warn!(%error, "cannot tune the allocator; freed memory may come back late");
        }
        Self
    }
}

impl updraft_engine::Allocator for Jemalloc {
    fn allocated(&self) -> Option<u64> {
        epoch::advance().ok()?;
        Some(stats::allocated::read().ok()? as u64)
    }

    fn purge(&self) {
        // Pages that may be kept for no time at all are given back at once.
        if let Err(error) = set_decay(0).and_then(|()| set_decay(DECAY_MS)) {
            warn!(%error, "cannot give free memory back");
        }
    }
}

/// For the arenas there are.
fn set_decay(ms: isize) -> Result<(), tikv_jemalloc_ctl::Error> {
    for arena in 0..arenas::narenas::read()? {
        let key = format!("arena.{arena}.dirty_decay_ms\0");
        // An arena that was not used yet has no such key, nothing to give back, and takes the default when it is.
        let _ = key.as_bytes().name().write(ms);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use updraft_engine::Allocator;

    use super::*;

    /// What the other tests have beside it comes and goes.
    const OTHERS: u64 = 1 << 29;

    #[test]
    fn it_counts_and_gives_back() {
        let jemalloc = Jemalloc::tune();
        let before = jemalloc.allocated().expect("it counts");
        // Counted, but not there as long as nobody writes to it.
        let block = std::hint::black_box(Vec::<u8>::with_capacity(1 << 30));
        let with = jemalloc.allocated().expect("it counts");
        assert!(with >= before + OTHERS, "{before} {with}");
        drop(block);
        jemalloc.purge();
        assert!(jemalloc.allocated().expect("it counts") < with - OTHERS);
    }
}
