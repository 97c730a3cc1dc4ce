//! Views of text and of bytes laid out one value after the other, as fast as memory takes them.

use datafusion::arrow::array::{Array, BinaryArray, ByteView, GenericByteViewArray};
use datafusion::arrow::buffer::{Buffer, OffsetBuffer, ScalarBuffer};
use datafusion::arrow::datatypes::ByteViewType;
use datafusion::arrow::error::ArrowError;

/// Values up to here are copied with the bytes that follow them: a copy of a length known beforehand is two instructions.
/// What is too much is overwritten by the next value.
const WIDE: usize = 32;
/// Values up to here are in the view itself.
const INLINE: usize = 12;

/// The values of `views` as bytes, whether they are text or not: on the wire both are offsets and bytes, and text need not be
/// checked again on its way there.
///
/// Fails when they are longer together than offsets of 32 bits can say.
pub(super) fn gathered<V: ByteViewType>(views: &GenericByteViewArray<V>) -> Result<BinaryArray, ArrowError> {
    let mut offsets: Vec<i32> = Vec::with_capacity(views.len() + 1);
    offsets.push(0);
    let mut end = 0_usize;
    // The low half of a view is the length of its value. An offset that does not fit is found by the last, which is larger.
    match views.nulls() {
        None => offsets.extend(views.views().iter().map(|view| {
            end += *view as u32 as usize;
            end as i32
        })),
        Some(nulls) => offsets.extend(views.views().iter().zip(nulls).map(|(view, is_valid)| {
            end += if is_valid { *view as u32 as usize } else { 0 };
            end as i32
        })),
    }
    if i32::try_from(end).is_err() {
        return Err(ArrowError::OffsetOverflowError(end));
    }
    let mut values = vec![0; end + WIDE];
    for (view, ends) in views.views().iter().zip(offsets.windows(2)) {
        let (start, len) = (ends[0] as usize, (ends[1] - ends[0]) as usize);
        if len <= INLINE {
            values[start..start + size_of::<u128>()].copy_from_slice(&(view >> 32).to_le_bytes());
            continue;
        }
        let place = ByteView::from(*view);
        let source = &views.data_buffers()[place.buffer_index as usize][place.offset as usize..];
        match source.get(..WIDE) {
            Some(wide) if len <= WIDE => values[start..start + WIDE].copy_from_slice(wide),
            _ => values[start..start + len].copy_from_slice(&source[..len]),
        }
    }
    values.truncate(end);
    let offsets = OffsetBuffer::new(ScalarBuffer::from(offsets));
    BinaryArray::try_new(offsets, Buffer::from(values), views.nulls().cloned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::arrow::array::{AsArray, BinaryViewArray, StringViewArray};
    use datafusion::arrow::compute::cast;
    use datafusion::arrow::datatypes::DataType;

    #[test]
    fn views_are_what_arrow_makes_of_them() {
        arbtest::arbtest(|u| {
            let values: Vec<Option<Vec<u8>>> = (0..u.int_in_range(0..=40)?)
                .map(|_| {
                    let len = *u.choose(&[0, 1, 11, 12, 13, 16, 31, 32, 33, 100])?;
                    let byte = u.arbitrary()?;
                    Ok(u.ratio(4, 5)?.then(|| vec![byte; len]))
                })
                .collect::<arbitrary::Result<_>>()?;
            let views = BinaryViewArray::from_iter(values.iter().map(Option::as_deref));
            let start = u.int_in_range(0..=views.len())?;
            let views = views.slice(start, u.int_in_range(0..=views.len() - start)?);
            let expected = cast(&views, &DataType::Binary).expect("a cast");
            assert_eq!(&gathered(&views).expect("short"), expected.as_binary::<i32>());
            Ok(())
        });
    }

    #[test]
    fn what_hides_under_nulls_is_not_sent() {
        let views = StringViewArray::from_iter([Some("short"), Some("a text too long for its view")]);
        let (views, buffers, _) = views.into_parts();
        let hidden = StringViewArray::try_new(views, buffers, Some(vec![false, false].into())).expect("two views");
        let sent = gathered(&hidden).expect("short");
        assert_eq!((sent.value_data().len(), sent.null_count()), (0, 2));
    }

    #[test]
    fn more_than_offsets_can_say_is_an_error() {
        let text = "z".repeat(1 << 20);
        let one = StringViewArray::from_iter_values([&text]);
        let (_, buffers, _) = one.clone().into_parts();
        let many = StringViewArray::try_new(vec![one.views()[0]; 2048].into(), buffers, None).expect("one view, often");
        assert!(matches!(gathered(&many), Err(ArrowError::OffsetOverflowError(_))));
        assert_eq!(gathered(&many.slice(0, 2047)).expect("2 GiB less one").value_data().len(), 2047 << 20);
    }
}
