//! How much a scan has to do, and how many rows it will give, before it begins.

use std::sync::Arc;

use datafusion::arrow::array::Array;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::common::stats::Precision;
use datafusion::common::{ColumnStatistics, Statistics};
use datafusion::error::Result;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::utils::{collect_columns, conjunction};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::empty::EmptyExec;
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::statistics::StatisticsArgs;

use super::access::Scan;
use super::segments::Segments;
use super::source::HotSource;

/// Columns of segments that are looked for in memory, at most, to say how much of a scan is there.
const LOOKS_MAX: usize = 4096;

/// Rows of the pages that have to be read to find a few rows.
const PAGES_ROWS: usize = 40_000;
/// Rows of which it is worth knowing how many pass before it is decided how to go about them.
const SAMPLE_FROM: usize = 128 << 10;
/// Places of a table that are looked at for that.
const SAMPLES: usize = 8;
/// Rows at each of them.
const SAMPLE_ROWS: usize = 256;

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
    /// Of `absent_rows`, those that are hardly looked at: filters say where the others are.
    pub skipped_rows: usize,
}

pub(super) fn outlook(source: &HotSource) -> Outlook {
    let segments = source.may_pass();
    let rows = |segment: u32| source.segments.get(segment).rows;
    let mut outlook = Outlook { segments: segments.len(), ..Outlook::default() };
    let scan = Scan::new(source, source.segments.schema()).ok();
    let (mut looked, mut absent) = (0, 0);
    let late = scan.as_ref().filter(|_| source.reads_late());
    let in_filter = late.map(|scan| (filter_columns(&source.filters, &scan.needed).len(), scan.needed.len()));
    let skipped = |segment: u32| {
        in_filter.map_or(0, |(in_filter, needed)| hardly_looked_at(&source.segments, segment, in_filter, needed))
    };
    for segment in segments {
        let scan = scan.as_ref().filter(|scan| looked * scan.needed.len().max(1) < LOOKS_MAX);
        let Some(scan) = scan else {
            // What was looked at stands for the others.
            outlook.rows += rows(*segment);
            if absent > 0 || looked == 0 {
                outlook.absent_rows += rows(*segment);
                outlook.skipped_rows += skipped(*segment);
                outlook.absent_segments += 1;
            }
            continue;
        };
        looked += 1;
        match scan.peek(*segment) {
            Some(rows) => outlook.rows += rows.map_or(0, |rows| rows.range.len()),
            None => {
                absent += 1;
                outlook.rows += rows(*segment);
                outlook.absent_rows += rows(*segment);
                outlook.skipped_rows += skipped(*segment);
                outlook.absent_segments += 1;
            }
        }
    }
    outlook
}

/// The same without the cache, of `segments`: see [`Segments::outlook`].
pub(super) fn outlook_of_files(
    all: &Segments,
    segments: &[u32],
    columns: &[usize],
    filter: &Arc<dyn PhysicalExpr>,
    is_late: bool,
) -> Outlook {
    let in_filter = filter_columns(std::slice::from_ref(filter), columns).len();
    let rows = segments.iter().map(|segment| all.get(*segment).rows).sum();
    let skipped = |segment: &u32| hardly_looked_at(all, *segment, in_filter, columns.len());
    Outlook {
        rows,
        absent_rows: rows,
        segments: segments.len(),
        absent_segments: segments.len(),
        skipped_rows: if is_late { segments.iter().map(skipped).sum() } else { 0 },
    }
}

/// Rows of a segment that are hardly looked at where the reader goes by filters, which name `in_filter` of the columns `needed`.
fn hardly_looked_at(segments: &Segments, segment: u32, in_filter: usize, needed: usize) -> usize {
    let rows = segments.get(segment).rows;
    match segments.is_indexed(segment) {
        // A few pages of each column.
        true => rows.saturating_sub(PAGES_ROWS),
        false => rows / needed.max(1) * (needed - in_filter),
    }
}

/// Those of the columns `needed` that filters name.
pub(super) fn filter_columns(filters: &[Arc<dyn PhysicalExpr>], needed: &[usize]) -> Vec<usize> {
    let named = filters.iter().flat_map(collect_columns).map(|column| column.index());
    let named: Vec<usize> = named.collect();
    needed.iter().copied().filter(|column| named.contains(column)).collect()
}

/// Whether most rows of a column of the output are stored as codes, in memory or else in their files.
pub(super) fn is_coded(source: &HotSource, output: usize) -> bool {
    let Some(column) = source.column_of(output) else { return false };
    let data_type = source.segments.schema().field(column).data_type();
    let (mut coded, mut all) = (0, 0);
    for segment in source.may_pass().iter().take(LOOKS_MAX) {
        let row_group = source.segments.get(*segment).row_group;
        let key = source.segments.file_of(*segment).column(row_group, column, data_type);
        let is_coded = match key.and_then(|key| source.cache.peek(&key)) {
            Some(column) => column.data.data_type() != data_type,
            None => source.segments.is_coded(*segment, column),
        };
        let rows = source.segments.get(*segment).rows;
        all += rows;
        coded += if is_coded { rows } else { 0 };
    }
    coded > all / 2
}

/// What is known of the rows that the scan gives, or of one of `share` equal parts of them.
///
/// With filters it is what DataFusion's own filter would make of it, but for the number of rows: some of those in memory are
/// looked at, so that joins begin at the smaller side.
pub(super) fn statistics(source: &HotSource, schema: &SchemaRef, share: Option<usize>) -> Result<Statistics> {
    let mut statistics = source.base.statistics();
    if !source.filters.is_empty() {
        let (rows, share) = rows_and_share(source);
        statistics = filtered(source.segments.schema(), &source.filters, statistics)?;
        let estimate = statistics.num_rows.get_value().map_or(rows, |estimate| rows.min(*estimate));
        let better = share.map_or(estimate, |share| (rows as f64 * share).ceil() as usize);
        if statistics.num_rows != Precision::Exact(0) {
            statistics.num_rows = Precision::Inexact(better);
        }
    }
    if source.filters.is_empty() && share.is_none() {
        add_extremes(source, &mut statistics);
    }
    let mut statistics = source.projection.project_statistics(statistics, schema)?;
    if let Some(parts) = share {
        statistics = statistics.to_inexact();
        statistics.num_rows = divided(statistics.num_rows, parts);
        statistics.total_byte_size = divided(statistics.total_byte_size, parts);
    }
    for (column, coded) in statistics.column_statistics.iter_mut().zip(source.coded()) {
        // An inner join keeps the bytes of its inputs' columns however few rows it leaves, and a semi join above adds them
        // up: the smaller side would look the larger. Of a sum that is not known the rows are compared.
        column.byte_size = Precision::Absent;
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

/// Adds the smallest and the largest floats, of which files do not tell enough, as far as those that are in memory do.
fn add_extremes(source: &HotSource, statistics: &mut Statistics) {
    if source.may_pass().len() < source.segments.len() {
        return;
    }
    for column in source.projection.column_indices() {
        if source.segments.schema().field(column).data_type().is_floating()
            && let Some(known) = statistics.column_statistics.get_mut(column)
            && let Some((min, max)) = source.segments.extremes(column, &source.cache)
        {
            (known.min_value, known.max_value) = (Precision::Exact(min.clone()), Precision::Exact(max.clone()));
        }
    }
}

/// The share of rows that passes the filters, as far as footers tell.
pub(super) fn passing_share(source: &HotSource) -> Option<f64> {
    let kept = source.may_pass();
    let rows: usize = kept.iter().map(|segment| source.segments.get(*segment).rows).sum();
    let mut all = source.base.statistics().to_inexact();
    all.num_rows = Precision::Inexact(rows);
    let named = source.filters.iter().flat_map(collect_columns);
    for column in named {
        // What is left once row groups are left out is often a small part of all values.
        if let Some((min, max)) = source.segments.span(kept, column.index())
            && let Some(known) = all.column_statistics.get_mut(column.index())
        {
            (known.min_value, known.max_value) = (Precision::Inexact(min), Precision::Inexact(max));
        }
    }
    share_of(source.segments.schema(), &source.filters, all)
}

/// The share of `all` rows of a table that passes `filters`.
pub(super) fn share_of(schema: &SchemaRef, filters: &[Arc<dyn PhysicalExpr>], all: Statistics) -> Option<f64> {
    let rows = *all.num_rows.get_value()?;
    let passing = filtered(schema, filters, all).ok()?;
    let passing = *passing.num_rows.get_value()?;
    (rows > 0).then(|| passing as f64 / rows as f64)
}

/// `all`, less what DataFusion's own filter would leave out.
fn filtered(schema: &SchemaRef, filters: &[Arc<dyn PhysicalExpr>], all: Statistics) -> Result<Statistics> {
    let table = Arc::new(EmptyExec::new(schema.clone()));
    let filter = FilterExec::try_new(conjunction(filters.iter().cloned()), table)?;
    filter.statistics_from_inputs(&[Arc::new(all)], &StatisticsArgs::new()).map(Arc::unwrap_or_clone)
}

/// The most rows that can pass the filters, and the share of them that does, if it is known.
pub(super) fn rows_and_share(source: &HotSource) -> (usize, Option<f64>) {
    *source.sampled.get_or_init(|| {
        let rows = outlook(source).rows;
        (rows, sample(source, rows))
    })
}

/// The share of `rows`, all those that may pass, that do pass, found by looking at some of them; `None` = too few are in
/// memory, or there are so few that it does not matter.
fn sample(source: &HotSource, rows: usize) -> Option<f64> {
    if rows < SAMPLE_FROM {
        return None;
    }
    let scan = Scan::new(source, source.segments.schema()).ok()?;
    let segments = source.may_pass();
    let (mut looked, mut passed) = (0, 0);
    for at in 0..SAMPLES {
        // Places in the middle of equal parts of the table.
        let place = segments.len() * (2 * at + 1);
        let (segment, within) = (place / (2 * SAMPLES), place % (2 * SAMPLES));
        let Some(Some(rows)) = scan.peek(segments[segment]) else { continue };
        let start = rows.range.start + rows.range.len() * within / (2 * SAMPLES);
        let range = start..rows.range.end.min(start + SAMPLE_ROWS);
        looked += range.len();
        passed += scan.count(&rows, range).ok()?;
    }
    // Of a filter that no row of the sample passes it is only known that few do.
    (looked >= SAMPLES * SAMPLE_ROWS / 2).then(|| passed.max(1) as f64 / looked as f64)
}

fn divided(rows: Precision<usize>, parts: usize) -> Precision<usize> {
    rows.map(|rows| rows.div_ceil(parts))
}
