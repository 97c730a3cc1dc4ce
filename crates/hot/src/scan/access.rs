//! Gets the rows of segments: from memory, into memory, or from their files.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use datafusion::arrow::datatypes::SchemaRef;
use datafusion::error::Result;

use super::cold::Cold;
use super::filter::Conjuncts;
use super::queue::Queue;
use super::rows::{Output, Rows, Values};
use super::source::HotSource;
use crate::column::Column;
use crate::file::Asked;
use crate::key::ColumnKey;

/// What all partitions of a scan do alike.
pub(super) struct Scan {
    pub(super) source: HotSource,
    /// The columns of the table that are looked at, ascending.
    pub(super) needed: Arc<[usize]>,
    pub(super) conjuncts: Conjuncts,
    pub(super) output: Output,
    cold: OnceLock<Cold>,
}

impl Scan {
    /// The scan of `source`, whose batches have `schema`.
    pub(super) fn new(source: &HotSource, schema: &SchemaRef) -> Result<Self> {
        let needed: Arc<[usize]> = source.columns().into();
        let conjuncts = Conjuncts::new(&source.filters, source.segments.schema(), &needed)?;
        let place = |output: usize| source.column_of(output).and_then(|column| needed.binary_search(&column).ok());
        let columns = source.coded().iter().enumerate();
        let columns = columns.filter_map(|(output, coded)| Some((place(output)?, *coded))).collect();
        let output = Output { schema: schema.clone(), columns };
        Ok(Self { source: source.clone(), needed, conjuncts, output, cold: OnceLock::new() })
    }

    /// How files are read.
    pub(super) fn cold(&self) -> Result<&Cold> {
        match self.cold.get() {
            Some(cold) => Ok(cold),
            None => {
                let cold = Cold::new(&self.source, &self.needed)?;
                Ok(self.cold.get_or_init(|| cold))
            }
        }
    }

    /// The keys of the needed columns that the file of a segment stores, each with its place among those needed.
    pub(super) fn keys(&self, segment: u32) -> (Vec<usize>, Vec<ColumnKey>) {
        let segments = &self.source.segments;
        let (file, row_group) = (segments.file_of(segment), segments.get(segment).row_group);
        let key = |(place, column): (usize, &usize)| {
            let data_type = segments.schema().field(*column).data_type();
            Some((place, file.column(row_group, *column, data_type)?))
        };
        self.needed.iter().enumerate().filter_map(key).unzip()
    }

    /// The rows of a segment of which those columns that its file stores are `columns`, in the order of their `places`.
    /// `None` = no row can pass.
    fn rows(&self, segment: u32, places: &[usize], columns: &[Arc<Column>]) -> Option<Rows> {
        let segments = &self.source.segments;
        let stored = |place: usize| places.binary_search(&place).ok().and_then(|at| columns.get(at));
        let values = self.needed.iter().enumerate().map(|(place, column)| match stored(place) {
            Some(stored) => Values::new(&stored.data, segments.schema().field(*column).data_type()),
            None => Values::Constant(segments.constant(segment, *column).expect("a column is stored or has one value")),
        });
        let values = values.collect();
        let len = segments.get(segment).rows;
        let mut rows = Rows::new(segment, len, values);
        rows.held = columns.to_vec();
        self.conjuncts.narrow(&mut rows, |place| stored(place).is_some_and(|column| column.zone.sorted));
        (!rows.range.is_empty()).then_some(rows)
    }

    /// The rows of a segment if all that is needed is in memory.
    pub(super) fn look(&self, segment: u32) -> Result<Option<Rows>, u32> {
        let (places, keys) = self.keys(segment);
        let columns = match keys.is_empty() {
            true => Vec::new(),
            false => self.source.cache.get(&self.source.table, &keys).ok_or(segment)?,
        };
        Ok(self.rows(segment, &places, &columns))
    }

    /// The rows of a segment, got into memory; `Err` = it is to be read from its file.
    pub(super) async fn load(&self, segment: u32) -> Result<Result<Option<Rows>, u32>> {
        // Few rows are read from the file faster than a whole row group is decoded.
        let few = |fetch| fetch < self.source.segments.get(segment).rows && self.conjuncts.is_empty();
        if self.source.fetch.is_some_and(few) {
            return Ok(Err(segment));
        }
        let (places, keys) = self.keys(segment);
        let loader = &self.source.segments.file_of(segment).loader;
        let when = self.cold()?.when;
        let columns = self.source.cache.get_or_load(&self.source.table, loader, &keys, when).await?;
        Ok(columns.map(|columns| self.rows(segment, &places, &columns)).ok_or(segment))
    }

    /// Has the bytes of a segment, as far as it is not in memory, brought near. `None` = there is no need, or no room; nor is
    /// any for the next.
    pub(super) fn ahead(&self, segment: u32) -> Option<Asked> {
        // Some of the rows are wanted, and it is not known of which segments.
        if self.source.fetch.is_some() {
            return None;
        }
        // What is wrong with it is said when it is read.
        let cold = self.cold().ok()?;
        let (places, keys) = self.keys(segment);
        let keys = places.into_iter().zip(keys).filter(|(place, _)| cold.reads_whole(&self.source, segment, *place));
        let keys = keys.map(|(_, key)| key).filter(|key| self.source.cache.peek(key).is_none());
        let keys: Vec<_> = keys.collect();
        match keys.is_empty() {
            true => Some(Box::new(())),
            false => self.source.segments.file_of(segment).loader.ahead(&keys),
        }
    }

    /// Has bytes brought near of what `queue` will give first, before anybody asks for rows: another side of a join may be
    /// read until then.
    pub(super) fn begin(&self, queue: &Queue) {
        // Filters that come from there may leave out others than the first of each partition.
        let most = if self.source.dynamic.is_empty() { usize::MAX } else { 1 };
        let mut asked = 0;
        queue.look_ahead(|segment| {
            asked += 1;
            let is_absent = || self.keys(segment).1.iter().any(|key| self.source.cache.peek(key).is_none());
            if asked <= most && is_absent() { self.ahead(segment) } else { None }
        });
    }

    /// The rows of a segment of which it is not known that they do not pass, `Some(None)` = no such row, if all that is
    /// needed is in memory. Nothing is counted.
    pub(super) fn peek(&self, segment: u32) -> Option<Option<Rows>> {
        let (places, keys) = self.keys(segment);
        let columns = keys.iter().map(|key| self.source.cache.peek(key)).collect::<Option<Vec<_>>>()?;
        Some(self.rows(segment, &places, &columns))
    }

    /// How many of the rows `range` pass the filters that are known beforehand.
    pub(super) fn count(&self, rows: &Rows, range: Range<usize>) -> Result<usize> {
        let (_, mask) = self.conjuncts.clone().passing(rows, &range, usize::MAX, None)?;
        Ok(mask.map_or(range.len(), |mask| mask.count_set_bits()))
    }
}
