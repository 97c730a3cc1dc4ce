//! Into how many partitions a query is split, and how many rows its batches have.

use std::iter;

use datafusion::common::stats::Precision;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::datasource::source_as_provider;
use datafusion::error::Result;
use datafusion::logical_expr::{Expr, LogicalPlan, TableScan};

use super::width::Widths;

/// Rows from which a second partition pays: below, a query takes some 10 ms on one core, and starting tasks
/// and merging their results would take a good part of that.
const SPLIT_ROWS: u64 = 200_000;
/// Rows for each partition of a query that gathers rows, in groups, joins or an order.
const ROWS_PER_PARTITION: u64 = 100_000;
/// Bytes for each partition of such a query, decoded or as text: a core parses them in some 20 ms.
const BYTES_PER_PARTITION: u64 = 8 << 20;
/// A query that only passes rows on is as fast as its client reads: so much more for each partition.
const PASSING: u64 = 4;
/// Batches of such a query go to the client as they are, where large ones cost less: so many times the rows.
const PASSING_ROWS: usize = 8;
/// Bytes of one batch from which more rows cost cache misses and memory, and gain nothing.
const BATCH_BYTES: u64 = 2 << 20;
/// The same where rows are passed on to the client, to whom a message costs more than its rows.
const PASSING_BATCH_BYTES: u64 = 4 << 20;
/// The fewest rows that `fit_batch_size` gives, as with fewer the work per batch outweighs that per row, unless they would be
/// as large as this.
const BATCH_ROWS_MIN: usize = 64;
const LEAST_BATCH_BYTES: u64 = 16 << 20;
/// A constant of fewer bytes is a value like any other.
const LARGE_CONSTANT: usize = 1 << 10;
/// The batch size at which the ladder ends.
const LADDER_BATCH_ROWS: usize = 2048;

/// What the tables of a query add up to, known before it is planned for real.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct ScanSize {
    /// Bytes to be read, decoded where that is known, else as stored.
    pub(crate) bytes: u64,
    /// Rows to be read; `None` when a table does not tell.
    pub(crate) rows: Option<u64>,
    /// Bytes of the widest row in the plan.
    pub(crate) row_width: u64,
    /// Rows are gathered on the way: groups, joins, orders, windows.
    pub(crate) gathers: bool,
    /// Rows may be made of which the tables say nothing: products, series, recursion.
    pub(crate) multiplies: bool,
}

/// How a query is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Partitions of its operators.
    pub(crate) partitions: usize,
    /// Rows per batch.
    pub(crate) batch_size: usize,
}

/// Adds up the tables of an optimized plan, those of its subqueries included.
///
/// # Errors
/// None in practice: what DataFusion says of a plan it cannot walk.
pub(crate) fn scan_size(plan: &LogicalPlan) -> Result<ScanSize> {
    let mut size = ScanSize { rows: Some(0), ..ScanSize::default() };
    let mut widths = Widths::default();
    plan.apply_with_subqueries(|node| {
        match node {
            LogicalPlan::TableScan(scan) => size.add(scan, &mut widths),
            LogicalPlan::Join(join) => {
                size.gathers = true;
                size.multiplies |= join.on.is_empty();
            }
            LogicalPlan::Aggregate(_)
            | LogicalPlan::Sort(_)
            | LogicalPlan::Window(_)
            | LogicalPlan::Distinct(_)
            | LogicalPlan::Repartition(_) => size.gathers = true,
            LogicalPlan::Unnest(_) | LogicalPlan::RecursiveQuery(_) | LogicalPlan::Extension(_) => {
                size.multiplies = true;
            }
            _ => {}
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    // Only now are the widths of all tables known.
    plan.apply_with_subqueries(|node| {
        let row = widths.row(node.schema().as_arrow()).saturating_add(constants(node));
        size.row_width = size.row_width.max(row);
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(size)
}

/// Bytes that the large constants among the columns of `node` take in each row.
fn constants(node: &LogicalPlan) -> u64 {
    let LogicalPlan::Projection(projection) = node else { return 0 };
    let sizes = projection.expr.iter().map(|column| match named(column) {
        Expr::Literal(value, _) => value.size(),
        _ => 0,
    });
    sizes.filter(|size| *size >= LARGE_CONSTANT).fold(0, |sum, size| sum.saturating_add(size as u64))
}

/// What `column` is without its names. Not `Expr::unalias`, which wants it whole: a constant may be megabytes.
fn named(column: &Expr) -> &Expr {
    match column {
        Expr::Alias(alias) => named(&alias.expr),
        column => column,
    }
}

impl ScanSize {
    fn add(&mut self, scan: &TableScan, widths: &mut Widths) {
        if scan.table_name.schema() == Some("information_schema") {
            return;
        }
        let provider = source_as_provider(&scan.source).ok();
        let Some(known) = provider.as_ref().and_then(|provider| provider.statistics()) else {
            // A function that makes rows, or a table of somebody else.
            self.multiplies = true;
            return;
        };
        let precise = |value: Precision<usize>| value.get_value().map(|value| *value as u64);
        let rows = precise(known.num_rows);
        let schema = scan.source.schema();
        if let (Some(rows), Some(stored)) = (rows, provider.as_deref().and_then(updraft_catalog::stored)) {
            for (field, column) in schema.fields().iter().zip(&stored.columns) {
                widths.learn(field, column, rows);
            }
        }
        let bytes = match rows {
            Some(rows) => rows.saturating_mul(widths.row(scan.projected_schema.as_arrow())),
            None => precise(known.total_byte_size).unwrap_or_default(),
        };
        // A limit without a filter ends the scan.
        let limit = scan.fetch.filter(|_| scan.filters.is_empty()).map(|limit| limit as u64);
        let (rows, bytes) = match (rows, limit) {
            (Some(rows), Some(limit)) if limit < rows => (Some(limit), bytes / rows * limit),
            other => (other.0, bytes),
        };
        self.bytes = self.bytes.saturating_add(bytes);
        self.rows = self.rows.zip(rows).map(|(sum, rows)| sum.saturating_add(rows));
    }
}

/// Into how many partitions `auto` splits a query: 1 for little data, more as it grows, never more than `cores`.
///
/// `running` other queries share the cores. What they leave is doubled, because they also wait; more partitions
/// than that would take memory and no other query's place.
pub(crate) fn partitions_for(size: &ScanSize, cores: usize, running: usize) -> usize {
    let cores = cores.max(1);
    let free = cores.saturating_mul(2).div_ceil(running.saturating_add(1)).clamp(1, cores);
    if size.multiplies {
        return free;
    }
    let factor = if size.gathers { 1 } else { PASSING };
    let by_rows = match size.rows {
        Some(rows) if rows < SPLIT_ROWS => 1,
        Some(rows) => rows.div_ceil(ROWS_PER_PARTITION * factor),
        None => 1,
    };
    let by_bytes = size.bytes.div_ceil(BYTES_PER_PARTITION * factor);
    usize::try_from(by_rows.max(by_bytes)).unwrap_or(usize::MAX).clamp(1, free)
}

impl ScanSize {
    /// Rows per batch where `wanted` are for operators: fewer when rows are wide, more when there are no operators that
    /// gather them.
    pub(crate) fn batch_rows(&self, wanted: usize) -> usize {
        let rows = self.rows.map_or(0, |rows| usize::try_from(rows).unwrap_or(usize::MAX));
        match self.gathers || self.multiplies {
            true => fit_batch_size(self.row_width, wanted, BATCH_BYTES),
            false => {
                let most = wanted.saturating_mul(PASSING_ROWS).min(rows.max(wanted));
                fit_batch_size(self.row_width, most, PASSING_BATCH_BYTES)
            }
        }
    }
}

/// Rows per batch, at most `wanted`, so that a batch of rows of `row_width` bytes takes no more than `bytes`.
fn fit_batch_size(row_width: u64, wanted: usize, bytes: u64) -> usize {
    let rows = usize::try_from(bytes / row_width.max(1)).unwrap_or(usize::MAX);
    let power = rows.checked_ilog2().map_or(1, |log| 1_usize << log);
    let least = usize::try_from(LEAST_BATCH_BYTES / row_width.max(1)).unwrap_or(usize::MAX).clamp(1, BATCH_ROWS_MIN);
    power.max(least).min(wanted)
}

/// The shapes to try one after the other when a query does not fit, from `wanted` to the smallest there is.
///
/// Partitions go first, as they are what memory is in proportion to; batches shrink on the last two steps.
pub(crate) fn ladder(wanted: Shape) -> impl Iterator<Item = Shape> {
    iter::successors(Some(wanted), |last| {
        let batches_shrink = last.batch_size > LADDER_BATCH_ROWS;
        if last.partitions <= 1 && !batches_shrink {
            return None;
        }
        let partitions = (last.partitions / 2).max(1);
        let batch_size = match partitions <= 2 && batches_shrink {
            true => (last.batch_size / 2).max(LADDER_BATCH_ROWS),
            false => last.batch_size,
        };
        Some(Shape { partitions, batch_size })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(partitions: usize, batch_size: usize) -> Vec<(usize, usize)> {
        ladder(Shape { partitions, batch_size }).map(|shape| (shape.partitions, shape.batch_size)).collect()
    }

    #[test]
    fn the_ladder_ends_at_the_smallest_shape() {
        assert_eq!(steps(8, 8192), [(8, 8192), (4, 8192), (2, 4096), (1, 2048)]);
        assert_eq!(steps(6, 8192), [(6, 8192), (3, 8192), (1, 4096), (1, 2048)]);
        assert_eq!(steps(1, 8192), [(1, 8192), (1, 4096), (1, 2048)]);
        assert_eq!(steps(3, 512), [(3, 512), (1, 512)], "a batch that is small stays as it is");
        assert_eq!(steps(1, 1), [(1, 1)]);
        assert_eq!(steps(0, 0), [(0, 0)]);
        let largest = steps(usize::MAX, usize::MAX);
        assert_eq!(largest.last(), Some(&(1, 2048)));
        assert!(largest.windows(2).all(|pair| pair[1].0 <= pair[0].0 && pair[1].1 <= pair[0].1), "it only goes down");
    }

    #[test]
    fn wide_rows_make_short_batches() {
        for (width, wanted, expected) in [
            (0, 8192, 8192),
            (100, 8192, 8192),
            (256, 8192, 8192),
            (257, 8192, 4096),
            (2_000, 8192, 1024),
            (8_000, 8192, 256),
            (200_000, 8192, 64),
            (1 << 20, 8192, 16),
            (u64::MAX, 8192, 1),
            (10_000, 8, 8),
            (1, 100, 100),
        ] {
            assert_eq!(fit_batch_size(width, wanted, BATCH_BYTES), expected, "{width} bytes, {wanted} rows");
        }
    }

    #[test]
    fn batches_of_rows_that_only_pass_are_large() {
        let passing = ScanSize { rows: Some(1_000_000), row_width: 16, ..ScanSize::default() };
        assert_eq!(passing.batch_rows(8192), 65_536);
        assert_eq!(ScanSize { row_width: 200, ..passing }.batch_rows(8192), 16_384, "4 MiB");
        assert_eq!(ScanSize { rows: Some(10_000), ..passing }.batch_rows(8192), 10_000);
        assert_eq!(ScanSize { rows: Some(10), ..passing }.batch_rows(8192), 8192);
        assert_eq!(ScanSize { rows: None, ..passing }.batch_rows(8192), 8192);
        assert_eq!(ScanSize { gathers: true, ..passing }.batch_rows(8192), 8192);
        assert_eq!(ScanSize { multiplies: true, ..passing }.batch_rows(8192), 8192);
    }

    #[test]
    fn partitions_grow_with_the_data() {
        let size = |rows, bytes| ScanSize { bytes, rows, gathers: true, ..ScanSize::default() };
        for (size, running, expected) in [
            (size(Some(0), 0), 0, 1),
            (size(Some(199_999), 1 << 20), 0, 1),
            (size(Some(200_000), 1 << 20), 0, 2),
            (size(Some(450_000), 1 << 20), 0, 5),
            (size(Some(100_000_000), 1 << 30), 0, 8),
            (size(Some(50_000), 100 << 20), 0, 8),
            (size(None, 1 << 20), 0, 1),
            (size(None, 20 << 20), 0, 3),
            (ScanSize { gathers: false, ..size(Some(450_000), 1 << 20) }, 0, 2),
            (ScanSize { multiplies: true, ..size(Some(10), 80) }, 0, 8),
            (size(Some(u64::MAX), u64::MAX), 0, 8),
            (size(Some(u64::MAX), u64::MAX), 1, 8),
            (size(Some(u64::MAX), u64::MAX), 3, 4),
            (size(Some(u64::MAX), u64::MAX), usize::MAX, 1),
        ] {
            assert_eq!(partitions_for(&size, 8, running), expected, "{size:?} beside {running}");
        }
        assert_eq!(partitions_for(&size(Some(u64::MAX), u64::MAX), 0, 0), 1);
    }
}
