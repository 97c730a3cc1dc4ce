//! How much a scan has to do, and how many rows it will give, before it begins.

use std::sync::Arc;

use datafusion::arrow::array::Array;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::common::stats::Precision;
use datafusion::common::{ColumnStatistics, Statistics};
use datafusion::error::Result;
use datafusion::physical_expr::utils::conjunction;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::empty::EmptyExec;
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::statistics::StatisticsArgs;

use super::source::HotSource;
use super::stream::Scan;

/// Columns of segments that are looked for in memory, at most, to say how much of a scan is there.
const LOOKS_MAX: usize = 4096;

/// What a scan has to do, as things are now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Outlook {
    /// The most rows that it can give.
    pub rows: usize,
    /// Rows of segments that are not in memory, of which some may have to be read from their files.
    pub absent_rows: usize,
    /// Segments that it looks at.
    pub segments: usize,
    /// Those of them that are not in memory.
    pub absent_segments: usize,
}

pub(super) fn outlook(source: &HotSource) -> Outlook {
    let segments = source.may_pass();
    let rows = |segment: u32| source.segments.get(segment).rows;
    let mut outlook = Outlook { segments: segments.len(), ..Outlook::default() };
    let scan = Scan::new(source, source.segments.schema()).ok();
    let (mut looked, mut absent) = (0, 0);
    for segment in segments {
        let scan = scan.as_ref().filter(|scan| looked * scan.needed.len().max(1) < LOOKS_MAX);
        let Some(scan) = scan else {
            // What was looked at stands for the others.
            outlook.rows += rows(*segment);
            if absent > 0 || looked == 0 {
                outlook.absent_rows += rows(*segment);
                outlook.absent_segments += 1;
            }
            continue;
        };
        looked += 1;
        match scan.peek(*segment) {
            Some(rows) => outlook.rows += rows,
            None => {
                absent += 1;
                outlook.rows += rows(*segment);
                outlook.absent_rows += rows(*segment);
                outlook.absent_segments += 1;
            }
        }
    }
    outlook
}

/// Whether most rows of a column of the output that are in memory are stored as codes.
pub(super) fn is_coded(source: &HotSource, output: usize) -> bool {
    let Some(column) = source.column_of(output) else { return false };
    let data_type = source.segments.schema().field(column).data_type();
    let (mut coded, mut all) = (0, 0);
    for segment in source.may_pass().iter().take(LOOKS_MAX) {
        let row_group = source.segments.get(*segment).row_group;
        let key = source.segments.file_of(*segment).column(row_group, column, data_type);
        if let Some(column) = key.and_then(|key| source.cache.peek(&key)) {
            all += column.data.len();
            coded += if column.data.data_type() == data_type { 0 } else { column.data.len() };
        }
    }
    coded > all / 2
}

/// What is known of the rows that the scan gives, or of one of `share` equal parts of them.
///
/// With filters it is what DataFusion's own filter would make of it, so that plans do not get worse estimates because the
/// source does the filtering.
pub(super) fn statistics(source: &HotSource, schema: &SchemaRef, share: Option<usize>) -> Result<Statistics> {
    let mut statistics = source.base.statistics();
    if !source.filters.is_empty() {
        let rows = source.may_pass().iter().map(|segment| source.segments.get(*segment).rows).sum();
        if source.left_out() > 0 {
            statistics = statistics.to_inexact();
            statistics.num_rows = Precision::Inexact(rows);
        }
        let table = Arc::new(EmptyExec::new(source.segments.schema().clone()));
        let filter = FilterExec::try_new(conjunction(source.filters.iter().cloned()), table)?;
        let filtered = filter.statistics_from_inputs(&[Arc::new(statistics)], &StatisticsArgs::new())?;
        statistics = Arc::unwrap_or_clone(filtered);
    }
    let mut statistics = source.projection.project_statistics(statistics, schema)?;
    if let Some(parts) = share {
        statistics = statistics.to_inexact();
        statistics.num_rows = divided(statistics.num_rows, parts);
        statistics.total_byte_size = divided(statistics.total_byte_size, parts);
    }
    for (column, coded) in statistics.column_statistics.iter_mut().zip(source.coded()) {
        if *coded {
            *column = ColumnStatistics {
                null_count: column.null_count,
                distinct_count: column.distinct_count,
                ..ColumnStatistics::new_unknown()
            };
        }
    }
    // All partitions together give so many rows.
    statistics.with_fetch(source.fetch, 0, 1)
}

fn divided(rows: Precision<usize>, parts: usize) -> Precision<usize> {
    rows.map(|rows| rows.div_ceil(parts))
}
