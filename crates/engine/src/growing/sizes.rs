//! How large the results of functions are, told by their arguments.

use datafusion::arrow::array::{Array, ArrayRef, AsArray, GenericListArray, OffsetSizeTrait};
use datafusion::arrow::compute::cast;
use datafusion::arrow::compute::kernels::length::length;
use datafusion::arrow::datatypes::{DataType, Int64Type, IntervalMonthDayNanoType, IntervalUnit, TimeUnit};
use datafusion::common::Result;
use datafusion::logical_expr::ColumnarValue;

/// The functions that may give more than they are given, and how much.
pub(super) const FUNCTIONS: &[(&str, Size)] = &[
    ("repeat", Size::Repeated),
    ("array_repeat", Size::Items),
    ("lpad", Size::Padded),
    ("rpad", Size::Padded),
    ("array_resize", Size::Padded),
    ("array_to_string", Size::Joined),
    ("array_replace_n", Size::Swapped),
    ("array_replace_all", Size::Swapped),
    ("replace", Size::Replaced),
    ("regexp_replace", Size::Matched),
    ("concat", Size::Sum),
    ("concat_ws", Size::Sum),
    ("make_array", Size::Sum),
    ("array_concat", Size::Sum),
    ("range", Size::Series),
    ("generate_series", Size::Series),
];

/// Bytes of a number or moment in a list.
const NUMBER: u64 = 8;
/// Bytes of the longest character.
const CHARACTER: u64 = 4;
/// Up to here it is not worth counting what a text has in it.
const SHORT: u64 = 4 << 10;
const DAY: i128 = 86_400_000_000_000;
/// The shortest month: rather more steps than fewer.
const MONTH: i128 = 28 * DAY;

/// How the size of a result follows from the arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Size {
    /// The first, as often as the second says.
    Repeated,
    /// A list of the first, as often as the second says.
    Items,
    /// The first, made as many characters or items long as the second says, with the third.
    Padded,
    /// The first, with the third in place of each second in it.
    Replaced,
    /// The first, with the third, which may name what was matched, in place of what the pattern matches.
    Matched,
    /// The items of the first as text, with the second between them, and the third for those that are NULL.
    Joined,
    /// The first, with the third in place of any of its items.
    Swapped,
    /// All of them.
    Sum,
    /// Numbers or moments from the first to the second by the third.
    Series,
}

impl Size {
    /// Bytes of the result, rather too many than too few, and of the arguments where they are taken once for each row.
    ///
    /// # Errors
    /// None in practice: what Arrow says of a cast.
    pub(super) fn bytes(self, args: &[ColumnarValue]) -> Result<u64> {
        let rows = args.iter().find_map(|arg| match arg {
            ColumnarValue::Array(array) => Some(array.len()),
            ColumnarValue::Scalar(_) => None,
        });
        let args = args.iter().map(Values::new).collect::<Result<Vec<_>>>()?;
        let rows = 0..rows.unwrap_or(1);
        let sum = |bytes: &dyn Fn(usize) -> u64| rows.clone().fold(0_u64, |sum, row| sum.saturating_add(bytes(row)));
        let given = args.iter().fold(0_u64, |all, arg| all.saturating_add(sum(&|row| arg.bytes(row))));
        let made = match (self, args.as_slice()) {
            (Self::Repeated, [text, count]) => sum(&|row| text.bytes(row).saturating_mul(count.positive(row))),
            (Self::Items, [item, count]) => {
                sum(&|row| item.bytes(row).saturating_add(NUMBER).saturating_mul(count.positive(row)))
            }
            (Self::Padded, [text, long, with @ ..]) => {
                let with = with.first();
                sum(&|row| long.positive(row).saturating_mul(text.padding(with, row)))
            }
            (Self::Replaced, [text, from, to]) => {
                sum(&|row| text.count(from, row, to.bytes(row)).saturating_mul(to.bytes(row)))
            }
            (Self::Matched, [text, _, to, ..]) => sum(&|row| {
                // Matches do not overlap: together they are the text at most, each time they are named.
                let long = text.bytes(row);
                let named = long.saturating_mul(to.names(row));
                long.saturating_add(1).saturating_mul(to.bytes(row)).saturating_add(named)
            }),
            (Self::Joined, [list, between, with @ ..]) => sum(&|row| {
                let each = between.bytes(row).saturating_add(with.first().map_or(0, |with| with.bytes(row)));
                list.items(row).saturating_mul(each.saturating_add(NUMBER))
            }),
            (Self::Swapped, [list, _, to, ..]) => sum(&|row| list.items(row).saturating_mul(to.bytes(row))),
            (Self::Series, [to]) => sum(&|row| steps(None, to, None, row).saturating_mul(NUMBER)),
            (Self::Series, [from, to, by @ ..]) => {
                sum(&|row| steps(Some(from), to, by.first(), row).saturating_mul(NUMBER))
            }
            // Calls that are refused for their number of arguments.
            _ => 0,
        };
        Ok(given.saturating_add(made))
    }
}

/// An argument: a value for each row, or one for all.
struct Values {
    array: ArrayRef,
    for_all: bool,
    bytes: Vec<u64>,
    numbers: Option<ArrayRef>,
}

impl Values {
    fn new(value: &ColumnarValue) -> Result<Self> {
        let (array, for_all) = match value {
            ColumnarValue::Array(array) => (array.clone(), false),
            ColumnarValue::Scalar(scalar) => (scalar.to_array()?, true),
        };
        let numbers = match array.data_type().is_integer() {
            true => Some(cast(&array, &DataType::Int64)?),
            false => None,
        };
        Ok(Self { for_all, bytes: lengths(&array)?, numbers, array })
    }

    fn at(&self, row: usize) -> usize {
        if self.for_all { 0 } else { row }
    }

    fn bytes(&self, row: usize) -> u64 {
        self.bytes[self.at(row)]
    }

    fn number(&self, row: usize) -> Option<i64> {
        let (numbers, row) = (self.numbers.as_ref()?.as_primitive::<Int64Type>(), self.at(row));
        numbers.is_valid(row).then(|| numbers.value(row))
    }

    /// 0 for what is negative or NULL.
    fn positive(&self, row: usize) -> u64 {
        self.number(row).and_then(|number| u64::try_from(number).ok()).unwrap_or_default()
    }

    fn text(&self, row: usize) -> Option<&str> {
        let row = self.at(row);
        match self.array.data_type() {
            _ if self.array.is_null(row) => None,
            DataType::Utf8 => Some(self.array.as_string::<i32>().value(row)),
            DataType::LargeUtf8 => Some(self.array.as_string::<i64>().value(row)),
            DataType::Utf8View => Some(self.array.as_string_view().value(row)),
            _ => None,
        }
    }

    /// Bytes for each character or item that this is made longer by.
    fn padding(&self, with: Option<&Self>, row: usize) -> u64 {
        match (self.text(row), with) {
            (Some(_), Some(with)) if with.text(row).is_some_and(|text| !text.is_ascii()) => CHARACTER,
            (Some(_), _) => 1,
            (None, with) => with.map_or(NUMBER, |with| with.bytes(row).max(NUMBER)),
        }
    }

    /// How often `from` is in this at most, or exactly where it matters for as many bytes each.
    fn count(&self, from: &Self, row: usize, bytes: u64) -> u64 {
        let most = (self.bytes(row) / from.bytes(row).max(1)).saturating_add(1);
        match (self.text(row), from.text(row)) {
            (Some(text), Some(from)) if most.saturating_mul(bytes) > SHORT => text.matches(from).count() as u64,
            _ => most,
        }
    }

    /// How many items this has at most, those of its items included.
    fn items(&self, row: usize) -> u64 {
        let row = self.at(row);
        let mut items = self.array.slice(row, 1);
        loop {
            items = match items.data_type() {
                DataType::List(_) => of_lists(items.as_list::<i32>()),
                DataType::LargeList(_) => of_lists(items.as_list::<i64>()),
                DataType::FixedSizeList(..) => {
                    let list = items.as_fixed_size_list();
                    list.values().slice(list.value_offset(0) as usize, list.len() * list.value_length() as usize)
                }
                _ => return items.len() as u64,
            };
        }
    }

    /// How often this may name a part of a match.
    fn names(&self, row: usize) -> u64 {
        self.text(row).map_or(0, |text| text.matches(['\\', '$']).count() as u64)
    }

    /// Where this is on a line of numbers, or of nanoseconds.
    fn position(&self, row: usize) -> Option<i128> {
        let row = self.at(row);
        if self.array.is_null(row) {
            return None;
        }
        let nanos = match self.array.data_type() {
            DataType::Interval(IntervalUnit::MonthDayNano) => {
                let step = self.array.as_primitive::<IntervalMonthDayNanoType>().value(row);
                return Some(
                    i128::from(step.months) * MONTH + i128::from(step.days) * DAY + i128::from(step.nanoseconds),
                );
            }
            DataType::Date32 => DAY,
            DataType::Date64 | DataType::Timestamp(TimeUnit::Millisecond, _) => 1_000_000,
            DataType::Timestamp(TimeUnit::Second, _) => 1_000_000_000,
            DataType::Timestamp(TimeUnit::Microsecond, _) => 1_000,
            _ => 1,
        };
        let number = match self.number(row) {
            Some(number) => number,
            None => cast(&self.array.slice(row, 1), &DataType::Int64).ok()?.as_primitive::<Int64Type>().value(0),
        };
        Some(i128::from(number) * nanos)
    }
}

/// Bytes of each value; of nested ones, what each has on average.
fn lengths(array: &ArrayRef) -> Result<Vec<u64>> {
    let data_type = array.data_type();
    if let Some(width) = data_type.primitive_width() {
        return Ok(vec![width as u64; array.len()]);
    }
    if data_type.is_string() || data_type.is_binary() {
        let lengths = cast(&length(array)?, &DataType::Int64)?;
        let lengths = lengths.as_primitive::<Int64Type>().iter();
        return Ok(lengths
            .map(|bytes| bytes.and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or_default())
            .collect());
    }
    let all = array.to_data().get_slice_memory_size()?;
    Ok(vec![(all / array.len().max(1)) as u64; array.len()])
}

/// The items of all `lists`.
fn of_lists<O: OffsetSizeTrait>(lists: &GenericListArray<O>) -> ArrayRef {
    let (first, last) = (lists.value_offsets()[0].as_usize(), lists.value_offsets()[lists.len()].as_usize());
    lists.values().slice(first, last - first)
}

/// How many steps `by`, or by one, lead from `from`, or 0, to `to`.
fn steps(from: Option<&Values>, to: &Values, by: Option<&Values>, row: usize) -> u64 {
    let from = from.map_or(Some(0), |from| from.position(row));
    let by = by.map_or(Some(1), |by| by.position(row));
    let (Some(from), Some(to), Some(by)) = (from, to.position(row), by) else { return 0 };
    if by == 0 || (to - from).signum() != by.signum() {
        return 1;
    }
    u64::try_from((to - from) / by).unwrap_or(u64::MAX).saturating_add(1)
}
