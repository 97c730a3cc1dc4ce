//! What is known of the values of a column: enough to leave out rows that cannot match.

use datafusion::arrow::array::{Array, ArrayRef, ArrowNativeTypeOp, ArrowNumericType, AsArray, PrimitiveArray};
use datafusion::arrow::compute;
use datafusion::arrow::datatypes::{ArrowDictionaryKeyType, DataType, UInt8Type, UInt16Type};
use datafusion::arrow::downcast_primitive_array;
use datafusion::common::ScalarValue;
use datafusion::error::Result;

/// Text that is longer is no bound: it would take more room than it is worth.
const TEXT_MAX: usize = 1 << 10;

/// What is known of a column's values.
#[derive(Debug, Clone, PartialEq)]
pub struct Zone {
    /// The smallest value, of the table's column type; NULL when it is not known or there is none. Of floats it is so in
    /// their total order (-0.0 before 0.0), and not known when there is a NaN.
    pub min: ScalarValue,
    /// The largest value, likewise.
    pub max: ScalarValue,
    /// Number of NULLs.
    pub nulls: usize,
    /// The values ascend, and none is NULL (or NaN).
    pub sorted: bool,
}

impl Zone {
    /// The zone of a column as it is kept: plain, or coded.
    pub(crate) fn of(data: &ArrayRef) -> Result<Self> {
        let values = match data.data_type() {
            DataType::Dictionary(..) => data.as_any_dictionary().values(),
            _ => data,
        };
        let nulls = data.logical_null_count();
        let Known { min, max, ascends } = Known::of(values)?;
        let none = ScalarValue::try_from(values.data_type())?;
        let bounds = match (min.and_then(bound), max.and_then(bound)) {
            (Some(min), Some(max)) => (min, max),
            _ => (none.clone(), none),
        };
        let sorted = nulls == 0
            && match data.data_type() {
                DataType::Dictionary(key, _) if **key == DataType::UInt8 => codes_ascend::<UInt8Type>(data),
                DataType::Dictionary(key, _) if **key == DataType::UInt16 => codes_ascend::<UInt16Type>(data),
                _ => ascends && (data.is_empty() || !bounds.0.is_null()),
            };
        Ok(Self { min: bounds.0, max: bounds.1, nulls, sorted })
    }

    /// The zone of a column of which only the NULLs are known.
    pub(crate) fn unknown(data: &ArrayRef) -> Result<Self> {
        let none = ScalarValue::try_from(data.data_type())?;
        Ok(Self { min: none.clone(), max: none, nulls: data.logical_null_count(), sorted: false })
    }

    /// No value is smaller, whichever zero is taken for the smaller one; NULL = not known.
    pub(crate) fn lower(&self) -> ScalarValue {
        either_zero(&self.min, -0.0)
    }

    /// No value is larger, likewise.
    pub(crate) fn upper(&self) -> ScalarValue {
        either_zero(&self.max, 0.0)
    }

    /// Bytes that the bounds take.
    pub(crate) fn bytes(&self) -> usize {
        self.min.size() + self.max.size()
    }
}

/// What the values say, before floats and long text are looked at.
#[derive(Default)]
struct Known {
    min: Option<ScalarValue>,
    max: Option<ScalarValue>,
    /// Meaningless when there are NULLs.
    ascends: bool,
}

impl Known {
    fn of(values: &ArrayRef) -> Result<Self> {
        let values = values.as_ref();
        Ok(match values.data_type() {
            // Nothing else says which of two intervals is the longer.
            DataType::Interval(_) => Self::default(),
            DataType::Utf8View => {
                let strings = values.as_string_view();
                let text = |text: Option<&str>| text.map(|text| ScalarValue::Utf8View(Some(text.to_owned())));
                let (min, max) = (compute::min_string_view(strings), compute::max_string_view(strings));
                Self { min: text(min), max: text(max), ascends: strings.iter().is_sorted() }
            }
            DataType::Utf8 => {
                let strings = values.as_string::<i32>();
                let text = |text: Option<&str>| text.map(|text| ScalarValue::Utf8(Some(text.to_owned())));
                let (min, max) = (compute::min_string(strings), compute::max_string(strings));
                Self { min: text(min), max: text(max), ascends: strings.iter().is_sorted() }
            }
            DataType::Boolean => {
                let bits = values.as_boolean();
                let bit = |bit: Option<bool>| bit.map(|bit| ScalarValue::Boolean(Some(bit)));
                let (min, max) = (compute::min_boolean(bits), compute::max_boolean(bits));
                Self { min: bit(min), max: bit(max), ascends: bits.iter().is_sorted() }
            }
            _ => downcast_primitive_array!(values => Self::numbers(values)?, _ => Self::default()),
        })
    }

    /// Floats are compared as arrow's kernels do, by total order: NaN lies outside of all others, by its sign.
    fn numbers<T: ArrowNumericType>(values: &PrimitiveArray<T>) -> Result<Self>
    where
        T::Native: ArrowNativeTypeOp,
    {
        let number = |number: Option<T::Native>| {
            number.map(|number| ScalarValue::new_primitive::<T>(Some(number), values.data_type())).transpose()
        };
        Ok(Self {
            min: number(compute::min(values))?,
            max: number(compute::max(values))?,
            ascends: values.values().windows(2).all(|pair| pair[0].is_le(pair[1])),
        })
    }
}

/// Whether the values that the codes of `data` stand for ascend. Stops at the first that do not.
fn codes_ascend<K: ArrowDictionaryKeyType>(data: &ArrayRef) -> bool {
    let coded = data.as_dictionary::<K>();
    let values = coded.values().as_string_view();
    let value = |row: usize| coded.key(row).map(|code| values.value(code));
    coded.keys().values().windows(2).enumerate().all(|(row, pair)| pair[0] == pair[1] || value(row) <= value(row + 1))
}

/// `value`, unless it is no bound: a NaN, which is not in any order that all agree on, or a long text.
fn bound(value: ScalarValue) -> Option<ScalarValue> {
    let is_bound = match &value {
        ScalarValue::Float16(Some(float)) => !float.is_nan(),
        ScalarValue::Float32(Some(float)) => !float.is_nan(),
        ScalarValue::Float64(Some(float)) => !float.is_nan(),
        ScalarValue::Utf8View(Some(text)) | ScalarValue::Utf8(Some(text)) => text.len() <= TEXT_MAX,
        _ => true,
    };
    is_bound.then_some(value)
}

/// `value`, or `zero` for either zero, which are equal to some and different to others.
fn either_zero(value: &ScalarValue, zero: f32) -> ScalarValue {
    match value {
        ScalarValue::Float16(Some(float)) if float.to_f32() == 0.0 => {
            ScalarValue::from(zero).cast_to(&DataType::Float16).unwrap_or(ScalarValue::Float16(None))
        }
        ScalarValue::Float32(Some(0.0)) => ScalarValue::Float32(Some(zero)),
        ScalarValue::Float64(Some(0.0)) => ScalarValue::Float64(Some(zero.into())),
        value => value.clone(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use datafusion::arrow::array::{BooleanArray, Decimal128Array, Float64Array, Int64Array, StringViewArray};

    use super::*;
    use crate::coding::compact;

    fn zone(values: impl Array + 'static) -> Zone {
        Zone::of(&(Arc::new(values) as ArrayRef)).expect("a zone")
    }

    fn known(zone: &Zone) -> (String, String, usize, bool) {
        (zone.min.to_string(), zone.max.to_string(), zone.nulls, zone.sorted)
    }

    #[test]
    fn bounds_nulls_and_order() {
        assert_eq!(known(&zone(Int64Array::from(vec![1, 1, 7]))), ("1".into(), "7".into(), 0, true));
        assert_eq!(known(&zone(Int64Array::from(vec![Some(9), None, Some(10)]))), ("9".into(), "10".into(), 1, false));
        let none = zone(Int64Array::from(vec![None, None]));
        assert_eq!((&none.min, &none.max, none.nulls, none.sorted), (&ScalarValue::Int64(None), &none.max, 2, false));
        assert!(zone(Int64Array::from(Vec::<i64>::new())).sorted);
        let decimals = Decimal128Array::from(vec![-5, 3]).with_precision_and_scale(10, 2).expect("a decimal");
        assert_eq!(zone(decimals).min, ScalarValue::Decimal128(Some(-5), 10, 2));
        assert_eq!(known(&zone(BooleanArray::from(vec![false, true]))), ("false".into(), "true".into(), 0, true));
    }

    #[test]
    fn a_nan_makes_the_bounds_unknown_and_zeros_are_both_zeros() {
        for nan in [f64::NAN, -f64::NAN] {
            let zone = zone(Float64Array::from(vec![1.0, nan, 2.0]));
            assert!(zone.min.is_null() && zone.max.is_null() && !zone.sorted, "{zone:?}");
        }
        assert!(!zone(Float64Array::from(vec![1.0, f64::NAN])).sorted);
        let zeros = zone(Float64Array::from(vec![0.0, -0.0]));
        assert_eq!(known(&zeros), ("-0".into(), "0".into(), 0, false), "-0.0 comes before 0.0");
        for one in [0.0, -0.0] {
            let zeros = zone(Float64Array::from(vec![one]));
            assert_eq!((&zeros.min, &zeros.max), (&ScalarValue::from(one), &ScalarValue::from(one)));
            assert_eq!((zeros.lower(), zeros.upper()), (ScalarValue::from(-0.0), ScalarValue::from(0.0)));
        }
        let halves = compute::cast(&Float64Array::from(vec![0.0]), &DataType::Float16).expect("a zero");
        let halves = Zone::of(&halves).expect("a zone");
        assert_eq!((halves.lower().to_string(), halves.upper().to_string()), ("-0".into(), "0".into()));
        assert!(zone(Float64Array::from(vec![-1.5, -0.0, 0.0, f64::INFINITY])).sorted);
    }

    #[test]
    fn coded_strings_have_the_zone_of_plain_ones() {
        for rows in [vec!["b", "b", "c"], vec!["b", "c", "b"], vec!["b", "b", "a"]] {
            let rows: Vec<_> = rows.iter().flat_map(|text| vec![text.repeat(20); 100]).collect();
            let plain: ArrayRef = Arc::new(StringViewArray::from_iter_values(rows));
            let coded = compact(plain.clone());
            assert!(matches!(coded.data_type(), DataType::Dictionary(..)));
            assert_eq!(Zone::of(&coded).expect("a zone"), Zone::of(&plain).expect("a zone"));
        }
        let long = "x".repeat(TEXT_MAX + 1);
        let zone = zone(StringViewArray::from_iter_values(["a", &long]));
        assert!(zone.min.is_null() && zone.max.is_null() && !zone.sorted);
    }
}
