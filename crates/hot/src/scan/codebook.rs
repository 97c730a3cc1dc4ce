//! Strings that come from files, as codes.
//!
//! A cast of a batch to a dictionary looks at the bytes of each string. Most strings that are given as codes are short, and
//! so in their views; and of the others, a reader gives all that are equal the same view within a batch.

use std::sync::Arc;

use datafusion::arrow::array::{
    Array, ArrayBuilder, ArrayRef, DictionaryArray, StringViewArray, StringViewBuilder, UInt32Array,
};
use datafusion::arrow::datatypes::UInt32Type;
use datafusion::common::HashMap;
use datafusion::error::Result;

/// Strings of up to as many bytes are in the view itself.
const INLINE_MAX: u32 = 12;
/// Strings after which a book begins anew. Each batch that has a new one makes the dictionary anew, and who gets it looks at all
/// of it again: of more values than this, those of the batch alone are fewer.
const VALUES_MAX: usize = 4096;
/// Views of a batch that are found without looking for them.
const AT_HAND: usize = 256;
/// No view of a string: it would be longer than any.
const NO_VIEW: u128 = u128::MAX;

/// The strings of one column that a partition has met, by their codes.
#[derive(Debug, Default)]
pub(super) struct Codebook {
    short: HashMap<u128, u32>,
    long: HashMap<Box<str>, u32>,
    /// The views of the batch that is looked at, of strings that are not in them.
    of_batch: HashMap<u128, u32>,
    values: StringViewBuilder,
    /// All `values`: the same array for batch after batch without anything new.
    dictionary: Option<ArrayRef>,
}

impl Codebook {
    /// `strings` as a `Dictionary(UInt32, Utf8View)`. It holds each string once, and may hold some that no row has.
    ///
    /// # Errors
    /// None for arrays that are valid.
    pub(super) fn encode(&mut self, strings: &StringViewArray) -> Result<ArrayRef> {
        if self.values.len() > VALUES_MAX {
            *self = Self::default();
        }
        self.of_batch.clear();
        let nulls = strings.nulls().filter(|nulls| nulls.null_count() > 0);
        let mut at_hand = [(NO_VIEW, 0); AT_HAND];
        let codes = strings.views().iter().enumerate().map(|(row, view)| {
            // What is under a NULL may be anything.
            if nulls.is_some_and(|nulls| nulls.is_null(row)) {
                return 0;
            }
            let place = &mut at_hand[place(*view)];
            if place.0 != *view {
                *place = (*view, self.code(strings, row, *view));
            }
            place.1
        });
        let codes = codes.collect::<Vec<u32>>();
        let values = self.dictionary.get_or_insert_with(|| Arc::new(self.values.finish_cloned())).clone();
        let codes = UInt32Array::new(codes.into(), nulls.cloned());
        Ok(Arc::new(DictionaryArray::<UInt32Type>::try_new(codes, values)?))
    }

    fn code(&mut self, strings: &StringViewArray, row: usize, view: u128) -> u32 {
        // The lowest bits of a view are the length.
        let is_short = view as u32 <= INLINE_MAX;
        let known = if is_short { &self.short } else { &self.of_batch };
        if let Some(code) = known.get(&view) {
            return *code;
        }
        let text = strings.value(row);
        if !is_short && let Some(code) = self.long.get(text) {
            self.of_batch.insert(view, *code);
            return *code;
        }
        // There are no more than rows in all batches until the book begins anew.
        let code = self.values.len() as u32;
        self.values.append_value(text);
        self.dictionary = None;
        if is_short {
            self.short.insert(view, code);
        } else {
            self.long.insert(text.into(), code);
            self.of_batch.insert(view, code);
        }
        code
    }
}

/// Where a view is at hand: few of those of one batch have the same place.
fn place(view: u128) -> usize {
    let mixed = (view as u64 ^ (view >> 64) as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (mixed >> (u64::BITS - AT_HAND.ilog2())) as usize
}

#[cfg(test)]
mod tests {
    use datafusion::arrow::array::AsArray;
    use datafusion::arrow::compute::cast;
    use datafusion::arrow::datatypes::DataType;

    use super::*;

    fn check(book: &mut Codebook, rows: &[Option<&str>]) -> ArrayRef {
        let plain = StringViewArray::from_iter(rows.iter().copied());
        let coded = book.encode(&plain).expect("codes");
        assert_eq!(cast(&coded, &DataType::Utf8View).expect("strings").as_string_view(), &plain);
        coded.as_dictionary::<UInt32Type>().values().clone()
    }

    #[test]
    fn strings_have_one_code_each_in_all_batches() {
        let mut book = Codebook::default();
        let (long, other) = ("a string that is not in its view", "a string that is not in another's");
        let first = check(&mut book, &[Some("a"), None, Some(long), Some("a"), Some(""), Some(other), Some(long)]);
        let again = check(&mut book, &[Some(other), Some(""), None, Some(long)]);
        assert!(Arc::ptr_eq(&first, &again) && first.len() == 4);
        let more = check(&mut book, &[None, None, Some("b"), Some(long), Some("b")]);
        assert_eq!(more.len(), 5);
        assert!(check(&mut book, &[]).len() == 5);
        assert!(check(&mut Codebook::default(), &[None]).is_empty());
    }

    #[test]
    fn a_book_is_bounded() {
        let mut book = Codebook::default();
        for batch in 0..20 {
            let texts: Vec<String> = (0..1000).map(|row| format!("{batch} and the row {row}")).collect();
            let values = check(&mut book, &texts.iter().map(|text| Some(text.as_str())).collect::<Vec<_>>());
            assert!((1000..=VALUES_MAX + 1000).contains(&values.len()));
        }
    }
}
