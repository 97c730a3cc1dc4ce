//! What the tests of the rules plan and run with.

use std::sync::Arc;

use datafusion::execution::memory_pool::MemoryPool;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::prelude::{SessionConfig, SessionContext};

use super::{Fit, rules};

/// Bytes a sort sets aside for its merge: little, so that tests can spill with little.
const SORT_RESERVATION: usize = 64 << 10;

/// Plans with the rules of this module, to fit as `fit` says, in so many partitions of batches of `rows`; runs in `pool`.
pub(super) fn context(
    partitions: usize,
    rows: usize,
    fit: Option<Fit>,
    pool: Option<Arc<dyn MemoryPool>>,
) -> SessionContext {
    let mut config = SessionConfig::new().with_target_partitions(partitions).with_batch_size(rows);
    if let Some(fit) = fit {
        config.options_mut().extensions.insert(fit);
    }
    config.options_mut().execution.sort_spill_reservation_bytes = SORT_RESERVATION;
    let environment = match pool {
        Some(pool) => RuntimeEnvBuilder::new().with_memory_pool(pool),
        None => RuntimeEnvBuilder::new(),
    };
    let state = SessionStateBuilder::new()
        .with_config(config)
        .with_runtime_env(environment.build_arc().expect("an environment"))
        .with_default_features()
        .with_physical_optimizer_rules(rules());
    SessionContext::new_with_state(state.build())
}
