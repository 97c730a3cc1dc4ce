//! How much more memory a consumer of DataFusion holds at its worst moment than it has reserved.
//!
//! Most operators reserve after the fact, and none reserves the copy it makes when it turns what it has
//! gathered into one array. A pool that takes reservations at their word lets the process grow past its
//! limit by that much. Each factor is the larger of what the source of DataFusion 55.2 says and what was
//! measured: bytes live in the allocator against bytes reserved, over 400,000 rows that arrive unordered.

/// By how much to multiply what `consumer` reserves, as numerator and denominator. At least one.
pub(crate) fn overhead(consumer: &str) -> (u64, u64) {
    match consumer.split(['[', ' ']).next().unwrap_or_default() {
        // `concat_batches` copies the whole build side while the batches it came from are still there; the
        // hash table is reserved as such. 1.3 for one integer column, 1.9 for wide rows.
        "HashJoinInput" => (2, 1),
        // The same copy, and no table. 2.0 both.
        "CrossJoinExec" | "NestedLoopJoinLoad" => (2, 1),
        // The copy is reserved, but once it is there.
        "PiecewiseMergeJoinInput" => (2, 1),
        // Groups are added, then reserved: when a table doubles, it has grown by half of what was refused.
        // At the end all groups become arrays at once: free of cost for numbers (1.0-1.1), a copy of the keys
        // for strings (1.3) and structs (1.6), of the state for min and max of strings (1.4). `array_agg` and
        // `string_agg` copy everything (2.2); the pool sees that in what the allocator says.
        "SingleHashAggregateStream"
        | "FinalHashAggregateStream"
        | "PartialHashAggregateStream"
        | "PartialReduceHashAggregateStream"
        | "DenseAggregateStream"
        | "RecursiveQueryHashTable" => (3, 2),
        // As these, but it reserves twice its size when it may spill.
        "GroupedHashAggregateStream" => (5, 4),
        // One group; it matters only where that holds all values. `array_agg` ends with a copy (2.0),
        // `string_agg` with another beside what a doubled string has free (2.9). For a sum it is a few bytes.
        "AggregateStream" => (3, 1),
        // Its rows, and the batches they were cut from: 1.4.
        "TopK" | "PartitionedTopK" | "PartitionedTopKRank" => (3, 2),
        // One batch and its keys are reserved for each input; another batch waits in each input's channel.
        "SortPreservingMergeExec" => (3, 2),
        // A sorter reserves each batch twice and holds at most 0.9 of that; its merge reserves batches and
        // keys. Sort-merge joins reserve whole batches, exchanges what is in their channels.
        _ => (1, 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_datafusion_registers() {
        for (name, times_one_hundred) in [
            ("HashJoinInput", 200),
            ("HashJoinInput[3]", 200),
            ("NestedLoopJoinLoad[0]", 200),
            ("CrossJoinExec", 200),
            ("FinalHashAggregateStream[11]", 150),
            ("GroupedHashAggregateStream[0] (sum(x), count(y))", 125),
            ("AggregateStream[0]", 300),
            ("TopK[0]", 150),
            ("SortPreservingMergeExec[0]", 150),
            ("ExternalSorter[0]", 100),
            ("ExternalSorterMerge[0]", 100),
            ("RepartitionExec[1]", 100),
            ("RepartitionExec[Merge 1]", 100),
            ("", 100),
        ] {
            let (numerator, denominator) = overhead(name);
            assert_eq!(100 * numerator / denominator, times_one_hundred, "{name}");
        }
    }
}
