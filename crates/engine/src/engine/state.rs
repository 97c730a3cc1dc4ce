//! The DataFusion session state that every query starts from, and what it runs on.

use std::collections::HashMap;
use std::sync::Arc;

use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::config::{ConfigNonZeroUsize, ConfigOptions};
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::GreedyMemoryPool;
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::execution::{FunctionRegistry, SessionState, TaskContext};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::streaming::StreamingTableExec;
use datafusion::prelude::SessionConfig;
use updraft_catalog::Catalog;

use super::Engine;
use crate::config::{Config, SpillCompression};
use crate::error::Error;
use crate::fit::{self, Fit};
use crate::footprint::Shape;
use crate::growing;
use crate::launch::Effort;
use crate::memory::QueryMemory;
use crate::not_in;
use crate::settings::Settings;

/// A plan is made for one part in this many of what its query may hold at most, however little is free.
const ROOM_MIN: u64 = 4;

/// What one task builds for a join, at most, times the number of threads that wait for it.
const SHARED_BUILD_ROWS: usize = 2 << 20;
const SHARED_BUILD_BYTES: usize = 64 << 20;

/// The state that is cloned for every query: building one anew costs more than most queries.
///
/// # Errors
/// What DataFusion says of an option it does not take.
pub(super) fn template(config: &Config, catalog: &Catalog) -> Result<SessionState, Error> {
    let mut template = SessionStateBuilder::new()
        .with_config(session_config(config)?)
        .with_runtime_env(runtime_env(catalog)?)
        .with_default_features()
        .with_optimizer_rules(not_in::rules())
        .with_physical_optimizer_rules(fit::rules())
        .build();
    follow_config(&mut template);
    growing::bind(&mut template);
    Ok(template)
}

impl Engine {
    /// A session state with these settings, on the shared runtime, without tables.
    pub(crate) fn state(&self, settings: &Settings) -> SessionState {
        let mut state = self.template.clone();
        let options = state.config_mut().options_mut();
        options.execution.batch_size = batch_size(settings.batch_size);
        options.execution.time_zone = Some(settings.time_zone.clone());
        options.catalog.default_catalog = settings.catalog.clone();
        options.catalog.default_schema = settings.schema.clone();
        growing::allow(options, self.query_limit(settings));
        if settings.time_zone != self.config.time_zone {
            follow_config(&mut state);
        }
        state.mark_start_execution();
        state
    }

    /// The most that a query may hold, in bytes.
    fn query_limit(&self, settings: &Settings) -> u64 {
        settings.query_memory_limit.min(self.memory.limit())
    }

    /// What a query's plan is to fit into, in bytes; `None` = its plan need not fit.
    pub(crate) fn room(&self, settings: &Settings, effort: Effort) -> Option<usize> {
        if !self.memory.counts_all() {
            return None;
        }
        let most = self.query_limit(settings);
        // What others hold now may be free in a moment.
        let room = if effort.is_careful() { most } else { most.min(self.memory.free()).max(most / ROOM_MIN) };
        Some(usize::try_from(room).unwrap_or(usize::MAX))
    }

    /// The state with which a query is planned in this shape, to fit into `room`.
    pub(crate) fn shaped(
        &self,
        settings: &Settings,
        shape: Shape,
        effort: Effort,
        room: Option<usize>,
    ) -> SessionState {
        let mut state = self.state(settings);
        let options = state.config_mut().options_mut();
        options.execution.target_partitions = shape.partitions;
        options.execution.planning_concurrency = shape.partitions;
        options.execution.batch_size = batch_size(shape.batch_size);
        if effort.is_in_parts() {
            // The filter is of the build sides of all partitions, and the first row of any waits for it.
            options.optimizer.enable_join_dynamic_filter_pushdown = false;
        }
        let careful = effort.is_careful();
        if careful {
            // The build side of a hash join cannot be spilled; what is sorted for a merge join can.
            options.optimizer.prefer_hash_join = false;
            // A sort puts batches together before it sorts them, and asks for more memory then, when it has all there is
            // and is about to spill. Each is sorted alone, and more are merged.
            options.execution.sort_in_place_threshold_bytes = 0;
        }
        if let Some(room) = room {
            options.extensions.insert(Fit { room, share: room / self.running().max(1), careful });
        }
        state
    }

    /// What a run of a query executes with: the shared runtime, with memory and spill space of its own, of which each
    /// sort sets `sort_reservation` bytes aside, or what the operator said if that is less.
    ///
    /// # Errors
    /// What DataFusion says of the spill space.
    pub(crate) fn task_context(
        &self,
        plan: &Arc<dyn ExecutionPlan>,
        config: &SessionConfig,
        memory: Arc<QueryMemory>,
        spill: DiskManagerBuilder,
        sort_reservation: usize,
    ) -> Result<Arc<TaskContext>, Error> {
        let runtime = RuntimeEnv {
            memory_pool: memory,
            disk_manager: Arc::new(spill.build()?),
            ..RuntimeEnv::clone(self.template.runtime_env())
        };
        let mut config = config.clone();
        let configured = config.options().execution.sort_spill_reservation_bytes;
        // Without any, our pool could not tell a sort that gathers rows from one that merges them.
        let sort_reservation = sort_reservation.min(configured).max(1);
        if sort_reservation != configured {
            config.options_mut().execution.sort_spill_reservation_bytes = sort_reservation;
        }
        let session = self.template.session_id().to_owned();
        // Operators have the functions they call, and copying all there are takes longer than many a query.
        if lists_functions(plan)? {
            let all = TaskContext::from(&self.template);
            return Ok(Arc::new(all.with_session_config(config).with_runtime(Arc::new(runtime))));
        }
        let (scalar, higher_order) = (HashMap::new(), HashMap::new());
        let (aggregate, window) = (HashMap::new(), HashMap::new());
        let runtime = Arc::new(runtime);
        Ok(Arc::new(TaskContext::new(None, session, config, scalar, higher_order, aggregate, window, runtime)))
    }
}

/// Whether a table of `information_schema` is read: some list functions, and nothing else of ours streams tables.
fn lists_functions(plan: &Arc<dyn ExecutionPlan>) -> Result<bool, Error> {
    let mut lists = false;
    plan.apply(|node| {
        lists |= node.is::<StreamingTableExec>();
        Ok(if lists { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    })?;
    Ok(lists)
}

fn batch_size(rows: usize) -> ConfigNonZeroUsize {
    ConfigNonZeroUsize::try_new(rows).expect("settings and shapes hold checked values")
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

/// What no session changes, the server's time zone, and the operator's options of DataFusion.
fn session_config(config: &Config) -> Result<SessionConfig, Error> {
    let mut session = SessionConfig::new()
        .with_information_schema(true)
        .with_create_default_catalog_and_schema(false)
        .with_default_catalog_and_schema(updraft_catalog::CATALOG, updraft_catalog::SCHEMA);
    let options = session.options_mut();
    options.execution.time_zone = Some(config.time_zone.clone());
    // `0.1` is the decimal it says, as in DuckDB and PostgreSQL, and not the nearest double.
    options.sql_parser.parse_float_as_decimal = true;
    // A file may be bigger than memory: small read buffers, compressed spills.
    options.execution.spill_compression = match config.spill_compression {
        SpillCompression::Lz4 => datafusion::config::SpillCompression::Lz4Frame,
        SpillCompression::Zstd => datafusion::config::SpillCompression::Zstd,
        SpillCompression::None => datafusion::config::SpillCompression::Uncompressed,
    };
    // Only exchanges read this. With more than one batch in a file, an exchange whose inputs spill at the same time
    // can wait for ever: its reader waits for the rest of a file whose writer waits for the reader.
    options.execution.max_spill_file_size_bytes = ConfigNonZeroUsize::try_new(1).expect("one is not zero");
    options.execution.sort_pushdown_buffer_capacity = 32 << 20;
    options.execution.enforce_batch_size_in_joins = true;
    choose_joins(options, config.cpu_threads);
    // What a reader that filters keeps of the filter's columns. Nothing counts it, and left alone it is 100 MiB.
    options.execution.parquet.max_predicate_cache_size = Some(8 << 20);
    config.datafusion.apply(options)?;
    Ok(session)
}

/// When one task builds the table of a join for all, and when that is an array by key in place of a hash table. Both
/// figures are of TPC-H SF1 from memory on two cores, with stock DataFusion.
fn choose_joins(options: &mut ConfigOptions, threads: usize) {
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    let threads = if threads == 0 { cores() } else { threads };
    // All wait for that task, and in return neither side is exchanged: 3.7 s become 3.3 s. With many threads to wait it
    // pays for as few rows as DataFusion has it.
    let joins = &mut options.optimizer;
    let (rows, bytes) =
        (&mut joins.hash_join_single_partition_threshold_rows, &mut joins.hash_join_single_partition_threshold);
    (*rows, *bytes) = ((SHARED_BUILD_ROWS / threads).max(*rows), (SHARED_BUILD_BYTES / threads).max(*bytes));
    // One place in twenty taken is 80 bytes a row, and no row is hashed: 2.4 s become 2.0 s in seven joins along keys, of
    // which a filter and an exchange leave less than the 15 % that DataFusion asks for.
    options.execution.perfect_hash_join_min_key_density = 0.05;
    // A few keys wherever they are among a million cost 4 MiB at most, and the other side looks them up without hashing.
    options.execution.perfect_hash_join_small_build_threshold = 1 << 20;
}

fn runtime_env(catalog: &Catalog) -> Result<Arc<RuntimeEnv>, Error> {
    Ok(RuntimeEnvBuilder::new()
        // Each run of a query brings memory and a disk manager of its own; nothing may run outside one.
        .with_memory_pool(Arc::new(GreedyMemoryPool::new(0)))
        .with_disk_manager_builder(DiskManagerBuilder::default().with_mode(DiskManagerMode::Disabled))
        .with_object_store_registry(catalog.object_stores())
        .build_arc()?)
}
