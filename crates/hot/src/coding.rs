//! How values are stored: as small as they are fast to use.
//!
//! A Parquet reader gives strings as views of the pages they were in. A file's own dictionary shows in them, as equal views,
//! but not reliably: a writer gives it up when it grows, and a row group may begin with one. So the few different values of
//! a column are found here, whatever its encoding was. Most views are known at once, by their 16 bytes; only those that point
//! at text not seen before are compared as text.

use std::sync::Arc;

use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, DictionaryArray, GenericByteViewArray, PrimitiveArray, StringViewArray, UInt64Array,
};
use datafusion::arrow::compute::take;
use datafusion::arrow::datatypes::{ByteViewType, DataType, UInt8Type, UInt16Type};
use datafusion::common::HashMap;

/// The most values of a dictionary.
const VALUES_MAX: usize = u16::MAX as usize;
/// Views that are remembered: of a column without a dictionary in the file each is another, and none is worth it.
const VIEWS_MAX: usize = 2 * VALUES_MAX;
/// Strings of up to as many bytes are in the view itself.
const INLINE_MAX: u32 = 12;

/// `values` as they are kept: strings coded where that halves them, views without the pages they came from.
pub(crate) fn compact(mut values: ArrayRef) -> ArrayRef {
    match values.data_type() {
        DataType::Utf8View => {
            let strings = values.as_string_view();
            coded(strings).unwrap_or_else(|| without_pages(strings))
        }
        DataType::BinaryView => without_pages(values.as_binary_view()),
        _ => {
            // Readers leave room to grow. Does nothing when others share the buffers.
            if let Some(values) = Arc::get_mut(&mut values) {
                values.shrink_to_fit();
            }
            values
        }
    }
}

/// `views` without the pages that the reader found them in, unless these are smaller: those of a dictionary hold once what
/// many rows share.
fn without_pages<T: ByteViewType>(views: &GenericByteViewArray<T>) -> ArrayRef {
    let pages: usize = views.data_buffers().iter().map(|buffer| buffer.capacity()).sum();
    match views.total_buffer_bytes_used() < pages {
        true => Arc::new(views.gc()),
        false => Arc::new(views.clone()),
    }
}

/// `strings` as a dictionary of few values; `None` when that would not halve them.
fn coded(strings: &StringViewArray) -> Option<ArrayRef> {
    let (codes, first_rows) = codes(strings)?;
    // No value at all: a code would point at nothing.
    if first_rows.is_empty() {
        return None;
    }
    let values = take(strings, &UInt64Array::from(first_rows), None).ok()?;
    let values: ArrayRef = Arc::new(values.as_string_view().gc());
    let narrow = values.len() <= 1 + usize::from(u8::MAX);
    let code_bytes = if narrow { 1 } else { 2 };
    let plain = strings.len() * size_of::<u128>() + strings.total_buffer_bytes_used();
    if values.get_array_memory_size() + codes.len() * code_bytes > plain / 2 {
        return None;
    }
    let nulls = strings.nulls().cloned();
    Some(match narrow {
        true => {
            let codes = codes.into_iter().map(|code| code as u8).collect::<Vec<_>>();
            Arc::new(DictionaryArray::try_new(PrimitiveArray::<UInt8Type>::new(codes.into(), nulls), values).ok()?)
        }
        false => {
            Arc::new(DictionaryArray::try_new(PrimitiveArray::<UInt16Type>::new(codes.into(), nulls), values).ok()?)
        }
    })
}

/// The code of each row, in order of first appearance (0 where it is NULL), and for each code the row that had it first.
fn codes(strings: &StringViewArray) -> Option<(Vec<u16>, Vec<u64>)> {
    let views = strings.views();
    let mut by_view: HashMap<u128, u16> = HashMap::new();
    let mut by_text: HashMap<&str, u16> = HashMap::new();
    let mut first_rows: Vec<u64> = Vec::new();
    let mut codes: Vec<u16> = Vec::with_capacity(views.len());
    let mut last: Option<(u128, u16)> = None;
    for (row, view) in views.iter().copied().enumerate() {
        if strings.is_null(row) {
            codes.push(0);
            continue;
        }
        let code = match last.filter(|(last, _)| *last == view) {
            Some((_, code)) => code,
            None => match by_view.get(&view) {
                Some(code) => *code,
                None => {
                    let next = first_rows.len();
                    // The lowest bits of a view are the length.
                    let inline = view as u32 <= INLINE_MAX;
                    let code = match inline {
                        true => next,
                        false => usize::from(*by_text.entry(strings.value(row)).or_insert(next as u16)),
                    };
                    if code == next {
                        if next == VALUES_MAX {
                            return None;
                        }
                        first_rows.push(row as u64);
                    }
                    let code = code as u16;
                    if inline || by_view.len() < VIEWS_MAX {
                        by_view.insert(view, code);
                    }
                    code
                }
            },
        };
        last = Some((view, code));
        codes.push(code);
    }
    Some((codes, first_rows))
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::arrow::compute::cast;

    fn strings(values: impl Iterator<Item = Option<String>>) -> ArrayRef {
        Arc::new(values.collect::<StringViewArray>())
    }

    fn check(plain: &ArrayRef) -> ArrayRef {
        let compact = compact(plain.clone());
        assert_eq!(&cast(&compact, &DataType::Utf8View).expect("a cast"), plain);
        compact
    }

    #[test]
    fn few_values_are_stored_once() {
        let long = |i: usize| (!i.is_multiple_of(7)).then(|| format!("a string too long for a view, {}", i % 20));
        for (distinct, code) in [(20, DataType::UInt8), (256, DataType::UInt8), (257, DataType::UInt16)] {
            let text =
                |i: usize| (!i.is_multiple_of(7)).then(|| format!("a string too long for a view, {}", i % distinct));
            let coded = check(&strings((0..20_000).map(text)));
            assert_eq!(coded.data_type(), &DataType::Dictionary(Box::new(code), Box::new(DataType::Utf8View)));
            let values = coded.as_any_dictionary().values();
            assert!(values.len() == distinct && values.null_count() == 0, "{}", values.len());
        }
        let plain = strings((0..20_000).map(long));
        let saved = check(&plain).get_array_memory_size() * 10;
        assert!(saved < plain.get_array_memory_size());
        check(&strings((0..1000).map(|i| Some(["", "a", "b\0"][i % 3].to_owned()))));
    }

    #[test]
    fn many_values_stay_plain_and_leave_their_pages() {
        let text = |i: usize| Some(format!("{i} is a different string in every row"));
        let all = strings((0..VALUES_MAX * 2).map(text));
        let slice = all.slice(10, 100);
        let kept = check(&slice);
        assert_eq!(kept.data_type(), &DataType::Utf8View);
        assert!(kept.get_array_memory_size() < 10_000);
        let short = strings((0..VALUES_MAX * 2).map(|i| Some(i.to_string())));
        assert_eq!(check(&short).data_type(), &DataType::Utf8View, "each is another");
    }

    #[test]
    fn what_many_rows_share_stays_shared() {
        let distinct = 2 * VALUES_MAX;
        let shared = strings((0..distinct).map(|i| Some(format!("a text that is too long for a view, {i}"))));
        let rows = UInt64Array::from_iter_values((0..4 * distinct as u64).map(|row| row % distinct as u64));
        let values = take(&shared, &rows, None).expect("rows");
        assert!(check(&values).get_array_memory_size() <= values.get_array_memory_size());
    }

    #[test]
    fn one_value_more_than_codes_can_tell_apart() {
        for (distinct, coded) in [(VALUES_MAX, true), (VALUES_MAX + 1, false)] {
            for width in [0, 20] {
                let plain = strings((0..distinct * 8).map(|i| Some(format!("{:width$}", i % distinct))));
                let is_coded = matches!(check(&plain).data_type(), DataType::Dictionary(..));
                assert_eq!(is_coded, coded, "{distinct} values of width {width}");
            }
        }
    }

    #[test]
    fn nothing_but_nulls_and_nothing_at_all() {
        for rows in [0, 100] {
            assert_eq!(check(&strings((0..rows).map(|_| None))).data_type(), &DataType::Utf8View);
        }
    }
}
