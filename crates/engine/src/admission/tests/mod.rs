//! What the tests of the queue share: a budget in bytes, and small limits.

mod order;
mod storm;
mod waiting;

use std::sync::atomic::{AtomicI64, Ordering};

use super::*;

/// Bytes that are free.
#[derive(Debug, Clone)]
struct Budget(Arc<AtomicI64>);

/// Bytes that were taken.
#[derive(Debug)]
struct Grant(Budget, i64);

impl Budget {
    fn new(bytes: i64) -> Self {
        Self(Arc::new(AtomicI64::new(bytes)))
    }

    fn free(&self) -> i64 {
        self.0.load(Ordering::SeqCst)
    }

    fn take(&self, bytes: i64) -> impl FnMut() -> Option<Grant> + Send + use<> {
        let budget = self.clone();
        move || {
            let taken = budget
                .0
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |free| (free >= bytes).then_some(free - bytes));
            taken.ok().map(|_| Grant(budget.clone(), bytes))
        }
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        self.0.0.fetch_add(self.1, Ordering::SeqCst);
    }
}

fn config(principals: &[(&str, PrincipalConfig)]) -> Config {
    Config {
        max_concurrent_queries: 2,
        max_light_queries: 1,
        max_queued: 4,
        principals: principals.iter().map(|(name, own)| ((*name).to_owned(), own.clone())).collect(),
        ..Config::default()
    }
}

fn admission(config: &Config) -> Arc<Admission<Grant>> {
    Admission::new(config, Arc::new(PerPrincipal::limits(config, 1, 1 << 30)), 1)
}

fn principal(name: &str) -> Principal {
    Principal::new(name)
}
