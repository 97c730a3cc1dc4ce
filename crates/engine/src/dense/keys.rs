//! The keys of a group as one number.
//!
//! A key's value is an ordinal: 0 for NULL, then the values of a known range in their order, or strings in the order
//! in which they came. The ordinals of all keys are the digits of the group's slot.

use datafusion::arrow::array::{Array, ArrayData, ArrayRef, AsArray, make_array};
use datafusion::arrow::buffer::{BooleanBuffer, Buffer, NullBuffer};
use datafusion::arrow::datatypes::{ArrowNativeType, DataType};
use datafusion::common::{Result, ScalarValue, internal_datafusion_err};

/// The most slots: their numbers are a table of 256 MiB.
pub(super) const SLOTS_MAX: u32 = 64 << 20;

/// What the values of a key are known to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Domain {
    /// Whole numbers, or what is stored as such: `count` of them from `min` on.
    Range { min: i64, count: u32 },
    /// Strings, numbered as they come.
    Coded,
}

impl Domain {
    /// From the least to the greatest value of a column of this type; `None` if that says nothing, or is too wide.
    pub(super) fn between(data_type: &DataType, least: &ScalarValue, greatest: &ScalarValue) -> Option<Self> {
        // The same number of another scale is another value.
        if least.data_type() != *data_type || greatest.data_type() != *data_type {
            return None;
        }
        let (min, max) = (whole(least)?, whole(greatest)?);
        // In the order of the type: as a bare number the greatest of `UInt64` is -1.
        if least.partial_cmp(greatest)?.is_gt() {
            return None;
        }
        let count = u32::try_from(max.wrapping_sub(min).cast_unsigned()).ok()?.checked_add(1)?;
        (count < SLOTS_MAX).then_some(Self::Range { min, count })
    }

    /// What the type alone says.
    pub(super) fn of_type(data_type: &DataType) -> Option<Self> {
        match data_type {
            DataType::Boolean => Some(Self::Range { min: 0, count: 2 }),
            DataType::Int8 => Some(Self::Range { min: i8::MIN.into(), count: 1 << 8 }),
            DataType::UInt8 => Some(Self::Range { min: 0, count: 1 << 8 }),
            DataType::Int16 => Some(Self::Range { min: i16::MIN.into(), count: 1 << 16 }),
            DataType::UInt16 => Some(Self::Range { min: 0, count: 1 << 16 }),
            DataType::Dictionary(_, values) if is_string(values) => Some(Self::Coded),
            _ => None,
        }
    }
}

pub(super) fn is_string(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}

/// A stored value as a number: the same for equal values, another for others.
trait Whole: ArrowNativeType {
    /// `None` if it is too large for any range of ours.
    fn whole(self) -> Option<i64>;
    /// The value that `number` stands for.
    fn from_whole(number: i64) -> Self;
}

macro_rules! whole {
    ($($native:ty),*) => {$(
        impl Whole for $native {
            #[inline]
            fn whole(self) -> Option<i64> {
                Some(self as i64)
            }

            #[inline]
            fn from_whole(number: i64) -> Self {
                number as Self
            }
        }
    )*};
}

whole!(i8, i16, i32, i64, u8, u16, u32, u64);

impl Whole for i128 {
    #[inline]
    fn whole(self) -> Option<i64> {
        i64::try_from(self).ok()
    }

    #[inline]
    fn from_whole(number: i64) -> Self {
        number.into()
    }
}

/// Does something with the native type of a type's values, and something else for types that are not whole numbers.
macro_rules! natively {
    ($data_type:expr, $native:ident => $do:expr, else $other:expr) => {
        match $data_type {
            DataType::Int8 => {
                type $native = i8;
                $do
            }
            DataType::Int16 => {
                type $native = i16;
                $do
            }
            DataType::Int32 | DataType::Date32 | DataType::Time32(_) | DataType::Decimal32(..) => {
                type $native = i32;
                $do
            }
            DataType::Int64
            | DataType::Date64
            | DataType::Time64(_)
            | DataType::Timestamp(..)
            | DataType::Duration(_)
            | DataType::Decimal64(..) => {
                type $native = i64;
                $do
            }
            DataType::UInt8 => {
                type $native = u8;
                $do
            }
            DataType::UInt16 => {
                type $native = u16;
                $do
            }
            DataType::UInt32 => {
                type $native = u32;
                $do
            }
            DataType::UInt64 => {
                type $native = u64;
                $do
            }
            DataType::Decimal128(..) => {
                type $native = i128;
                $do
            }
            _ => $other,
        }
    };
}

fn whole(value: &ScalarValue) -> Option<i64> {
    if value.is_null() {
        return None;
    }
    let value = value.to_array().ok()?.to_data();
    natively!(value.data_type(), Native => value.buffer::<Native>(0)[0].whole(), else None)
}

/// Adds `stride` times the ordinal of each of `values` to its slot. False if a value is out of the range; the slots
/// are worthless then.
pub(super) fn add_range(values: &ArrayRef, min: i64, count: u32, stride: u32, slots: &mut [u32]) -> Result<bool> {
    if let Some(values) = values.as_boolean_opt() {
        for (row, slot) in slots.iter_mut().enumerate() {
            let ordinal = if values.is_null(row) { 0 } else { 1 + u32::from(values.value(row)) };
            *slot = slot.wrapping_add(ordinal.wrapping_mul(stride));
        }
        return Ok(true);
    }
    let nulls = values.nulls().filter(|nulls| nulls.null_count() > 0);
    let data = values.to_data();
    natively!(
        data.data_type(),
        Native => Ok(add_whole(&data.buffer::<Native>(0)[..values.len()], nulls, (min, count), stride, slots)),
        else Err(internal_datafusion_err!("{} has no range", data.data_type()))
    )
}

fn add_whole<N: Whole>(
    values: &[N],
    nulls: Option<&NullBuffer>,
    (min, count): (i64, u32),
    stride: u32,
    slots: &mut [u32],
) -> bool {
    let offset = |value: N| value.whole().map_or(u64::MAX, |value| value.wrapping_sub(min).cast_unsigned());
    let mut fits = true;
    let rows = values.iter().zip(slots);
    match nulls {
        None => {
            for (value, slot) in rows {
                let offset = offset(*value);
                fits &= offset < u64::from(count);
                *slot = slot.wrapping_add((offset as u32).wrapping_add(1).wrapping_mul(stride));
            }
        }
        Some(nulls) => {
            for ((value, slot), valid) in rows.zip(nulls) {
                let offset = offset(*value);
                fits &= !valid || offset < u64::from(count);
                let ordinal = (offset as u32).wrapping_add(1).wrapping_mul(stride);
                *slot = slot.wrapping_add(if valid { ordinal } else { 0 });
            }
        }
    }
    fits
}

/// The values of these ordinals of a range.
pub(super) fn range_values(ordinals: &[u32], min: i64, data_type: &DataType) -> Result<ArrayRef> {
    let nulls = NullBuffer::new(BooleanBuffer::collect_bool(ordinals.len(), |group| ordinals[group] > 0));
    let nulls = Some(nulls).filter(|nulls| nulls.null_count() > 0);
    let value = |ordinal: &u32| min.wrapping_add(i64::from(*ordinal) - 1);
    let buffer = if *data_type == DataType::Boolean {
        BooleanBuffer::collect_bool(ordinals.len(), |group| ordinals[group] == 2).into_inner()
    } else {
        natively!(
            data_type,
            Native => Buffer::from_vec(ordinals.iter().map(|ordinal| Native::from_whole(value(ordinal))).collect::<Vec<_>>()),
            else return Err(internal_datafusion_err!("{data_type} has no range"))
        )
    };
    let data = ArrayData::builder(data_type.clone()).len(ordinals.len()).nulls(nulls).add_buffer(buffer);
    Ok(make_array(data.build()?))
}

/// Adds `stride` times the ordinal of each of `values`, a dictionary whose values have these ordinals, to its slot.
pub(super) fn add_coded(values: &ArrayRef, ordinals: &[u32], stride: u32, slots: &mut [u32]) -> Result<()> {
    let dictionary = values.as_any_dictionary_opt();
    let keys = dictionary.ok_or_else(|| internal_datafusion_err!("{} is no dictionary", values.data_type()))?.keys();
    let nulls = keys.nulls().filter(|nulls| nulls.null_count() > 0);
    let data = keys.to_data();
    natively!(data.data_type(), Native => {
        // What is stored where a key is NULL may be out of bounds.
        let ordinal = |key: Native| ordinals.get(key.as_usize()).copied().unwrap_or(0).wrapping_mul(stride);
        let rows = data.buffer::<Native>(0)[..keys.len()].iter().zip(slots);
        match nulls {
            None => rows.for_each(|(key, slot)| *slot += ordinal(*key)),
            Some(nulls) => rows.zip(nulls).for_each(|((key, slot), valid)| *slot += if valid { ordinal(*key) } else { 0 }),
        }
        Ok(())
    }, else Err(internal_datafusion_err!("{} is no key of a dictionary", data.data_type())))
}

/// How the ordinals of several keys make up a slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Radix {
    /// Of each key, how many ordinals it may have, and the slots from one of them to the next.
    digits: Vec<(u32, u32)>,
    slots: u32,
}

impl Radix {
    /// For keys with so many ordinals each; `None` when that makes more slots than `most`.
    pub(super) fn new(ordinals: impl IntoIterator<Item = u32>, most: u32) -> Option<Self> {
        let mut slots = 1_u32;
        let mut digits = Vec::new();
        for ordinals in ordinals {
            digits.push((ordinals, slots));
            slots = slots.checked_mul(ordinals).filter(|slots| *slots <= most)?;
        }
        Some(Self { digits, slots })
    }

    /// How many slots there are.
    pub(super) fn slots(&self) -> u32 {
        self.slots
    }

    /// How many ordinals `key` may have.
    pub(super) fn ordinals(&self, key: usize) -> u32 {
        self.digits[key].0
    }

    /// The slots from one ordinal of `key` to the next.
    pub(super) fn stride(&self, key: usize) -> u32 {
        self.digits[key].1
    }

    /// The ordinals of `key` in these slots.
    pub(super) fn digit(&self, key: usize, slots: &[u32]) -> Vec<u32> {
        let (ordinals, stride) = self.digits[key];
        match self.digits.len() {
            1 => slots.to_vec(),
            _ => slots.iter().map(|slot| slot / stride % ordinals).collect(),
        }
    }

    /// These slots of `self` in `other`, which has room for no fewer ordinals of each key.
    pub(super) fn convert(&self, slots: &[u32], other: &Self) -> Vec<u32> {
        if self == other {
            return slots.to_vec();
        }
        let mut converted = vec![0; slots.len()];
        for key in 0..self.digits.len() {
            let stride = other.stride(key);
            for (slot, ordinal) in converted.iter_mut().zip(self.digit(key, slots)) {
                *slot += ordinal * stride;
            }
        }
        converted
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use datafusion::arrow::array::{Decimal128Array, Int64Array, UInt64Array};

    use super::*;

    #[test]
    fn a_range_is_of_its_type_and_not_too_wide() {
        let between = |least: &ScalarValue, greatest: &ScalarValue| {
            Domain::between(&least.data_type(), least, greatest).map(|domain| match domain {
                Domain::Range { min, count } => (min, count),
                Domain::Coded => panic!("numbers are no codes"),
            })
        };
        let int = |value: i64| ScalarValue::Int64(Some(value));
        let most = i64::from(SLOTS_MAX) - 2;
        assert_eq!(between(&int(-3), &int(4)), Some((-3, 8)));
        assert_eq!(between(&int(7), &int(7 + most)), Some((7, SLOTS_MAX - 1)), "and one slot for NULL");
        assert_eq!(between(&int(7), &int(8 + most)), None);
        assert_eq!(between(&int(i64::MIN), &int(i64::MAX)), None);
        assert_eq!(between(&int(4), &int(3)), None);
        assert_eq!(between(&int(i64::MAX), &int(i64::MIN)), None, "their difference is 1 of 2^64");
        assert_eq!(between(&ScalarValue::Int64(None), &int(1)), None);
        assert_eq!(between(&int(1), &ScalarValue::Int32(Some(2))), None);
        let big = |value: u64| ScalarValue::UInt64(Some(value));
        assert_eq!(between(&big(u64::MAX - 1), &big(u64::MAX)), Some((-2, 2)));
        assert_eq!(between(&big(u64::MAX), &big(0)), None, "as bare numbers -1 and 0");
        let decimal = |value, scale| ScalarValue::Decimal128(Some(value), 38, scale);
        assert_eq!(between(&decimal(-5, 2), &decimal(5, 2)), Some((-5, 11)));
        assert_eq!(between(&decimal(-5, 2), &decimal(5, 3)), None);
        assert_eq!(between(&decimal(1 << 70, 2), &decimal((1 << 70) + 1, 2)), None);
        assert_eq!(between(&ScalarValue::Float64(Some(0.0)), &ScalarValue::Float64(Some(1.0))), None);
    }

    #[test]
    fn only_values_of_the_range_have_slots() {
        let slots = |values: ArrayRef, min, count| {
            let mut slots = vec![1; values.len()];
            add_range(&values, min, count, 10, &mut slots).expect("whole numbers").then_some(slots)
        };
        let ints = |values: Vec<Option<i64>>| Arc::new(Int64Array::from(values)) as ArrayRef;
        assert_eq!(slots(ints(vec![Some(-1), None, Some(1)]), -1, 3), Some(vec![11, 1, 31]));
        for outside in [-2, 2, i64::MAX, i64::MIN, i64::MIN + 1] {
            assert_eq!(slots(ints(vec![Some(outside)]), -1, 3), None);
            assert_eq!(slots(ints(vec![None, Some(outside)]), -1, 3), None);
        }
        for outside in [i64::MIN, i64::MIN + 1, 0, i64::MAX - 2] {
            assert_eq!(slots(ints(vec![Some(outside)]), i64::MAX - 1, 2), None);
        }
        let bigs = Arc::new(UInt64Array::from(vec![u64::MAX, u64::MAX - 1]));
        assert_eq!(slots(bigs, -2, 2), Some(vec![21, 11]));
        // Of which the low half is in the range.
        assert_eq!(slots(Arc::new(Decimal128Array::from(vec![1_i128 << 64])), 0, 3), None);
        assert_eq!(slots(ints(vec![]), 0, 1), Some(vec![]));
    }

    #[test]
    fn slots_go_to_other_radices_and_back_to_ordinals() {
        let small = Radix::new([3, 5], 15).expect("fifteen slots");
        assert_eq!(Radix::new([3, 5], 14), None);
        assert_eq!(Radix::new([u32::MAX, u32::MAX], u32::MAX), None);
        let large = Radix::new([8, 6], SLOTS_MAX).expect("room for all");
        let slots: Vec<u32> = (0..15).collect();
        let there = small.convert(&slots, &large);
        for key in 0..2 {
            assert_eq!(small.digit(key, &slots), large.digit(key, &there));
        }
        assert_eq!(small.convert(&slots, &small), slots);
    }
}
