//! The schema of an upload, read from its flatbuffer.
//!
//! arrow-ipc's own conversion panics on what it does not expect, so this one is ours: every case it does not know is an
//! error, and depth and number of fields are bounded before anything is built.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_ipc as fb;
use datafusion::arrow::array::timezone::Tz;
use datafusion::arrow::datatypes::{DataType, Field, Fields, IntervalUnit, Schema, TimeUnit};

use super::upload::{UploadError, UploadLimits};

/// Reads the schema of an upload. Every type in it is one that record batches can carry safely: no unions, no run-end
/// encoding, no list views, which no client sends as parameters and whose decoding has the most room for mistakes.
pub(super) fn read_schema(message: fb::Schema<'_>, limits: &UploadLimits) -> Result<Schema, UploadError> {
    if message.endianness() != fb::Endianness::Little {
        return Err(invalid("big-endian data is not supported"));
    }
    let mut walk = Walk { limits, fields: 0, text_bytes: 0, dictionaries: HashMap::new() };
    let fields = walk.children(message.fields().into_iter().flatten(), 1)?;
    Ok(Schema::new_with_metadata(fields, walk.metadata(message.custom_metadata().into_iter().flatten())?))
}

fn invalid(what: impl Into<String>) -> UploadError {
    UploadError::Schema { what: what.into() }
}

struct Walk<'l> {
    limits: &'l UploadLimits,
    fields: usize,
    /// Names and metadata copied so far. A flatbuffer may point to one long text from many fields.
    text_bytes: usize,
    /// The type of the values of each dictionary id: one id is one dictionary, so it has one type.
    dictionaries: HashMap<i64, DataType>,
}

impl Walk<'_> {
    fn children<'a>(
        &mut self,
        children: impl Iterator<Item = fb::Field<'a>>,
        depth: usize,
    ) -> Result<Fields, UploadError> {
        children.map(|child| self.field(child, depth)).collect::<Result<Vec<_>, _>>().map(Fields::from)
    }

    fn text(&mut self, text: &str) -> Result<String, UploadError> {
        self.text_bytes += text.len();
        if self.text_bytes > self.limits.header_bytes {
            return Err(invalid("names and metadata are too long"));
        }
        Ok(text.to_owned())
    }

    fn metadata<'a>(
        &mut self,
        pairs: impl Iterator<Item = fb::KeyValue<'a>>,
    ) -> Result<HashMap<String, String>, UploadError> {
        let pairs = pairs.filter_map(|pair| Some((pair.key()?, pair.value()?)));
        pairs.map(|(key, value)| Ok((self.text(key)?, self.text(value)?))).collect()
    }

    fn only_child(&mut self, field: fb::Field<'_>, depth: usize) -> Result<Field, UploadError> {
        match field.children() {
            Some(children) if children.len() == 1 => self.field(children.get(0), depth + 1),
            _ => Err(invalid(format!("a field of type {:?} has not exactly one child", field.type_type()))),
        }
    }

    fn field(&mut self, field: fb::Field<'_>, depth: usize) -> Result<Field, UploadError> {
        self.fields += 1;
        if self.fields > self.limits.fields {
            return Err(invalid(format!("more than {} fields", self.limits.fields)));
        }
        if depth > self.limits.depth {
            return Err(invalid(format!("fields nested deeper than {}", self.limits.depth)));
        }
        let name = self.text(field.name().unwrap_or_default())?;
        let value_type = self.data_type(field, depth)?;
        let read = match field.dictionary() {
            None => Field::new(name, value_type, field.nullable()),
            Some(dictionary) => {
                if dictionary.dictionaryKind() != fb::DictionaryKind::DenseArray {
                    return Err(invalid(format!("unknown kind of dictionary in field {name:?}")));
                }
                // The format's default for an index type that is not given.
                let key = dictionary.indexType().map_or(Ok(DataType::Int32), integer)?;
                let known = self.dictionaries.entry(dictionary.id()).or_insert_with(|| value_type.clone());
                if *known != value_type {
                    return Err(invalid(format!("dictionary {} has two types", dictionary.id())));
                }
                let data_type = DataType::Dictionary(Box::new(key), Box::new(value_type));
                // Deprecated since writers assign ids themselves; readers have no other place for them.
                #[allow(deprecated)]
                Field::new_dict(name, data_type, field.nullable(), dictionary.id(), dictionary.isOrdered())
            }
        };
        Ok(read.with_metadata(self.metadata(field.custom_metadata().into_iter().flatten())?))
    }

    /// The type of a field, for a dictionary the type of its values.
    fn data_type(&mut self, field: fb::Field<'_>, depth: usize) -> Result<DataType, UploadError> {
        let missing = || invalid(format!("type {:?} without its description", field.type_type()));
        Ok(match field.type_type() {
            fb::Type::Null => DataType::Null,
            fb::Type::Bool => DataType::Boolean,
            fb::Type::Binary => DataType::Binary,
            fb::Type::LargeBinary => DataType::LargeBinary,
            fb::Type::BinaryView => DataType::BinaryView,
            fb::Type::Utf8 => DataType::Utf8,
            fb::Type::LargeUtf8 => DataType::LargeUtf8,
            fb::Type::Utf8View => DataType::Utf8View,
            fb::Type::Int => integer(field.type_as_int().ok_or_else(missing)?)?,
            fb::Type::FloatingPoint => match field.type_as_floating_point().ok_or_else(missing)?.precision() {
                fb::Precision::HALF => DataType::Float16,
                fb::Precision::SINGLE => DataType::Float32,
                fb::Precision::DOUBLE => DataType::Float64,
                other => return Err(invalid(format!("unknown float precision {other:?}"))),
            },
            fb::Type::Decimal => decimal(field.type_as_decimal().ok_or_else(missing)?)?,
            fb::Type::FixedSizeBinary => match field.type_as_fixed_size_binary().ok_or_else(missing)?.byteWidth() {
                width if width > 0 => DataType::FixedSizeBinary(width),
                width => return Err(invalid(format!("fixed-size binary of width {width}"))),
            },
            fb::Type::Date => match field.type_as_date().ok_or_else(missing)?.unit() {
                fb::DateUnit::DAY => DataType::Date32,
                fb::DateUnit::MILLISECOND => DataType::Date64,
                other => return Err(invalid(format!("unknown date unit {other:?}"))),
            },
            fb::Type::Time => {
                let time = field.type_as_time().ok_or_else(missing)?;
                match (time.bitWidth(), time_unit(time.unit())?) {
                    (32, unit @ (TimeUnit::Second | TimeUnit::Millisecond)) => DataType::Time32(unit),
                    (64, unit @ (TimeUnit::Microsecond | TimeUnit::Nanosecond)) => DataType::Time64(unit),
                    (bits, unit) => return Err(invalid(format!("time of {bits} bits in {unit:?}"))),
                }
            }
            fb::Type::Timestamp => {
                let timestamp = field.type_as_timestamp().ok_or_else(missing)?;
                // Java sends an empty name for "no time zone".
                let zone = timestamp.timezone().filter(|zone| !zone.is_empty());
                if let Some(zone) = zone.filter(|zone| zone.parse::<Tz>().is_err()) {
                    return Err(invalid(format!("unknown time zone {:?}", zone.chars().take(64).collect::<String>())));
                }
                DataType::Timestamp(time_unit(timestamp.unit())?, zone.map(Arc::from))
            }
            fb::Type::Duration => DataType::Duration(time_unit(field.type_as_duration().ok_or_else(missing)?.unit())?),
            fb::Type::Interval => match field.type_as_interval().ok_or_else(missing)?.unit() {
                fb::IntervalUnit::YEAR_MONTH => DataType::Interval(IntervalUnit::YearMonth),
                fb::IntervalUnit::DAY_TIME => DataType::Interval(IntervalUnit::DayTime),
                fb::IntervalUnit::MONTH_DAY_NANO => DataType::Interval(IntervalUnit::MonthDayNano),
                other => return Err(invalid(format!("unknown interval unit {other:?}"))),
            },
            fb::Type::List => DataType::List(Arc::new(self.only_child(field, depth)?)),
            fb::Type::LargeList => DataType::LargeList(Arc::new(self.only_child(field, depth)?)),
            fb::Type::FixedSizeList => {
                let size = field.type_as_fixed_size_list().ok_or_else(missing)?.listSize();
                if size < 1 {
                    return Err(invalid(format!("fixed-size list of {size} items")));
                }
                DataType::FixedSizeList(Arc::new(self.only_child(field, depth)?), size)
            }
            fb::Type::Struct_ => DataType::Struct(self.children(field.children().into_iter().flatten(), depth + 1)?),
            fb::Type::Map => {
                let sorted = field.type_as_map().ok_or_else(missing)?.keysSorted();
                let entries = self.only_child(field, depth)?;
                match entries.data_type() {
                    DataType::Struct(fields) if fields.len() == 2 => {
                        // Some writers mark the entries nullable; the format says they never are, and arrow insists.
                        DataType::Map(Arc::new(entries.with_nullable(false)), sorted)
                    }
                    _ => return Err(invalid("a map whose entries are not pairs")),
                }
            }
            other => return Err(invalid(format!("values of type {other:?} cannot be uploaded"))),
        })
    }
}

fn integer(int: fb::Int<'_>) -> Result<DataType, UploadError> {
    Ok(match (int.bitWidth(), int.is_signed()) {
        (8, true) => DataType::Int8,
        (16, true) => DataType::Int16,
        (32, true) => DataType::Int32,
        (64, true) => DataType::Int64,
        (8, false) => DataType::UInt8,
        (16, false) => DataType::UInt16,
        (32, false) => DataType::UInt32,
        (64, false) => DataType::UInt64,
        (bits, _) => return Err(invalid(format!("integer of {bits} bits"))),
    })
}

fn decimal(decimal: fb::Decimal<'_>) -> Result<DataType, UploadError> {
    let (bits, precision, scale) = (decimal.bitWidth(), decimal.precision(), decimal.scale());
    let digits_max = match bits {
        32 => 9,
        64 => 18,
        128 => 38,
        256 => 76,
        _ => return Err(invalid(format!("decimal of {bits} bits"))),
    };
    let bad = || invalid(format!("decimal({precision}, {scale}) of {bits} bits"));
    if !(1..=digits_max).contains(&precision) || scale.unsigned_abs() > precision.unsigned_abs() {
        return Err(bad());
    }
    let precision = u8::try_from(precision).map_err(|_| bad())?;
    let scale = i8::try_from(scale).map_err(|_| bad())?;
    Ok(match bits {
        32 => DataType::Decimal32(precision, scale),
        64 => DataType::Decimal64(precision, scale),
        128 => DataType::Decimal128(precision, scale),
        _ => DataType::Decimal256(precision, scale),
    })
}

fn time_unit(unit: fb::TimeUnit) -> Result<TimeUnit, UploadError> {
    Ok(match unit {
        fb::TimeUnit::SECOND => TimeUnit::Second,
        fb::TimeUnit::MILLISECOND => TimeUnit::Millisecond,
        fb::TimeUnit::MICROSECOND => TimeUnit::Microsecond,
        fb::TimeUnit::NANOSECOND => TimeUnit::Nanosecond,
        other => return Err(invalid(format!("unknown time unit {other:?}"))),
    })
}
