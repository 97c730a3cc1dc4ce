//! What a plan will need of memory, estimated before it runs.
//!
//! Never: I/O, and nothing that depends on the rows themselves. An estimate that turns out too low costs a query a
//! wait or a second try; the memory pool, not this, is what holds the budget.
//!
//! | module | its story |
//! |---|---|
//! | `shape` | before planning: how many partitions, how many rows per batch, and the ladder of smaller ones |
//! | `walk` | the walk over the plan, and what it adds up |
//! | `operators` | what each operator holds, reserved and not |
//! | `scan` | what a scan of files holds |
//! | `phases` | which operators hold memory at the same time |
//! | `width` | bytes per row |

mod operators;
mod phases;
mod scan;
mod shape;
#[cfg(test)]
mod tests;
mod walk;
mod width;

use std::sync::Arc;

use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties};

use operators::PER_RUN;

use crate::memory::Spillers;

pub(crate) use shape::{ScanSize, Shape, ladder, partitions_for, scan_size};

/// Below these a scan is tiny: one row group as many writers make them, which is read in some ten milliseconds.
const TINY_BYTES: u64 = 8 << 20;
const TINY_ROWS: u64 = 200_000;
/// The same for files that are compressed as a whole, and may hold a thousand times as much.
const TINY_PACKED_BYTES: u64 = 64 << 10;
/// The most rows that any operator of a light query may come to in the worst case, such as all pairs of a join.
const LIGHT_ROWS: u64 = 2_000_000;
/// The most memory that a light query needs.
const LIGHT_BYTES: u64 = 64 << 20;

/// The most that a sort is told to set aside for its merge: DataFusion's default.
const SORT_RESERVATION_MAX: u64 = 10 << 20;

/// What a plan will need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Footprint {
    /// Bytes that DataFusion 55.2 holds without reserving them: row groups and batches in flight, channels,
    /// and what waits for the client. What aggregates hold a second time while they give their groups is not in it.
    pub(crate) unaccounted: u64,
    /// The least that its operators can reserve and still get on, by spilling what can be spilled.
    pub(crate) minimum: u64,
    /// What they would reserve if nothing were scarce; `None` when the statistics do not tell.
    pub(crate) appetite: Option<u64>,
    /// The most partitions of any of its operators.
    pub(crate) partitions: usize,
    /// Bytes it reads from files, as stored.
    pub(crate) scan_bytes: u64,
    /// Rows it reads from files, if their number is known.
    pub(crate) scan_rows: Option<u64>,
    /// The most bytes that its rows come to, as far as it is known how long they are.
    pub(crate) answer: u64,
    /// It is over in milliseconds whatever the data: metadata, answers from statistics, tiny scans.
    pub(crate) is_light: bool,
    /// Sorts that may run at the same time, each partition counted.
    sorts: u64,
    /// Operators that may spill at the same time, sorts among them, each partition counted.
    spillers: u64,
    /// Bytes of the largest batch that one of them spills.
    spilled_batch: u64,
    /// What a sort holds of a row to compare it, for a hundred bytes of the row; of that sort where it is most.
    compared: u64,
}

/// Weighs `plan`, which gives batches of `batch_size` rows to a client for whom `stream_buffer` bytes may wait.
pub(crate) fn of(plan: &Arc<dyn ExecutionPlan>, batch_size: usize, stream_buffer: u64) -> Footprint {
    let (root, sums) = walk::weigh(plan.as_ref(), batch_size);
    // One batch is being encoded while another is made (by several tasks, their parts take of the buffer), and while
    // partitions are merged, one of each waits and one is being made.
    let batches = match plan.output_partitioning().partition_count() as u64 {
        0 | 1 => 2,
        partitions => partitions.saturating_mul(2).saturating_add(2),
    };
    let client = stream_buffer.saturating_add(root.batch.saturating_mul(batches));
    let minimum = root.minimum.peak();
    let unaccounted = root.unaccounted.peak();
    let is_tiny = match sums.scan_rows {
        Some(rows) => rows < TINY_ROWS && sums.scan_bytes < TINY_BYTES,
        None if sums.packed => sums.scan_bytes < TINY_PACKED_BYTES,
        None => sums.scan_bytes < TINY_BYTES,
    };
    Footprint {
        unaccounted: unaccounted.saturating_add(client),
        minimum,
        appetite: sums.appetite_known.then(|| root.appetite.peak().max(minimum)),
        partitions: sums.partitions,
        scan_bytes: sums.scan_bytes,
        scan_rows: sums.scan_rows,
        answer: root.batch.saturating_mul(root.rows_max.div_ceil(batch_size.max(1) as u64)),
        is_light: is_tiny && root.rows_max_below <= LIGHT_ROWS && minimum.saturating_add(unaccounted) <= LIGHT_BYTES,
        sorts: sums.sorts,
        spillers: sums.spillers,
        spilled_batch: sums.spilled_batch,
        compared: sums.compared,
    }
}

impl Footprint {
    /// What `datafusion.execution.sort_spill_reservation_bytes` should be for a query that may reserve `room`.
    ///
    /// Each sort sets it aside before its first row, however little it sorts. A quarter of the room for all of them
    /// leaves the rest to what they sort; below two runs' batches the merge could not begin without more.
    pub(crate) fn sort_reservation(&self, room: u64) -> usize {
        let quarter = room / self.sorts.max(1).saturating_mul(4);
        let two_runs = self.spilled_batch.saturating_mul(2 * PER_RUN);
        let bytes = quarter.max(two_runs).min(SORT_RESERVATION_MAX);
        usize::try_from(bytes).unwrap_or(usize::MAX)
    }

    /// What its operators that can spill may have. Before one has anything to spill it needs room for its input, which
    /// arrives in batches, and a sort reserves each twice. When a sort merges what it has gathered, to give or to spill it, each row
    /// is there once, and beside it all of it that is compared.
    pub(crate) fn spillers(&self) -> Spillers {
        Spillers {
            floor: self.spilled_batch.saturating_mul(2 * PER_RUN),
            gathered_share: (200 * 100 / self.compared.saturating_add(100)).min(100),
        }
    }

    /// How many spilled runs a query that may reserve `room` should merge at once, `most` at the most.
    ///
    /// A merge of DataFusion takes as many runs as memory allows and keeps it to its end; what comes after it, such as
    /// the merge of all partitions, then finds nothing left, however large the room was. Half of it is left to them.
    pub(crate) fn merge_fan_in(&self, room: u64, most: usize) -> usize {
        let per_run = self.spillers.max(1).saturating_mul(self.spilled_batch.max(1)).saturating_mul(2 * PER_RUN);
        usize::try_from(room / 2 / per_run.max(1)).unwrap_or(usize::MAX).min(most).max(2)
    }
}
