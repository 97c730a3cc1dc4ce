//! What a scan of files holds in memory that DataFusion does not count.

use datafusion::arrow::datatypes::Schema;
use datafusion::common::stats::Precision;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::FileScanConfig;
use datafusion::physical_expr::projection::ProjectionExprs;
use datafusion::physical_expr::utils::collect_columns;
use updraft_catalog::{Stored, StoredColumn};
use updraft_hot::{HotSource, Outlook};

use super::width::Widths;

/// The catalog reads files in pieces of this size.
const PIECE: u64 = 4 << 20;
/// A page of Parquet once decompressed: most writers end pages at about 1 MiB.
const PAGE: u64 = 1 << 20;
/// Some, DuckDB among them, write one page for all rows of a row group, and then make small row groups.
const ONE_PAGE_ROWS: u64 = 128 << 10;
/// The largest such page that is expected.
const ONE_PAGE: u64 = 32 << 20;
/// The window of a decompressor: 8 MiB for zstd and xz at their usual levels.
const DECOMPRESSOR: u64 = 8 << 20;
/// Rows of a row group of which nothing is known.
const ROW_GROUP_ROWS: u64 = 1 << 20;

/// What is known of a scan before it begins.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Scan {
    /// How many readers hold something at the same time.
    pub(super) lanes: u64,
    /// What they hold together, decoded batches apart.
    pub(super) held: u64,
    /// Bytes to be read, as stored.
    pub(super) bytes: u64,
    /// Rows to be read, if their number is known.
    pub(super) rows: Option<u64>,
    /// Bytes that a batch of one lane keeps alive beside its rows: pages to which its strings point.
    pub(super) pinned: u64,
    /// Compressed as a whole, so that the bytes say little about the rows.
    pub(super) packed: bool,
}

/// What the files of a scan add up to.
#[derive(Debug, Default)]
struct Files {
    bytes: u64,
    largest: u64,
    rows: Option<u64>,
}

/// Weighs a scan, and learns the widths of its columns.
pub(super) fn of(config: &FileScanConfig, widths: &mut Widths) -> Scan {
    let partitions = config.file_groups.iter().filter(|group| !group.is_empty()).count() as u64;
    let columns = columns_read(config);
    let outlook = updraft_catalog::outlook(config, &columns);
    let scan = weigh(config, columns, config.file_source.projection(), partitions, widths);
    // A row group is read by one reader.
    outlook.map_or(scan, |outlook| Scan { lanes: scan.lanes.min(outlook.segments as u64), ..narrowed(scan, outlook) })
}

/// The same for a table that is hot in part or as a whole: what is in memory is there already, and counted where it is kept.
pub(super) fn of_hot(source: &HotSource, partitions: u64, widths: &mut Widths) -> Scan {
    let scan = weigh(source.files(), source.columns(), Some(source.projection()), partitions, widths);
    narrowed(scan, source.outlook())
}

/// `scan`, less what its filters leave out and what is in memory already.
fn narrowed(scan: Scan, outlook: Outlook) -> Scan {
    let skipped = outlook.skipped_rows as u64;
    let looked_at = |rows: usize| (rows as u64).saturating_sub(skipped);
    let (rows, absent) = (looked_at(outlook.rows), looked_at(outlook.absent_rows));
    let readers = scan.lanes.min(outlook.absent_segments as u64);
    Scan {
        held: share(scan.held, readers, scan.lanes),
        bytes: share(scan.bytes, absent, scan.rows.unwrap_or(rows)).min(scan.bytes),
        rows: Some(rows),
        pinned: if readers > 0 { scan.pinned } else { 0 },
        ..scan
    }
}

fn weigh(
    config: &FileScanConfig,
    columns: Vec<usize>,
    projection: Option<&ProjectionExprs>,
    partitions: u64,
    widths: &mut Widths,
) -> Scan {
    let files = files(config);
    let Some(first) = config.file_groups.iter().find_map(|group| group.files().first()) else {
        return Scan { rows: Some(0), ..Scan::default() };
    };
    let table = config.file_source.table_schema().table_schema();
    let guessed;
    let stored = match first.extension::<Stored>() {
        Some(stored) => stored,
        None => {
            guessed = guess(&files, table, columns.len());
            &guessed
        }
    };
    let rows_of_table = rows_of_table(stored, &files);
    for at in &columns {
        if let (Some(column), Some(field), Some(rows)) =
            (stored.columns.get(*at), table.fields().get(*at), rows_of_table)
        {
            widths.learn(field, column, rows);
        }
    }
    if let Some(projection) = projection {
        for projected in projection.iter() {
            widths.alias(&projected.alias, &projected.expr, table);
        }
    }

    let parts = stored.parts.map_or(u64::MAX, |parts| share(parts, files.bytes, stored.bytes)).max(1);
    let (lanes, packed) = (partitions.min(parts), stored.packed);
    let mut scan = Scan { lanes, bytes: files.bytes, rows: files.rows, packed, ..Scan::default() };
    // What a lane holds as stored, and what it holds besides.
    let (as_stored, besides) = match config.file_source.file_type() {
        "parquet" => {
            let has_one_page = rows_of_table
                .zip(stored.parts)
                .is_some_and(|(rows, parts)| rows <= parts.saturating_mul(ONE_PAGE_ROWS));
            let page = if has_one_page { ONE_PAGE } else { PAGE };
            let (mut bytes, mut row_group, mut pages): (u64, u64, u64) = (0, 0, 0);
            for at in &columns {
                let (Some(column), Some(field)) = (stored.columns.get(*at), table.fields().get(*at)) else { continue };
                bytes = bytes.saturating_add(column.bytes);
                row_group = row_group.saturating_add(column.largest);
                // Of each column one page is decompressed at a time.
                let page = column.largest_plain.min(page);
                pages = pages.saturating_add(page);
                if field.data_type().primitive_width().is_none() {
                    scan.pinned = scan.pinned.saturating_add(page);
                }
            }
            scan.bytes = share(bytes, files.bytes, stored.bytes);
            // Row groups are put together from pieces.
            (row_group, pages.saturating_add(row_group.min(PIECE)))
        }
        // A record batch is decoded at once.
        "arrow" => {
            let batch = stored.largest_part.unwrap_or(stored.largest_file);
            (batch, batch)
        }
        // A file is read as a whole, from pieces.
        "avro" => (files.largest, files.largest.min(PIECE)),
        _ if stored.packed => (0, files.largest.min(PIECE).saturating_mul(2).saturating_add(DECOMPRESSOR)),
        _ => (0, files.largest.min(PIECE).saturating_mul(2)),
    };
    let as_stored = scan.lanes.saturating_mul(as_stored).min(scan.bytes);
    let ahead = stored.ahead.min(scan.bytes);
    scan.held = as_stored.saturating_add(scan.lanes.saturating_mul(besides)).saturating_add(ahead);
    scan
}

/// The places in the table of the columns that are read.
fn columns_read(config: &FileScanConfig) -> Vec<usize> {
    let source = &config.file_source;
    let all = 0..source.table_schema().table_schema().fields().len();
    let mut columns = source.projection().map_or_else(|| all.collect(), |projection| projection.column_indices());
    if let Some(filter) = source.filter() {
        columns.extend(collect_columns(&filter).iter().map(|column| column.index()));
    }
    columns.sort_unstable();
    columns.dedup();
    columns
}

fn files(config: &FileScanConfig) -> Files {
    let mut sum = Files { rows: Some(0), ..Files::default() };
    for file in config.file_groups.iter().flat_map(|group| group.files()) {
        let bytes = bytes_of(file);
        sum.bytes = sum.bytes.saturating_add(bytes);
        sum.largest = sum.largest.max(file.object_meta.size);
        let rows = file.statistics.as_ref().and_then(|known| match known.num_rows {
            Precision::Exact(rows) => Some(rows as u64),
            _ => None,
        });
        let rows = rows.map(|rows| share(rows, bytes, file.object_meta.size));
        sum.rows = sum.rows.zip(rows).map(|(sum, rows)| sum.saturating_add(rows));
    }
    sum
}

fn bytes_of(file: &PartitionedFile) -> u64 {
    match &file.range {
        Some(range) => u64::try_from(range.end.saturating_sub(range.start)).unwrap_or_default(),
        None => file.object_meta.size,
    }
}

/// The rows of all files of the table, of which the scan may read some.
fn rows_of_table(stored: &Stored, files: &Files) -> Option<u64> {
    files.rows.map(|rows| share(rows, stored.bytes, files.bytes))
}

/// `whole * part / of`, rounded up, without overflow.
fn share(whole: u64, part: u64, of: u64) -> u64 {
    let exact = (u128::from(whole) * u128::from(part)).div_ceil(u128::from(of).max(1));
    u64::try_from(exact).unwrap_or(u64::MAX)
}

/// What a file is taken for that the catalog knows nothing about: all columns alike, row groups of the usual size.
fn guess(files: &Files, table: &Schema, columns_read: usize) -> Stored {
    let groups = files.rows.map_or(1, |rows| rows.div_ceil(ROW_GROUP_ROWS)).max(1);
    let columns = table.fields().len().max(columns_read).max(1);
    let bytes = files.bytes / columns as u64;
    let largest = files.largest / columns as u64;
    let column =
        StoredColumn { bytes, largest: largest.min(bytes.div_ceil(groups)), largest_plain: largest, values: 0 };
    Stored {
        bytes: files.bytes,
        largest_file: files.largest,
        parts: None,
        largest_part: None,
        columns: vec![StoredColumn { values: files.bytes / columns as u64, ..column }; columns],
        packed: true,
        ahead: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_rounded_up_and_never_overflow() {
        for (whole, part, of, expected) in [
            (10, 1, 3, 4),
            (10, 3, 3, 10),
            (10, 0, 0, 0),
            (0, 5, 5, 0),
            (u64::MAX, u64::MAX, u64::MAX, u64::MAX),
            (u64::MAX, u64::MAX, 0, u64::MAX),
        ] {
            assert_eq!(share(whole, part, of), expected, "{whole} * {part} / {of}");
        }
    }
}
