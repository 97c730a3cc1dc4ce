//! Bytes taken of a limit, and given back by `Drop`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A limit in bytes, and how many of them are taken.
#[derive(Debug)]
pub(crate) struct Limit {
    pub(crate) bytes: u64,
    taken: Arc<AtomicU64>,
}

/// Bytes taken of a [`Limit`].
#[derive(Debug)]
pub(crate) struct Room {
    bytes: u64,
    taken: Arc<AtomicU64>,
}

impl Limit {
    pub(crate) fn new(bytes: u64) -> Self {
        Self { bytes, taken: Arc::default() }
    }

    /// Bytes that are taken.
    pub(crate) fn taken(&self) -> u64 {
        self.taken.load(Ordering::Acquire)
    }

    /// Bytes that are not.
    pub(crate) fn free(&self) -> u64 {
        self.bytes.saturating_sub(self.taken())
    }

    /// Takes `bytes`, if there are as many.
    pub(crate) fn take(&self, bytes: u64) -> Option<Room> {
        let mut room = Room { bytes: 0, taken: Arc::clone(&self.taken) };
        self.resize(&mut room, bytes).then_some(room)
    }

    /// Makes `room` exactly `bytes`; `false`, and nothing is changed, when it would have to grow and there are not as many.
    pub(crate) fn resize(&self, room: &mut Room, bytes: u64) -> bool {
        let resized = |taken: u64| {
            (taken - room.bytes).checked_add(bytes).filter(|all| bytes <= room.bytes || *all <= self.bytes)
        };
        let fits = self.taken.fetch_update(Ordering::AcqRel, Ordering::Acquire, resized).is_ok();
        if fits {
            room.bytes = bytes;
        }
        fits
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.taken.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_never_passes_the_limit_and_comes_back() {
        let limit = Limit::new(10);
        let mut a = limit.take(6).expect("free");
        assert!(limit.take(5).is_none());
        let b = limit.take(4).expect("the last byte");
        assert_eq!((limit.taken(), limit.free()), (10, 0));
        assert!(!limit.resize(&mut a, 7), "nothing is left");
        assert!(limit.resize(&mut a, 2));
        assert!(limit.resize(&mut a, 6));
        assert!(!limit.resize(&mut a, u64::MAX), "no overflow");
        drop((a, b));
        assert_eq!(limit.taken(), 0);
    }
}
