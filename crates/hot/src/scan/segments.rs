//! The row groups of a table, and what their footers say of the values in them.

use std::cmp::Ordering;
use std::collections::HashSet;
use std::sync::{Arc, OnceLock};

use datafusion::arrow::array::{
    Array, ArrayRef, BooleanArray, UInt32Array, UInt64Array, make_comparator, new_null_array,
};
use datafusion::arrow::compute::{SortOptions, take};
use datafusion::arrow::datatypes::{DataType, SchemaRef};
use datafusion::common::pruning::PruningStatistics;
use datafusion::common::{Column as Name, ScalarValue};
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::FileGroup;
use datafusion::error::{DataFusionError, Result};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_optimizer::pruning::{PruningPredicate, PruningPredicateBuilder};

use super::bounds::Bounds;
use super::estimate::{self, Outlook};
use crate::cache::Cache;
use crate::column::Column;
use crate::file::File;
use crate::zone::Zone;

/// Segments of which a column is looked for in memory, at most, to find out something about the whole of it.
const ZONES_MAX: usize = 4096;

/// The row groups of a table at one version, in the order of its files. Made once, shared by all plans.
#[derive(Debug)]
pub struct Segments {
    schema: SchemaRef,
    files: Vec<PartitionedFile>,
    list: Vec<Segment>,
    /// First segment of each file, and the number of all.
    first: Vec<u32>,
    /// By column of the table; made when a filter first asks.
    known: Vec<OnceLock<Known>>,
    /// By column, for floats: see [`Self::extremes`].
    extremes: Vec<OnceLock<Option<(ScalarValue, ScalarValue)>>>,
    /// By column: see [`Self::is_sorted`].
    sorted: Vec<OnceLock<bool>>,
}

/// One row group.
#[derive(Debug, Clone, Copy)]
pub(super) struct Segment {
    /// Its file's place in the list of files.
    pub(super) file: u32,
    pub(super) row_group: u32,
    pub(super) rows: usize,
}

/// What is known of one column, by segment.
#[derive(Debug)]
struct Known {
    min: ArrayRef,
    max: ArrayRef,
    nulls: ArrayRef,
}

impl Segments {
    /// The row groups of `files`, whose table has the columns `schema`: those of the files, then those of the partitions.
    /// `None` when a file does not carry a [`File`], so that its row groups are not known.
    pub fn new(schema: SchemaRef, files: Vec<PartitionedFile>) -> Option<Self> {
        let mut list = Vec::new();
        let mut first = vec![0];
        for (at, file) in files.iter().enumerate() {
            let rows = &file.extension::<File>()?.rows;
            let groups = rows.iter().zip(0_u32..).map(|(rows, row_group)| {
                Some(Segment { file: u32::try_from(at).ok()?, row_group, rows: usize::try_from(*rows).ok()? })
            });
            for segment in groups {
                list.push(segment?);
            }
            first.push(u32::try_from(list.len()).ok()?);
        }
        let known = schema.fields().iter().map(|_| OnceLock::new()).collect();
        let extremes = schema.fields().iter().map(|_| OnceLock::new()).collect();
        let sorted = schema.fields().iter().map(|_| OnceLock::new()).collect();
        Some(Self { schema, files, list, first, known, extremes, sorted })
    }

    /// The columns of the table.
    pub(super) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub(super) fn get(&self, segment: u32) -> Segment {
        self.list[segment as usize]
    }

    pub(super) fn all(&self) -> Vec<u32> {
        (0..).take(self.list.len()).collect()
    }

    /// The segments of the files at `places`.
    pub(super) fn of_files(&self, places: &[usize]) -> Vec<u32> {
        let of_file = |at: &usize| self.first[*at]..self.first[*at + 1];
        places.iter().flat_map(of_file).collect()
    }

    pub(super) fn scan_of(&self, segment: u32) -> &PartitionedFile {
        &self.files[self.get(segment).file as usize]
    }

    pub(super) fn file_of(&self, segment: u32) -> &File {
        self.scan_of(segment).extension::<File>().expect("`new` looked at each file")
    }

    /// The one value of a column that the files of a segment do not store: a partition's, or NULL.
    pub(super) fn constant(&self, segment: u32, column: usize) -> Option<ScalarValue> {
        let (scan, file) = (self.scan_of(segment), self.file_of(segment));
        match file.columns.get(column) {
            Some(Some(_)) => None,
            Some(None) => {
                Some(ScalarValue::try_new_null(self.schema.field(column).data_type()).unwrap_or(ScalarValue::Null))
            }
            None => scan.partition_values.get(column - file.columns.len()).cloned(),
        }
    }

    /// The segments of the files that a scan of `groups` reads, whole or in part.
    fn of_groups(&self, groups: &[FileGroup]) -> Vec<u32> {
        let read: HashSet<_> =
            groups.iter().flat_map(|group| group.files()).map(|file| &file.object_meta.location).collect();
        let places = self.files.iter().enumerate().filter(|(_, file)| read.contains(&file.object_meta.location));
        self.of_files(&places.map(|(at, _)| at).collect::<Vec<_>>())
    }

    /// What a scan of files has to do that reads `columns` of the table in `groups`, all of them files of this table, and leaves
    /// out row groups in which no row passes `filter`. When `is_late` it reads the columns that the filter does not name for
    /// those rows alone that pass.
    pub fn outlook(
        &self,
        groups: &[FileGroup],
        columns: &[usize],
        filter: &Arc<dyn PhysicalExpr>,
        is_late: bool,
    ) -> Outlook {
        let all = self.of_groups(groups);
        let kept = self.may_pass(&all, filter, None).unwrap_or(all);
        estimate::outlook_of_files(self, &kept, columns, filter, is_late)
    }

    /// Those of `kept` in which rows may pass `filter`; `None` = in all, or it cannot be told.
    ///
    /// Of a column in `cache` more may be known than its file says.
    pub(super) fn may_pass(
        &self,
        kept: &[u32],
        filter: &Arc<dyn PhysicalExpr>,
        cache: Option<&Cache>,
    ) -> Option<Vec<u32>> {
        Some(self.prune(kept, &pruning(&self.schema, filter.clone())?, cache))
    }

    /// Those of `kept` in which rows may pass `predicate`; all, if it cannot be told.
    pub(super) fn prune(&self, kept: &[u32], predicate: &PruningPredicate, cache: Option<&Cache>) -> Vec<u32> {
        let statistics = Statistics { segments: self, kept, cache };
        match predicate.prune(&statistics) {
            Ok(may_pass) => kept.iter().zip(may_pass).filter_map(|(segment, may)| may.then_some(*segment)).collect(),
            Err(_) => kept.to_vec(),
        }
    }

    /// `kept` with those first that promise the smallest values of a column, or the largest; the unknown last.
    pub(super) fn by_promise(&self, kept: &[u32], column: usize, descending: bool) -> Vec<u32> {
        let known = self.known(column);
        let values = if descending { &known.max } else { &known.min };
        let mut sorted = kept.to_vec();
        let options = SortOptions { descending, nulls_first: false };
        if let Ok(compare) = make_comparator(values, values, options) {
            sorted.sort_by(|a, b| compare(*a as usize, *b as usize));
        }
        sorted
    }

    /// Whether the footers say anything about the values of a column.
    pub(super) fn has_bounds(&self, column: usize) -> bool {
        let known = self.known(column);
        known.min.null_count() < known.min.len() || known.max.null_count() < known.max.len()
    }

    /// Whether the file of a segment holds the strings of a column as codes of few values.
    pub(super) fn is_coded(&self, segment: u32, column: usize) -> bool {
        let place = self.file_of(segment).columns.get(column).copied().flatten();
        let bounds = self.scan_of(segment).extension::<Bounds>().zip(place);
        bounds.and_then(|(bounds, place)| bounds.coded.get(place as usize)).is_some_and(|coded| *coded)
    }

    /// Whether the file of a segment says what values are in which page.
    pub(super) fn is_indexed(&self, segment: u32) -> bool {
        self.scan_of(segment).extension::<Bounds>().is_some_and(|bounds| bounds.indexed)
    }

    /// The smallest and the largest value of a column in the segments `kept`, when the footers tell for all of them.
    pub(super) fn span(&self, kept: &[u32], column: usize) -> Option<(ScalarValue, ScalarValue)> {
        let known = self.known(column);
        let furthest = |values: &ArrayRef, wanted: Ordering| {
            let mut values = kept.iter().map(|segment| ScalarValue::try_from_array(values, *segment as usize).ok());
            let first = values.next()??;
            values.try_fold(first, |furthest, value| {
                let value = value?;
                Some(if value.partial_cmp(&furthest)? == wanted { value } else { furthest })
            })
        };
        let span = (furthest(&known.min, Ordering::Less)?, furthest(&known.max, Ordering::Greater)?);
        (!span.0.is_null() && !span.1.is_null()).then_some(span)
    }

    /// The smallest and the largest value of a column in all segments, as a query would find them. `None` = there is none, or
    /// a NaN, or it was never all in memory at the time of asking. For floats: of others the footers tell.
    pub(super) fn extremes(&self, column: usize, cache: &Cache) -> Option<&(ScalarValue, ScalarValue)> {
        once(&self.extremes[column], || self.extremes_now(column, cache))?.as_ref()
    }

    /// The same; the outer `None` = not all is in memory.
    fn extremes_now(&self, column: usize, cache: &Cache) -> Option<Option<(ScalarValue, ScalarValue)>> {
        if self.len() > ZONES_MAX {
            return None;
        }
        let mut zones = Vec::with_capacity(self.len());
        for segment in (0..).take(self.len()) {
            if self.constant(segment, column).is_some_and(|value| value.is_null()) {
                continue;
            }
            let held = self.held(segment, column, cache)?;
            if held.zone.nulls < held.data.len() {
                zones.push(held);
            }
        }
        let known = zones.iter().all(|held| !held.zone.min.is_null() && !held.zone.max.is_null());
        let furthest = |values: Vec<&ScalarValue>, wanted: Ordering| {
            let further = |a, b| if ScalarValue::partial_cmp(b, a) == Some(wanted) { b } else { a };
            values.into_iter().reduce(further).cloned()
        };
        let min = furthest(zones.iter().map(|held| &held.zone.min).collect(), Ordering::Less);
        let max = furthest(zones.iter().map(|held| &held.zone.max).collect(), Ordering::Greater);
        Some(min.zip(max).filter(|_| known))
    }

    /// Whether the values of a column ascend through all segments, and none is NULL or NaN. `false` also when that is not
    /// known: it was never all in memory at the time of asking.
    pub(super) fn is_sorted(&self, column: usize, cache: &Cache) -> bool {
        once(&self.sorted[column], || self.is_sorted_now(column, cache)).is_some_and(|sorted| *sorted)
    }

    /// The same; `None` = it cannot be told as things are.
    fn is_sorted_now(&self, column: usize, cache: &Cache) -> Option<bool> {
        if self.len() > ZONES_MAX {
            return Some(false);
        }
        let mut last: Option<ScalarValue> = None;
        for segment in (0..).take(self.len()).filter(|segment| self.get(*segment).rows > 0) {
            if self.constant(segment, column).is_some() {
                return Some(false);
            }
            let held = self.held(segment, column, cache)?;
            let Zone { min, max, sorted, .. } = &held.zone;
            // Of what has no order there is nothing to compare.
            let follows = |last: &ScalarValue| last.partial_cmp(min).is_some_and(Ordering::is_le);
            if !sorted || min.is_null() || max.is_null() || !last.as_ref().is_none_or(follows) {
                return Some(false);
            }
            last = Some(max.clone());
        }
        Some(true)
    }

    /// A column of a segment, if its file stores it and it is in memory.
    fn held(&self, segment: u32, column: usize, cache: &Cache) -> Option<Arc<Column>> {
        let data_type = self.schema.field(column).data_type();
        cache.peek(&self.file_of(segment).column(self.get(segment).row_group, column, data_type)?)
    }

    fn known(&self, column: usize) -> &Known {
        self.known[column].get_or_init(|| {
            let field = self.schema.field(column);
            let bounds = (0..).take(self.len()).map(|segment| self.bounds(segment, column));
            let (mut min, mut max, mut nulls) = (Vec::new(), Vec::new(), Vec::new());
            for (smallest, largest, null_count) in bounds {
                min.push(smallest);
                max.push(largest);
                nulls.push(null_count);
            }
            let array = |values: Vec<ScalarValue>| {
                let values = ScalarValue::iter_to_array(values).ok();
                let values = values.filter(|values| values.data_type() == field.data_type());
                values.unwrap_or_else(|| new_null_array(field.data_type(), self.len()))
            };
            Known { min: array(min), max: array(max), nulls: Arc::new(UInt64Array::from(nulls)) }
        })
    }

    /// Smallest and largest value and number of NULLs of a column of a segment, as the footer tells them.
    fn bounds(&self, segment: u32, column: usize) -> (ScalarValue, ScalarValue, Option<u64>) {
        let data_type = self.schema.field(column).data_type();
        let unknown = || ScalarValue::try_new_null(data_type).unwrap_or(ScalarValue::Null);
        let Segment { row_group, rows, .. } = self.get(segment);
        if let Some(value) = self.constant(segment, column) {
            let nulls = if value.is_null() { rows as u64 } else { 0 };
            return (value.clone(), value, Some(nulls));
        }
        let place = self.file_of(segment).columns.get(column).copied().flatten();
        let bounds = self.scan_of(segment).extension::<Bounds>().zip(place);
        let bounds = bounds.and_then(|(bounds, place)| bounds.columns.get(place as usize)?.as_ref());
        let Some(bounds) = bounds else { return (unknown(), unknown(), None) };
        let at = row_group as usize;
        let nulls = (at < bounds.nulls.len() && bounds.nulls.is_valid(at)).then(|| bounds.nulls.value(at));
        // A value that is cast when it is read may sort otherwise. What writers say of floats leaves out NaN, which is
        // larger than all others here.
        if bounds.min.data_type() != data_type || data_type.is_floating() {
            return (unknown(), unknown(), nulls);
        }
        let value = |values: &ArrayRef| ScalarValue::try_from_array(values, at).unwrap_or_else(|_| unknown());
        (value(&bounds.min), value(&bounds.max), nulls)
    }
}

/// What is known of some segments, for DataFusion to leave out those in which nothing passes.
struct Statistics<'a> {
    segments: &'a Segments,
    kept: &'a [u32],
    cache: Option<&'a Cache>,
}

impl Statistics<'_> {
    /// What the footers say; where they say nothing, what was found when the column was loaded.
    fn values(
        &self,
        column: &Name,
        of_footer: impl Fn(&Known) -> &ArrayRef,
        of_zone: impl Fn(&Column) -> ScalarValue,
    ) -> Option<ArrayRef> {
        let at = self.segments.schema.index_of(column.name()).ok()?;
        let known = of_footer(self.segments.known(at));
        let indices = UInt32Array::from(self.kept.to_vec());
        let values = if self.kept.len() == known.len() { known.clone() } else { take(known, &indices, None).ok()? };
        if values.null_count() == 0 {
            return Some(values);
        }
        let Some(cache) = self.cache else { return Some(values) };
        let mut any = false;
        let found = self.kept.iter().enumerate().map(|(place, segment)| {
            if values.is_null(place)
                && let Some(column) = self.segments.held(*segment, at, cache)
            {
                any = true;
                return Ok(of_zone(&column));
            }
            ScalarValue::try_from_array(&values, place)
        });
        let found = found.collect::<Result<Vec<_>, DataFusionError>>().ok()?;
        if !any {
            return Some(values);
        }
        ScalarValue::iter_to_array(found).ok().filter(|found| found.data_type() == values.data_type())
    }
}

impl PruningStatistics for Statistics<'_> {
    fn min_values(&self, column: &Name) -> Option<ArrayRef> {
        self.values(column, |known| &known.min, |column| column.zone.lower())
    }

    fn max_values(&self, column: &Name) -> Option<ArrayRef> {
        self.values(column, |known| &known.max, |column| column.zone.upper())
    }

    fn num_containers(&self) -> usize {
        self.kept.len()
    }

    fn null_counts(&self, column: &Name) -> Option<ArrayRef> {
        let at = self.segments.schema.index_of(column.name()).ok()?;
        take(&self.segments.known(at).nulls, &UInt32Array::from(self.kept.to_vec()), None).ok()
    }

    fn row_counts(&self) -> Option<ArrayRef> {
        let rows = self.kept.iter().map(|segment| self.segments.get(*segment).rows as u64);
        Some(Arc::new(UInt64Array::from_iter_values(rows)))
    }

    fn contained(&self, _column: &Name, _values: &HashSet<ScalarValue>) -> Option<BooleanArray> {
        None
    }
}

/// What tells by bounds in which row groups rows of `table` may pass `filter`; `None` = it tells nothing.
pub(super) fn pruning(table: &SchemaRef, filter: Arc<dyn PhysicalExpr>) -> Option<PruningPredicate> {
    let pruning = PruningPredicateBuilder::new().with_file_schema(table.clone());
    pruning.try_build(filter).ok().filter(|pruning| !pruning.always_true())
}

/// What `cell` has, or else what `now` says: that stays, so that it is known also when the columns it is found in are not in
/// memory any more. `None` = it cannot be told as things are.
fn once<T>(cell: &OnceLock<T>, now: impl FnOnce() -> Option<T>) -> Option<&T> {
    match cell.get() {
        Some(known) => Some(known),
        None => {
            let now = now()?;
            Some(cell.get_or_init(|| now))
        }
    }
}

/// Whether comparing values of a type can be relied on to agree with what footers and zones say of them.
pub(super) fn is_plainly_ordered(data_type: &DataType) -> bool {
    let is_date_or_time = data_type.is_temporal() && !matches!(data_type, DataType::Interval(_));
    data_type.is_integer() || is_date_or_time || data_type.is_decimal() || data_type.is_string()
}
