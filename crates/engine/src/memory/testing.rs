//! A pool that writes down who asks it for memory, and a cache that gives it back.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use datafusion::common::Result;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryPool, MemoryReservation};
use parking_lot::Mutex;

use super::budget::Reclaim;
use super::refusal::refused;

/// Gives to everyone but those whose name begins with `refuses`.
#[derive(Debug, Default)]
pub(super) struct Asked {
    refuses: Option<&'static str>,
    names: Mutex<BTreeSet<String>>,
}

impl Asked {
    pub(super) fn refusing(name: &'static str) -> Arc<Self> {
        Arc::new(Self { refuses: Some(name), ..Self::default() })
    }

    /// Who has registered, whether it asked for a byte or not.
    pub(super) fn names(&self) -> Vec<String> {
        self.names.lock().iter().cloned().collect()
    }
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl MemoryPool for Asked {
    fn name(&self) -> &str {
        "asked"
    }

    fn register(&self, consumer: &MemoryConsumer) {
        self.names.lock().insert(consumer.name().to_owned());
    }

    fn grow(&self, _: &MemoryReservation, _: usize) {}

    fn shrink(&self, _: &MemoryReservation, _: usize) {}

    fn try_grow(&self, reservation: &MemoryReservation, _: usize) -> Result<()> {
        match self.refuses {
            Some(name) if reservation.consumer().name().starts_with(name) => {
                Err(refused(reservation, format!("{} gets nothing", reservation.consumer().name())))
            }
            _ => Ok(()),
        }
    }

    fn reserved(&self) -> usize {
        0
    }
}

/// Holds so many bytes, and lets go of what it is asked for.
#[derive(Debug)]
pub(crate) struct Cache(pub(crate) AtomicU64);

impl Reclaim for Cache {
    fn reclaim(&self, bytes: u64) -> u64 {
        let let_go = bytes.min(self.held());
        self.0.fetch_sub(let_go, Ordering::Relaxed);
        let_go
    }

    fn held(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn keeps_a_part(&self) -> bool {
        true
    }
}
