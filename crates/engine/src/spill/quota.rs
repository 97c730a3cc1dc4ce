//! A number of bytes that may be in use at a time.

use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes in use, the most there were, and the most there may be.
#[derive(Debug)]
pub(super) struct Quota {
    used: AtomicU64,
    peak: AtomicU64,
    limit: u64,
}

impl Quota {
    pub(super) fn new(limit: u64) -> Self {
        Self { used: AtomicU64::new(0), peak: AtomicU64::new(0), limit }
    }

    /// Takes `bytes`, or nothing when they do not fit.
    pub(super) fn take(&self, bytes: u64) -> bool {
        let fits = |used: u64| used.checked_add(bytes).filter(|used| *used <= self.limit);
        let taken = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits);
        if let Ok(before) = taken {
            self.peak.fetch_max(before + bytes, Ordering::Relaxed);
        }
        taken.is_ok()
    }

    pub(super) fn give_back(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    pub(super) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    pub(super) fn peak(&self) -> u64 {
        self.peak.load(Ordering::Relaxed)
    }

    pub(super) fn limit(&self) -> u64 {
        self.limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_byte_fits_and_one_more_does_not() {
        let quota = Quota::new(10);
        assert!(quota.take(7) && quota.take(3));
        assert!(!quota.take(1) && !quota.take(u64::MAX));
        quota.give_back(4);
        assert!(quota.take(4));
        quota.give_back(9);
        assert_eq!((quota.used(), quota.peak()), (1, 10));
    }
}
