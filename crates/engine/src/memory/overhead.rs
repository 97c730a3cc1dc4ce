//! How much more memory a consumer of DataFusion holds at its worst moment than it has reserved.
//!
//! Most operators reserve after the fact, and none reserves the copy it makes when it turns what it has
//! gathered into one array. A pool that takes reservations at their word lets the process grow past its
//! limit by that much. Each factor is the larger of what the source of DataFusion 55.2 says and what was
//! measured: bytes live in the allocator against bytes reserved, over 400,000 rows that arrive unordered.

/// Who holds more than it reserves: their names, and by how much to multiply what they reserve, as numerator and denominator.
const OVERHEADS: [(&[&str], (u64, u64)); 7] = [
    // `concat_batches` copies the whole build side while the batches it came from are still there; the
    // hash table is reserved as such. 1.3 for one integer column, 1.9 for wide rows.
    (&["HashJoinInput"], (2, 1)),
    // The same copy, and no table. 2.0 both.
    (&["CrossJoinExec", "NestedLoopJoinLoad"], (2, 1)),
    // Groups are added, then reserved: when a table doubles, it has grown by half of what was refused.
    // At the end all groups become arrays at once: free of cost for numbers (1.0-1.1), a copy of the keys
    // for strings (1.3) and structs (1.6), of the state for min and max of strings (1.4). `array_agg` and
    // `string_agg` copy everything (2.2); the pool sees that in what the allocator says.
    (
        &[
            "SingleHashAggregateStream",
            "FinalHashAggregateStream",
            "PartialHashAggregateStream",
            "DenseAggregateStream",
            "RecursiveQueryHashTable",
        ],
        (3, 2),
    ),
    // As these, but it reserves twice its size when it may spill.
    (&["GroupedHashAggregateStream"], (5, 4)),
    // One group; it matters only where that holds all values. `array_agg` ends with a copy (2.0),
    // `string_agg` with another beside what a doubled string has free (2.9). For a sum it is a few bytes.
    (&["AggregateStream"], (3, 1)),
    // Its rows, and the batches they were cut from: 1.4.
    (&["TopK", "PartitionedTopK", "PartitionedTopKRank"], (3, 2)),
    // One batch and its keys are reserved for each input; another batch waits in each input's channel.
    (&["SortPreservingMergeExec"], (3, 2)),
];

/// By how much to multiply what `consumer` reserves, as numerator and denominator. At least one.
///
/// All others reserve what they have. A sorter reserves each batch twice and holds at most 0.9 of that; its merge reserves
/// batches and keys. Sort-merge joins reserve whole batches, exchanges what is in their channels.
pub(crate) fn overhead(consumer: &str) -> (u64, u64) {
    let name = kind(consumer);
    OVERHEADS.iter().find(|(names, _)| names.contains(&name)).map_or((1, 1), |(_, factor)| *factor)
}

/// The name of a consumer without its partition and its functions.
pub(super) fn kind(consumer: &str) -> &str {
    consumer.split(['[', ' ']).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use datafusion::execution::runtime_env::RuntimeEnvBuilder;
    use datafusion::execution::session_state::SessionStateBuilder;
    use datafusion::prelude::{SessionConfig, SessionContext};

    use super::super::testing::Asked;
    use super::*;
    use crate::fit;

    /// Who reserves what it has.
    const EXACT: [&str; 9] = [
        "ExternalSorter",
        "ExternalSorterMerge",
        "OrderedFinalAggregateStream",
        "OrderedPartialAggregateStream",
        "RecursiveQuery",
        "RepartitionExec",
        "RunningWindow",
        "SMJStream",
        "WindowByPartition",
    ];

    /// For each operator that reserves memory one at least, in one or another of the plans below.
    const STATEMENTS: [&str; 14] = [
        "SELECT a.value, count(*) FROM range(9) a JOIN range(9) b USING (value) GROUP BY a.value",
        "SELECT a.value + b.value FROM range(9) a, range(9) b",
        "SELECT a.value + b.value FROM range(9) a LEFT JOIN range(9) b ON a.value < b.value",
        "SELECT value % 3, count(*) FROM range(9) GROUP BY value % 3 ORDER BY 2",
        "SELECT value % 3, value % 2, count(*) FROM range(9) GROUP BY CUBE (value % 3, value % 2)",
        "SELECT k, count(*) FROM (SELECT arrow_cast(value % 3, 'Int8') AS k FROM range(9)) GROUP BY k",
        "SELECT k, count(*) FROM (SELECT value % 3 AS k FROM range(9) ORDER BY k LIMIT 8) GROUP BY k",
        "SELECT sum(value) FROM range(9)",
        "SELECT value FROM range(9) ORDER BY value % 7 LIMIT 3",
        "SELECT value FROM range(9) QUALIFY row_number() OVER (PARTITION BY value % 3 ORDER BY value % 5) <= 2",
        "SELECT value FROM range(9) QUALIFY rank() OVER (PARTITION BY value % 3 ORDER BY value % 5) <= 2",
        "SELECT sum(value) OVER (PARTITION BY value % 3) FROM range(9)",
        "SELECT row_number() OVER (ORDER BY value % 3) FROM range(9)",
        "WITH RECURSIVE r AS (SELECT 0 AS n UNION SELECT (n + 1) % 5 FROM r) SELECT n FROM r",
    ];

    #[tokio::test]
    async fn names_are_those_that_operators_register() {
        let asked = Arc::new(Asked::default());
        for (partitions, prefer_hash_join) in [(1, true), (2, true), (2, false)] {
            let mut config = SessionConfig::new().with_target_partitions(partitions);
            let optimizer = &mut config.options_mut().optimizer;
            optimizer.prefer_hash_join = prefer_hash_join;
            optimizer.enable_window_topn = true;
            let environment = RuntimeEnvBuilder::new().with_memory_pool(Arc::clone(&asked) as _);
            let state = SessionStateBuilder::new()
                .with_config(config)
                .with_runtime_env(environment.build_arc().expect("an environment"))
                .with_default_features()
                .with_physical_optimizer_rules(fit::rules());
            let context = SessionContext::new_with_state(state.build());
            for sql in STATEMENTS {
                context.sql(sql).await.expect(sql).collect().await.expect(sql);
            }
        }
        let names = asked.names();
        let registered: BTreeSet<_> = names.iter().map(|name| kind(name)).collect();
        let known: BTreeSet<_> = OVERHEADS.iter().flat_map(|(names, _)| *names).chain(&EXACT).copied().collect();
        assert_eq!(registered, known);
    }
}
