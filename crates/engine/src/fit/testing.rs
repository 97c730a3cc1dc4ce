//! What the tests of the rules plan and run with.

use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, Int64Array, RecordBatch, StringViewArray};
use datafusion::arrow::util::pretty::pretty_format_batches;
use datafusion::common::Result;
use datafusion::datasource::MemTable;
use datafusion::execution::memory_pool::{FairSpillPool, MemoryPool};
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::physical_plan::{collect, displayable};
use datafusion::prelude::{DataFrame, SessionConfig, SessionContext};

use super::{Fit, careful_logical, rules};

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

/// The answer to `sql` within `limit` bytes, of a plan that is careful or as it comes.
pub(super) async fn attempt(limit: usize, careful: bool, sql: &str) -> Result<String> {
    let pool = Arc::new(FairSpillPool::new(limit));
    let fit = careful.then_some(Fit { room: limit, share: limit, careful });
    let context = context(if careful { 1 } else { 2 }, 1024, fit, Some(pool));
    let mut plan = context.sql(sql).await?.into_optimized_plan()?;
    let schema = Arc::clone(plan.schema());
    if careful {
        plan = careful_logical(plan)?;
        assert_eq!(plan.schema().as_arrow(), schema.as_arrow());
    }
    let batches = DataFrame::new(context.state(), plan).collect().await?;
    Ok(pretty_format_batches(&batches)?.to_string())
}

/// Asks for window functions over columns `v`, `k` and `t` of tables whose partitions by `k` are short, long, and as long as a
/// batch. The plans have `node` in them; the rows are those that stock DataFusion gives.
pub(super) async fn gives_what_stock_gives(queries: &[&str], node: &str) {
    let ones = [1; 100];
    let shapes: [&[usize]; 7] =
        [&[], &[1], &ones, &[500], &[32, 32, 32], &[31, 1, 1, 63, 300, 2, 1], &[1, 40, 2, 200, 1]];
    for sizes in shapes {
        for partitions in [1, 3] {
            let config = SessionConfig::new().with_target_partitions(partitions).with_batch_size(32);
            let (stock, ours) = (SessionContext::new_with_config(config), context(partitions, 32, None, None));
            for context in [&stock, &ours] {
                context.register_table("a", table(sizes)).expect("a name of its own");
            }
            for query in queries {
                let sql = format!("SELECT v, k, t, {query} FROM a");
                let plan = ours.sql(&sql).await.expect("it plans").create_physical_plan().await.expect("it plans");
                let shown = displayable(plan.as_ref()).indent(false).to_string();
                assert!(shown.contains(node), "{shown}");
                let batches = collect(plan, ours.task_ctx()).await.expect(&sql);
                assert!(batches.iter().all(|batch| batch.num_rows() <= 32), "{shown}");
                let expected = stock.sql(&sql).await.expect("it plans").collect().await.expect("it runs");
                assert_eq!(sorted(&batches), sorted(&expected), "{sizes:?}, {partitions} partitions: {sql}\n{shown}");
            }
        }
    }
}

/// Partitions of these many rows, one after the other.
fn table(sizes: &[usize]) -> Arc<MemTable> {
    let keys = sizes.iter().enumerate().flat_map(|(key, size)| std::iter::repeat_n(key, *size));
    let keys: Vec<_> = keys.map(|key| (key != 1).then_some(key as i64)).collect();
    let rows = keys.len() as i64;
    let batch = RecordBatch::try_from_iter([
        (
            "v",
            Arc::new((0..rows).map(|row| (row % 11 != 3).then_some(row * 7919 % 101)).collect::<Int64Array>())
                as ArrayRef,
        ),
        (
            "t",
            Arc::new(
                keys.iter()
                    .map(|key| key.map(|key| format!("the text of key number {}", key / 3)))
                    .collect::<StringViewArray>(),
            ),
        ),
        ("k", Arc::new(Int64Array::from(keys))),
    ]);
    let batch = batch.expect("columns of one length");
    // Not sorted as it comes.
    let halves = [
        batch.slice(batch.num_rows() / 2, batch.num_rows() - batch.num_rows() / 2),
        batch.slice(0, batch.num_rows() / 2),
    ];
    Arc::new(MemTable::try_new(batch.schema(), vec![halves.to_vec()]).expect("batches of one schema"))
}

/// The rows of `batches` as text, in an order that does not depend on theirs.
pub(super) fn sorted(batches: &[RecordBatch]) -> Vec<String> {
    let text = pretty_format_batches(batches).expect("it prints").to_string();
    let mut rows: Vec<_> = text.lines().filter(|line| line.starts_with('|')).map(str::to_owned).collect();
    rows.sort_unstable();
    rows
}
