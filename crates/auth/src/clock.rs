use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Where time comes from. Wall time decides on expiry dates, steady time on waiting: a wall clock that jumps must not
/// lock anybody out or let anybody in early.
#[derive(Debug, Clone)]
pub struct Clock(Source);

#[derive(Debug, Clone)]
enum Source {
    System { start: Instant },
    Manual { milliseconds: Arc<AtomicU64> },
}

impl Clock {
    /// The machine's clocks.
    pub fn system() -> Self {
        Self(Source::System { start: Instant::now() })
    }

    /// A clock that stands still until told to [`advance`](Self::advance). Wall time starts at `unix_seconds`.
    pub fn manual(unix_seconds: u64) -> Self {
        Self(Source::Manual { milliseconds: Arc::new(AtomicU64::new(unix_seconds.saturating_mul(1000))) })
    }

    /// Moves a manual clock and all its clones forward. The machine's clocks take no orders.
    pub fn advance(&self, by: Duration) {
        if let Source::Manual { milliseconds } = &self.0 {
            milliseconds.fetch_add(u64::try_from(by.as_millis()).unwrap_or(u64::MAX), Ordering::SeqCst);
        }
    }

    /// Wall time, seconds since 1970.
    pub fn unix_seconds(&self) -> i64 {
        let seconds = match &self.0 {
            // A machine set before 1970 reads as 1970: every token has then expired rather than none.
            Source::System { .. } => SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
            Source::Manual { milliseconds } => milliseconds.load(Ordering::SeqCst) / 1000,
        };
        i64::try_from(seconds).unwrap_or(i64::MAX)
    }

    /// Steady time since some fixed moment.
    pub fn steady(&self) -> Duration {
        match &self.0 {
            Source::System { start } => start.elapsed(),
            Source::Manual { milliseconds } => Duration::from_millis(milliseconds.load(Ordering::SeqCst)),
        }
    }
}
