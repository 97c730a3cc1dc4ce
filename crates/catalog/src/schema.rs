//! One schema for the files of a table: the union by name, in order of first appearance.
//!
//! A column that some file does not have is nullable, and NULL there. A column that has two types is a clash, named with
//! both files. Only where types were guessed from text may a guess give way: integers to floats, nothing to anything,
//! coarse timestamps to fine ones.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use datafusion::arrow::compute::can_cast_types;
use datafusion::arrow::datatypes::{DataType, Field, FieldRef, Fields, Schema, SchemaRef};

use crate::error::{Clash, Error};

/// The union of `files`, each with its name for messages and its schema. `guessed`: the types come from text.
/// `hidden` are names that partition folders give; they are not columns of the files.
pub(crate) fn union<'a>(
    table: &str,
    files: impl Iterator<Item = (&'a dyn Fn() -> String, &'a SchemaRef)>,
    guessed: bool,
    hidden: &[String],
) -> Result<Schema, Error> {
    let mut columns: Vec<Column> = Vec::new();
    let mut by_name: HashMap<String, usize> = HashMap::new();
    let mut seen: HashSet<&Schema> = HashSet::new();
    let mut schemas = 0;
    for (file, schema) in files {
        // Most files of a table have the schema of the others.
        if !seen.insert(schema.as_ref()) {
            continue;
        }
        schemas += 1;
        let mut own: HashSet<&str> = HashSet::new();
        for field in schema.fields() {
            if !own.insert(field.name()) {
                let problem = format!("file {} has the column {:?} twice", file(), field.name());
                return Err(Error::Table { table: table.to_owned(), problem });
            }
            if hidden.contains(field.name()) {
                continue;
            }
            let Some(&at) = by_name.get(field.name()) else {
                by_name.insert(field.name().clone(), columns.len());
                columns.push(Column { field: field.clone(), first_file: file(), schemas: 1 });
                continue;
            };
            let column = &mut columns[at];
            column.schemas += 1;
            let Some(data_type) = merge(column.field.data_type(), field.data_type(), guessed) else {
                return Err(Error::Clash(Box::new(Clash {
                    table: table.to_owned(),
                    column: field.name().clone(),
                    file: file(),
                    found: field.data_type().to_string(),
                    first_file: column.first_file.clone(),
                    expected: column.field.data_type().to_string(),
                })));
            };
            let nullable = column.field.is_nullable() || field.is_nullable();
            if data_type != *column.field.data_type() || nullable != column.field.is_nullable() {
                column.field =
                    Arc::new(column.field.as_ref().clone().with_data_type(data_type).with_nullable(nullable));
            }
        }
    }
    let fields = columns.into_iter().map(|column| {
        let everywhere = column.schemas == schemas;
        match (column.field.data_type(), everywhere) {
            // A column without a single value: text is the type that takes what comes later.
            (DataType::Null, _) if guessed => Arc::new(Field::new(column.field.name(), DataType::Utf8, true)),
            (_, true) => column.field,
            (_, false) => Arc::new(column.field.as_ref().clone().with_nullable(true)),
        }
    });
    Ok(Schema::new(fields.collect::<Fields>()))
}

struct Column {
    field: FieldRef,
    first_file: String,
    /// How many of the different schemas have it.
    schemas: usize,
}

/// The type that both can be read as, if there is one.
fn merge(a: &DataType, b: &DataType, guessed: bool) -> Option<DataType> {
    use DataType::{Float64, Int64, List, Null, Struct, Timestamp};
    if a == b {
        return Some(a.clone());
    }
    if !guessed {
        return None;
    }
    match (a, b) {
        (Null, other) | (other, Null) => Some(other.clone()),
        (Int64, Float64) | (Float64, Int64) => Some(Float64),
        (Timestamp(x, zone), Timestamp(y, other)) if zone == other => Some(Timestamp((*x).max(*y), zone.clone())),
        (List(x), List(y)) => {
            let item = merge(x.data_type(), y.data_type(), true)?;
            Some(List(Arc::new(x.as_ref().clone().with_data_type(item).with_nullable(true))))
        }
        (Struct(x), Struct(y)) => {
            let mut fields: Vec<FieldRef> = x.iter().cloned().collect();
            for field in y {
                match fields.iter_mut().find(|known| known.name() == field.name()) {
                    Some(known) => {
                        let merged = merge(known.data_type(), field.data_type(), true)?;
                        *known = Arc::new(known.as_ref().clone().with_data_type(merged).with_nullable(true));
                    }
                    None => fields.push(field.clone()),
                }
            }
            Some(Struct(fields.into()))
        }
        _ => None,
    }
}

/// Checks that `file`'s columns can be read as the ones the settings declare.
pub(crate) fn fits(table: &str, declared: &Schema, file: &dyn Fn() -> String, schema: &Schema) -> Result<(), Error> {
    for field in declared.fields() {
        let Ok(found) = schema.field_with_name(field.name()) else { continue };
        if found.data_type() != field.data_type() && !can_cast_types(found.data_type(), field.data_type()) {
            return Err(Error::Clash(Box::new(Clash {
                table: table.to_owned(),
                column: field.name().clone(),
                file: file(),
                found: found.data_type().to_string(),
                first_file: "the settings".to_owned(),
                expected: field.data_type().to_string(),
            })));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema(columns: &[(&str, DataType, bool)]) -> SchemaRef {
        Arc::new(Schema::new(columns.iter().map(|(n, t, null)| Field::new(*n, t.clone(), *null)).collect::<Vec<_>>()))
    }

    fn check(files: &[SchemaRef], guessed: bool) -> Result<String, String> {
        let names: Vec<Box<dyn Fn() -> String>> =
            (0..files.len()).map(|i| Box::new(move || format!("f{i}")) as Box<dyn Fn() -> String>).collect();
        let union = union("public.t", names.iter().map(|n| n.as_ref()).zip(files), guessed, &[]);
        let show = |f: &FieldRef| format!("{} {}{}", f.name(), f.data_type(), if f.is_nullable() { "?" } else { "" });
        union.map(|s| s.fields().iter().map(show).collect::<Vec<_>>().join(", ")).map_err(|e| e.to_string())
    }

    #[test]
    fn order_of_first_appearance_and_nulls_where_missing() {
        use DataType::{Float64, Int64, Utf8};
        let files =
            [schema(&[("b", Int64, false), ("a", Utf8, false)]), schema(&[("c", Float64, false), ("b", Int64, false)])];
        assert_eq!(check(&files, false).as_deref(), Ok("b Int64, a Utf8?, c Float64?"));
    }

    #[test]
    fn types_give_way_only_when_they_were_guessed() {
        use DataType::{Float64, Int64, Null, Utf8};
        let files = [schema(&[("x", Int64, true)]), schema(&[("x", Float64, true)])];
        assert_eq!(check(&files, true).as_deref(), Ok("x Float64?"));
        let clash = check(&files, false).expect_err("clash");
        for part in ["public.t", "\"x\"", "f0", "f1", "Int64", "Float64"] {
            assert!(clash.contains(part), "{clash}");
        }
        let empty = [schema(&[("x", Null, true)]), schema(&[("x", Utf8, true), ("y", Null, true)])];
        assert_eq!(check(&empty, true).as_deref(), Ok("x Utf8?, y Utf8?"));
        assert!(check(&[schema(&[("x", Int64, true)]), schema(&[("x", Utf8, true)])], true).is_err());
    }

    #[test]
    fn a_name_twice_in_one_file_is_refused() {
        let twice = check(&[schema(&[("x", DataType::Int64, true), ("x", DataType::Int64, true)])], true);
        assert!(twice.expect_err("twice").contains("f0"));
    }
}
