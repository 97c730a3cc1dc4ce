//! The DataFusion session state that every query starts from, and what it runs on.

use std::sync::Arc;

use datafusion::config::ConfigNonZeroUsize;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::execution::{FunctionRegistry, SessionState, TaskContext};
use datafusion::prelude::SessionConfig;
use updraft_catalog::Catalog;

use super::Engine;
use crate::config::Config;
use crate::cooperate::Cooperate;
use crate::error::Error;
use crate::memory;
use crate::settings::Settings;
use crate::spill::SpillFolders;

/// The state that is cloned for every query: building one anew costs more than most queries.
///
/// # Errors
/// What DataFusion says of a folder it cannot use.
pub(super) fn template(
    config: &Config,
    memory_limit: u64,
    catalog: &Catalog,
    spill: &SpillFolders,
) -> Result<SessionState, Error> {
    let mut template = SessionStateBuilder::new()
        .with_config(session_config(&config.time_zone))
        .with_runtime_env(runtime_env(config, memory_limit, catalog, spill)?)
        .with_default_features()
        .with_physical_optimizer_rule(Arc::new(Cooperate))
        .build();
    follow_config(&mut template);
    Ok(template)
}

impl Engine {
    /// A session state with these settings, on the shared runtime, without tables.
    pub(crate) fn state(&self, settings: &Settings) -> SessionState {
        let mut state = self.template.clone();
        let options = state.config_mut().options_mut();
        options.execution.target_partitions = settings.target_partitions;
        options.execution.planning_concurrency = settings.target_partitions;
        options.execution.batch_size =
            ConfigNonZeroUsize::try_new(settings.batch_size).expect("settings hold checked values");
        options.execution.time_zone = Some(settings.time_zone.clone());
        options.catalog.default_catalog = settings.catalog.clone();
        options.catalog.default_schema = settings.schema.clone();
        if settings.time_zone != self.config.time_zone {
            follow_config(&mut state);
        }
        state.mark_start_execution();
        state
    }

    /// What a run of a query executes with: the shared runtime, its memory capped for this query.
    pub(crate) fn task_context(&self, state: &SessionState, settings: &Settings) -> Result<Arc<TaskContext>, Error> {
        let context = TaskContext::from(state);
        if settings.query_memory_limit >= self.memory_limit {
            return Ok(Arc::new(context));
        }
        let shared = self.template.runtime_env();
        let pool = memory::query_pool(Arc::clone(&shared.memory_pool), settings.query_memory_limit);
        let runtime = RuntimeEnvBuilder::from_runtime_env(shared).with_memory_pool(pool).build_arc()?;
        Ok(Arc::new(context.with_runtime(runtime)))
    }
}

/// Gives the functions that keep a part of the config, such as `now()` its time zone, the present one.
fn follow_config(state: &mut SessionState) {
    let options = state.config().options();
    let functions = state.scalar_functions().values();
    let changed: Vec<_> = functions.filter_map(|function| function.inner().with_updated_config(options)).collect();
    for function in changed {
        // Only a function of the same name is replaced, which a session state never refuses.
        let _ = state.register_udf(Arc::new(function));
    }
}

/// What no session changes, and the server's time zone.
fn session_config(time_zone: &str) -> SessionConfig {
    let mut config = SessionConfig::new()
        .with_information_schema(true)
        .with_create_default_catalog_and_schema(false)
        .with_default_catalog_and_schema(updraft_catalog::CATALOG, updraft_catalog::SCHEMA);
    let options = config.options_mut();
    options.execution.time_zone = Some(time_zone.to_owned());
    // `0.1` is the decimal it says, as in DuckDB and PostgreSQL, and not the nearest double.
    options.sql_parser.parse_float_as_decimal = true;
    // A file may be bigger than memory: small read buffers, compressed spills.
    options.execution.spill_compression = datafusion::config::SpillCompression::Lz4Frame;
    options.execution.sort_pushdown_buffer_capacity = 32 << 20;
    options.execution.enforce_batch_size_in_joins = true;
    config
}

fn runtime_env(
    config: &Config,
    memory_limit: u64,
    catalog: &Catalog,
    spill: &SpillFolders,
) -> Result<Arc<RuntimeEnv>, Error> {
    let disk = DiskManagerBuilder::default()
        .with_mode(DiskManagerMode::Directories(spill.paths()))
        .with_max_temp_directory_size(config.spill_limit.0);
    Ok(RuntimeEnvBuilder::new()
        .with_memory_pool(memory::pool(config.memory_pool, memory_limit))
        .with_disk_manager_builder(disk)
        .with_object_store_registry(catalog.object_stores())
        .build_arc()?)
}
