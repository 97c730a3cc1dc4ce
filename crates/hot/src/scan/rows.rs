//! Rows in memory: columns of a segment, cut, filtered and put together without copying more than what is wanted.

use std::ops::Range;
use std::sync::Arc;

use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, DictionaryArray, RecordBatch, RecordBatchOptions,
};
use datafusion::arrow::buffer::BooleanBuffer;
use datafusion::arrow::compute::{FilterBuilder, FilterPredicate, cast, take};
use datafusion::arrow::datatypes::{DataType, SchemaRef, UInt32Type};
use datafusion::common::ScalarValue;
use datafusion::error::Result;

use super::codebook::Codebook;
use crate::column::Column;

/// Some columns of the rows of a segment, or of a batch that was read from a file.
#[derive(Debug)]
pub(super) struct Rows {
    /// Tells the rows of one segment from those of others.
    pub(super) number: u32,
    /// In the order of the columns that the scan needs.
    pub(super) columns: Vec<Values>,
    /// The predicates, by their numbers, that all rows of `range` are known to pass.
    pub(super) passed: Vec<usize>,
    /// The rows in which others may pass too.
    pub(super) range: Range<usize>,
    /// What the cache is to count for as long as they are looked at.
    pub(super) held: Vec<Arc<Column>>,
}

impl Rows {
    /// All of `len` rows.
    pub(super) fn new(number: u32, len: usize, columns: Vec<Values>) -> Self {
        Self { number, columns, passed: Vec::new(), range: 0..len, held: Vec::new() }
    }
}

/// A column of some rows.
#[derive(Debug, Clone)]
pub(super) enum Values {
    /// Of the column's own type.
    Plain(ArrayRef),
    /// A dictionary of small codes.
    Coded(ArrayRef),
    /// One value for all rows.
    Constant(ScalarValue),
}

impl Values {
    pub(super) fn new(data: &ArrayRef, data_type: &DataType) -> Self {
        match data.data_type() {
            own if own == data_type => Self::Plain(data.clone()),
            _ => Self::Coded(data.clone()),
        }
    }

    /// The values of some rows, in the column's own type, without those that `keep` leaves out.
    pub(super) fn gather(&self, rows: &Range<usize>, keep: Option<&FilterPredicate>) -> Result<ArrayRef> {
        Ok(match self {
            Self::Plain(data) => keep_of(data, rows, keep)?,
            Self::Coded(data) => {
                let data = data.as_any_dictionary();
                // Views of the dictionary's strings: none of their bytes is copied.
                take(data.values(), &keep_of(&data.keys().slice(0, data.keys().len()), rows, keep)?, None)?
            }
            Self::Constant(value) => value.to_array_of_size(keep.map_or(rows.len(), FilterPredicate::count))?,
        })
    }

    /// The same, as codes of 32 bits and the strings that they stand for.
    pub(super) fn gather_coded(
        &self,
        rows: &Range<usize>,
        keep: Option<&FilterPredicate>,
        book: &mut Codebook,
    ) -> Result<ArrayRef> {
        let Self::Coded(data) = self else {
            return book.encode(self.gather(rows, keep)?.as_string_view());
        };
        let data = data.as_any_dictionary();
        let codes = keep_of(&data.keys().slice(0, data.keys().len()), rows, keep)?;
        let codes = cast(&codes, &DataType::UInt32)?.as_primitive::<UInt32Type>().clone();
        // The very same array of strings for all batches of a segment: who numbers strings does so once for each.
        Ok(Arc::new(DictionaryArray::<UInt32Type>::try_new(codes, data.values().clone())?))
    }
}

/// The type of a column of strings that is given as codes.
pub(super) fn coded_type() -> DataType {
    DataType::Dictionary(Box::new(DataType::UInt32), Box::new(DataType::Utf8View))
}

fn keep_of(data: &ArrayRef, rows: &Range<usize>, keep: Option<&FilterPredicate>) -> Result<ArrayRef> {
    let data = if *rows == (0..data.len()) { data.clone() } else { data.slice(rows.start, rows.len()) };
    Ok(match keep {
        Some(keep) => keep.filter(&data)?,
        None => data,
    })
}

/// What to keep of as many rows as `mask` has bits; all, if there is no mask.
pub(super) fn keeping(mask: Option<&BooleanBuffer>, columns: usize) -> Option<FilterPredicate> {
    let mask = mask?;
    let filter = BooleanArray::new(mask.clone(), None);
    let builder = FilterBuilder::new(&filter);
    // Finding the places of the rows once pays when several columns are to be cut.
    Some(if columns > 1 { builder.optimize().build() } else { builder.build() })
}

/// The columns that the scan gives, by their places among those that it needs, and whether each is given as codes.
#[derive(Debug, Clone)]
pub(super) struct Output {
    pub(super) schema: SchemaRef,
    pub(super) columns: Vec<(usize, bool)>,
}

impl Output {
    /// The rows of `range` that `mask` keeps.
    ///
    /// `books` has a book for each of its columns, for those that are given as codes and come without.
    pub(super) fn batch(
        &self,
        rows: &Rows,
        range: &Range<usize>,
        mask: Option<&BooleanBuffer>,
        books: &mut [Codebook],
    ) -> Result<RecordBatch> {
        let count = mask.map_or(range.len(), BooleanBuffer::count_set_bits);
        let keep = keeping(mask.filter(|_| !self.columns.is_empty()), self.columns.len());
        let columns = self.columns.iter().zip(books).map(|((place, coded), book)| match coded {
            false => rows.columns[*place].gather(range, keep.as_ref()),
            true => rows.columns[*place].gather_coded(range, keep.as_ref(), book),
        });
        let columns = columns.collect::<Result<Vec<_>>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(count));
        Ok(RecordBatch::try_new_with_options(self.schema.clone(), columns, &options)?)
    }
}
