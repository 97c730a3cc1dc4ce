//! The one mapping from the types of a query to the types a client gets.
//!
//! FlightInfo, GetSchema, prepared statements and the stream itself all call [`wire_schema`]: clients compare the schema
//! announced with the schema received, nullability included, and refuse the result when they differ. Extension types go
//! as their storage type with their `ARROW:extension:*` metadata, since field metadata is never touched.

use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, Field, FieldRef, IntervalUnit, Schema, TimeUnit, UnionFields};

use super::options::{Unsigned, WireOptions, WireTypes};

/// The schema a client gets for a query whose output is `schema`. Order, names, nullability and metadata are kept.
pub(crate) fn wire_schema(schema: &Schema, options: &WireOptions) -> Schema {
    let fields: Vec<FieldRef> = schema.fields().iter().map(|field| wire_field(field, &options.types)).collect();
    Schema::new_with_metadata(fields, schema.metadata().clone())
}

fn wire_field(field: &FieldRef, types: &WireTypes) -> FieldRef {
    let data_type = wire_type(field.data_type(), types);
    if data_type == *field.data_type() {
        return Arc::clone(field);
    }
    Arc::new(field.as_ref().clone().with_data_type(data_type))
}

/// The type a client gets for a column of type `data_type`, nested types included.
pub(crate) fn wire_type(data_type: &DataType, types: &WireTypes) -> DataType {
    use DataType::{
        Binary, BinaryView, Decimal32, Decimal64, Decimal128, Dictionary, FixedSizeList, Float16, Float32, Int16,
        Int32, Int64, Interval, LargeBinary, LargeList, LargeListView, LargeUtf8, List, ListView, Map, RunEndEncoded,
        Struct, UInt8, UInt16, UInt32, UInt64, Union, Utf8, Utf8View,
    };
    let widen = types.unsigned == Unsigned::Widened;
    let child = |field: &FieldRef| wire_field(field, types);
    match data_type {
        Utf8View if !types.views => Utf8,
        BinaryView if !types.views => Binary,
        LargeUtf8 if !types.large => Utf8,
        LargeBinary if !types.large => Binary,
        Float16 if !types.float16 => Float32,
        Decimal32(precision, scale) | Decimal64(precision, scale) if !types.decimal32_64 => {
            Decimal128(*precision, *scale)
        }
        UInt8 if widen => Int16,
        UInt16 if widen => Int32,
        UInt32 if widen => Int64,
        UInt64 if widen => Decimal128(20, 0),
        Interval(IntervalUnit::MonthDayNano) if widen => Utf8,
        Dictionary(key, value) if types.dictionaries => Dictionary(key.clone(), Box::new(wire_type(value, types))),
        Dictionary(_, value) => wire_type(value, types),
        RunEndEncoded(run_ends, values) if types.run_end => RunEndEncoded(Arc::clone(run_ends), child(values)),
        RunEndEncoded(_, values) => wire_type(values.data_type(), types),
        List(item) => List(child(item)),
        LargeList(item) if types.large => LargeList(child(item)),
        LargeList(item) => List(child(item)),
        ListView(item) if types.list_views => ListView(child(item)),
        ListView(item) => List(child(item)),
        LargeListView(item) => match (types.list_views, types.large) {
            (true, true) => LargeListView(child(item)),
            (true, false) => ListView(child(item)),
            (false, true) => LargeList(child(item)),
            (false, false) => List(child(item)),
        },
        FixedSizeList(item, size) => FixedSizeList(child(item), *size),
        Struct(fields) => Struct(fields.iter().map(child).collect()),
        Map(entries, sorted) => Map(child(entries), *sorted),
        Union(fields, mode) => {
            let fields: UnionFields = fields.iter().map(|(id, field)| (id, child(field))).collect();
            Union(fields, *mode)
        }
        other => other.clone(),
    }
}

/// `schema` with the SQL metadata of its columns (`ARROW:FLIGHT:SQL:*`) beside the metadata they have. `None` or an empty
/// string for a part of the table's name leaves it out, as for the result of a query.
///
/// `REMARKS` is never set: the JDBC driver shows it as the label of the column.
pub(crate) fn with_column_metadata(
    schema: &Schema,
    catalog: Option<&str>,
    db_schema: Option<&str>,
    table: Option<&str>,
) -> Schema {
    let fields: Vec<Field> = schema
        .fields()
        .iter()
        .map(|field| {
            let mut metadata = field.metadata().clone();
            let mut put = |key: &str, value: String| {
                metadata.insert(format!("ARROW:FLIGHT:SQL:{key}"), value);
            };
            for (key, value) in [("CATALOG_NAME", catalog), ("DB_SCHEMA_NAME", db_schema), ("TABLE_NAME", table)] {
                if let Some(value) = value.filter(|value| !value.is_empty()) {
                    put(key, value.to_owned());
                }
            }
            let sql = SqlType::of(field.data_type());
            put("TYPE_NAME", sql.name.to_owned());
            for (key, value) in [("PRECISION", sql.precision), ("SCALE", sql.scale)] {
                if let Some(value) = value {
                    put(key, value.to_string());
                }
            }
            put("IS_AUTO_INCREMENT", "0".to_owned());
            put("IS_CASE_SENSITIVE", if sql.name == "VARCHAR" { "1" } else { "0" }.to_owned());
            put("IS_READ_ONLY", "1".to_owned());
            put("IS_SEARCHABLE", "1".to_owned());
            field.as_ref().clone().with_metadata(metadata)
        })
        .collect();
    Schema::new_with_metadata(fields, schema.metadata().clone())
}

/// What SQL clients call a type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SqlType {
    /// Base name without parameters: `DECIMAL`, not `DECIMAL(18,3)`. BI tools look it up in the answer to GetXdbcTypeInfo.
    pub(crate) name: &'static str,
    /// Decimal digits of numbers, characters of the text form of dates and times; `None` where there is no bound.
    pub(crate) precision: Option<i32>,
    /// Decimal digits after the point, also of seconds; `None` where it has no meaning.
    pub(crate) scale: Option<i32>,
}

impl SqlType {
    /// The SQL type of an Arrow type; dictionaries and runs are what their values are.
    pub(crate) fn of(data_type: &DataType) -> Self {
        use DataType::{
            Binary, BinaryView, Boolean, Date32, Date64, Decimal32, Decimal64, Decimal128, Decimal256, Dictionary,
            Duration, FixedSizeBinary, FixedSizeList, Float16, Float32, Float64, Int8, Int16, Int32, Int64, Interval,
            LargeBinary, LargeList, LargeListView, LargeUtf8, List, ListView, Map, Null, RunEndEncoded, Struct, Time32,
            Time64, Timestamp, UInt8, UInt16, UInt32, UInt64, Union, Utf8, Utf8View,
        };
        let sql = |name, precision, scale| Self { name, precision, scale };
        match data_type {
            Null => sql("NULL", None, None),
            Boolean => sql("BOOLEAN", Some(1), None),
            Int8 => sql("TINYINT", Some(3), Some(0)),
            Int16 => sql("SMALLINT", Some(5), Some(0)),
            Int32 => sql("INTEGER", Some(10), Some(0)),
            Int64 => sql("BIGINT", Some(19), Some(0)),
            UInt8 => sql("TINYINT UNSIGNED", Some(3), Some(0)),
            UInt16 => sql("SMALLINT UNSIGNED", Some(5), Some(0)),
            UInt32 => sql("INTEGER UNSIGNED", Some(10), Some(0)),
            UInt64 => sql("BIGINT UNSIGNED", Some(20), Some(0)),
            Float16 | Float32 => sql("REAL", Some(7), None),
            Float64 => sql("DOUBLE", Some(15), None),
            Decimal32(precision, scale)
            | Decimal64(precision, scale)
            | Decimal128(precision, scale)
            | Decimal256(precision, scale) => sql("DECIMAL", Some(i32::from(*precision)), Some(i32::from(*scale))),
            Utf8 | LargeUtf8 | Utf8View => sql("VARCHAR", None, None),
            Binary | LargeBinary | BinaryView => sql("VARBINARY", None, None),
            FixedSizeBinary(width) => sql("BINARY", Some(*width), None),
            Date32 | Date64 => sql("DATE", Some(10), None),
            Time32(unit) | Time64(unit) => {
                let digits = second_digits(*unit);
                sql("TIME", Some(with_fraction(8, digits)), Some(digits))
            }
            Timestamp(unit, zone) => {
                let digits = second_digits(*unit);
                let name = if zone.is_some() { "TIMESTAMP WITH TIME ZONE" } else { "TIMESTAMP" };
                sql(name, Some(with_fraction(19, digits)), Some(digits))
            }
            Duration(unit) => sql("DURATION", None, Some(second_digits(*unit))),
            Interval(_) => sql("INTERVAL", None, None),
            List(_) | LargeList(_) | ListView(_) | LargeListView(_) | FixedSizeList(..) => sql("ARRAY", None, None),
            Struct(_) => sql("STRUCT", None, None),
            Map(..) => sql("MAP", None, None),
            Union(..) => sql("UNION", None, None),
            Dictionary(_, value) => Self::of(value),
            RunEndEncoded(_, values) => Self::of(values.data_type()),
        }
    }
}

fn second_digits(unit: TimeUnit) -> i32 {
    match unit {
        TimeUnit::Second => 0,
        TimeUnit::Millisecond => 3,
        TimeUnit::Microsecond => 6,
        TimeUnit::Nanosecond => 9,
    }
}

/// Length of the text form: the decimal point counts only when digits follow it.
fn with_fraction(length: i32, digits: i32) -> i32 {
    if digits == 0 { length } else { length + 1 + digits }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    use crate::wire::options::WireTypes;
    use datafusion::arrow::datatypes::UnionMode;

    fn list(item: DataType) -> DataType {
        DataType::List(Arc::new(Field::new("item", item, true)))
    }

    fn check(wire_types: &str, from: DataType, to: DataType) {
        let types: WireTypes = wire_types.parse().expect(wire_types);
        assert_eq!(wire_type(&from, &types), to, "{wire_types}: {from}");
    }

    #[test]
    fn compatible_maps_every_type_some_client_cannot_read() {
        use DataType::{
            Binary, BinaryView, Decimal32, Decimal64, Decimal128, Float16, Float32, Int8, Int32, LargeBinary,
            LargeList, LargeListView, LargeUtf8, ListView, UInt64, Utf8, Utf8View,
        };
        let field = |data_type: &DataType| Arc::new(Field::new("item", data_type.clone(), true));
        for (from, to) in [
            (Utf8View, Utf8),
            (BinaryView, Binary),
            (LargeUtf8, Utf8),
            (LargeBinary, Binary),
            (Float16, Float32),
            (Decimal32(7, 2), Decimal128(7, 2)),
            (Decimal64(12, -3), Decimal128(12, -3)),
            (UInt64, UInt64),
            (DataType::Dictionary(Box::new(Int8), Box::new(Utf8View)), Utf8),
            (DataType::RunEndEncoded(field(&Int32), field(&LargeUtf8)), Utf8),
            (LargeList(field(&Utf8View)), list(Utf8)),
            (ListView(field(&Float16)), list(Float32)),
            (LargeListView(field(&Float16)), list(Float32)),
            (DataType::FixedSizeList(field(&Utf8View), 3), DataType::FixedSizeList(field(&Utf8), 3)),
        ] {
            check("native", from.clone(), from.clone());
            check("compatible", from, to);
        }
    }

    #[test]
    fn bi_widens_what_bi_tools_overflow_on() {
        use DataType::{Decimal128, Int16, Int32, Int64, Interval, UInt8, UInt16, UInt32, UInt64, Utf8, Utf8View};
        check("bi", UInt8, Int16);
        check("bi", UInt16, Int32);
        check("bi", UInt32, Int64);
        check("bi", UInt64, Decimal128(20, 0));
        check("bi", Interval(IntervalUnit::MonthDayNano), Utf8);
        check("bi", Interval(IntervalUnit::YearMonth), Interval(IntervalUnit::YearMonth));
        check("bi", list(UInt8), list(Int16));
        check("bi", Utf8View, Utf8);
    }

    #[test]
    fn a_client_gets_what_it_names_and_nothing_else() {
        use DataType::{Float16, Float32, Int32, LargeUtf8, Utf8, Utf8View};
        check("views", Utf8View, Utf8View);
        check("views", LargeUtf8, Utf8);
        check("large,float16", LargeUtf8, LargeUtf8);
        check("float16", Float16, Float16);
        check("large", Float16, Float32);
        let dictionary = |value| DataType::Dictionary(Box::new(Int32), Box::new(value));
        check("dictionaries", dictionary(Utf8View), dictionary(Utf8));
        check("dictionaries,views", dictionary(Utf8View), dictionary(Utf8View));
    }

    #[test]
    fn the_mapping_reaches_all_children_and_keeps_names_nullability_and_metadata() {
        let extension: HashMap<_, _> = [("ARROW:extension:name".to_owned(), "arrow.json".to_owned())].into();
        let nested = |leaf: DataType| {
            let leaf = Field::new("leaf", leaf, false).with_metadata(extension.clone());
            let union =
                DataType::Union(UnionFields::try_new([4], [leaf.clone()]).expect("one child"), UnionMode::Dense);
            let entries = Field::new_struct(
                "entries",
                vec![Field::new("keys", leaf.data_type().clone(), false), Field::new("values", union, true)],
                false,
            );
            let map = DataType::Map(Arc::new(entries), true);
            Schema::new_with_metadata(
                vec![leaf, Field::new_struct("s", vec![Field::new("m", map, true)], false)],
                [("k".to_owned(), "v".to_owned())].into(),
            )
        };
        let wire = wire_schema(&nested(DataType::Utf8View), &WireOptions::default());
        assert_eq!(wire, nested(DataType::Utf8));
    }

    #[test]
    fn column_metadata_names_the_table_and_the_type() {
        let schema = Schema::new(vec![
            Field::new("price", DataType::Decimal128(15, 2), false)
                .with_metadata([("mine".to_owned(), "kept".to_owned())].into()),
            Field::new("at", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), true),
            Field::new("name", DataType::Utf8, true),
        ]);
        let described = with_column_metadata(&schema, Some("c"), Some("s"), Some("t"));
        let of = |index: usize| {
            let mut pairs: Vec<_> = described
                .field(index)
                .metadata()
                .iter()
                .map(|(key, value)| format!("{}={value}", key.trim_start_matches("ARROW:FLIGHT:SQL:")))
                .collect();
            pairs.sort();
            pairs.join(" ")
        };
        assert_eq!(
            of(0),
            "CATALOG_NAME=c DB_SCHEMA_NAME=s IS_AUTO_INCREMENT=0 IS_CASE_SENSITIVE=0 IS_READ_ONLY=1 IS_SEARCHABLE=1 \
             PRECISION=15 SCALE=2 TABLE_NAME=t TYPE_NAME=DECIMAL mine=kept"
        );
        assert!(of(1).contains("PRECISION=26 SCALE=6") && of(1).contains("TYPE_NAME=TIMESTAMP WITH TIME ZONE"));
        assert!(of(2).contains("IS_CASE_SENSITIVE=1") && !of(2).contains("PRECISION"));
        let anonymous = with_column_metadata(&schema, None, Some(""), None);
        assert!(anonymous.field(0).metadata().keys().all(|key| !key.contains("TABLE") && !key.contains("SCHEMA")));
    }
}
