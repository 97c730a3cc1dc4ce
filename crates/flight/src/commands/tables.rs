//! GetTables: the tables and views a principal may see, filtered, with their columns on request.

use std::sync::Arc;

use arrow_flight::sql::CommandGetTables;
use datafusion::arrow::array::{ArrayRef, BinaryArray, RecordBatch, StringArray};
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::arrow::error::ArrowError;

use super::pattern::{is_catalog, passes};
use crate::wire::{WireOptions, schema_bytes, wire_schema, with_column_metadata};

/// One table or view of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TableEntry {
    /// Name of its catalog.
    pub(crate) catalog: String,
    /// Name of its schema.
    pub(crate) schema: String,
    /// Its own name.
    pub(crate) name: String,
    /// What it is.
    pub(crate) kind: TableKind,
    /// Its columns as the engine has them, if they were asked for and could be read.
    pub(crate) columns: Option<SchemaRef>,
}

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum TableKind {
    /// Data in files.
    Table,
    /// A stored query.
    View,
}

impl TableKind {
    /// All kinds, in the order of their names.
    pub(crate) const ALL: [Self; 2] = [Self::Table, Self::View];

    /// The name clients know it by.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Table => "TABLE",
            Self::View => "VIEW",
        }
    }
}

/// The schema of the answer, which depends on whether columns are asked for.
pub(crate) fn schema(include_schema: bool) -> SchemaRef {
    let mut fields = vec![
        Field::new("catalog_name", DataType::Utf8, true),
        Field::new("db_schema_name", DataType::Utf8, true),
        Field::new("table_name", DataType::Utf8, false),
        Field::new("table_type", DataType::Utf8, false),
    ];
    if include_schema {
        fields.push(Field::new("table_schema", DataType::Binary, false));
    }
    Arc::new(Schema::new(fields))
}

/// Whether `table` passes the filters of `command`: the catalog exact, schema and name as patterns, the kind one of those
/// listed, any if none is.
pub(crate) fn wanted(command: &CommandGetTables, table: &TableEntry) -> bool {
    is_catalog(command.catalog.as_deref(), &table.catalog)
        && passes(command.db_schema_filter_pattern.as_deref(), &table.schema)
        && passes(command.table_name_filter_pattern.as_deref(), &table.name)
        && (command.table_types.is_empty()
            || command.table_types.iter().any(|kind| kind.eq_ignore_ascii_case(table.kind.as_str())))
}

/// Those of `tables` that pass the filters of `command`, sorted by catalog, schema, name and kind, in one batch: the
/// Python client reads only the first. Columns are described with the types that `options` give them on the wire; a
/// table whose columns are not known has a schema without fields.
pub(crate) fn answer(
    command: &CommandGetTables,
    tables: &[TableEntry],
    options: &WireOptions,
) -> Result<RecordBatch, ArrowError> {
    let mut rows: Vec<&TableEntry> = tables.iter().filter(|table| wanted(command, table)).collect();
    rows.sort_by_key(|table| (&table.catalog, &table.schema, &table.name, table.kind));
    let text = |value: fn(&TableEntry) -> &str| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(rows.iter().map(|table| value(table))))
    };
    let mut columns = vec![
        text(|table| &table.catalog),
        text(|table| &table.schema),
        text(|table| &table.name),
        text(|table| table.kind.as_str()),
    ];
    if command.include_schema {
        let schemas = rows.iter().map(|table| described(table, options)).collect::<Result<Vec<_>, _>>()?;
        columns.push(Arc::new(BinaryArray::from_iter_values(schemas)));
    }
    RecordBatch::try_new(schema(command.include_schema), columns)
}

fn described(table: &TableEntry, options: &WireOptions) -> Result<bytes::Bytes, ArrowError> {
    let columns = table.columns.as_deref().map_or_else(Schema::empty, |columns| wire_schema(columns, options));
    let (catalog, schema, name) = (Some(&*table.catalog), Some(&*table.schema), Some(&*table.name));
    schema_bytes(&with_column_metadata(&columns, catalog, schema, name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow_ipc::convert::try_schema_from_ipc_buffer;
    use datafusion::arrow::array::AsArray;

    fn listing() -> Vec<TableEntry> {
        let columns =
            Schema::new(vec![Field::new("id", DataType::Int64, false), Field::new("name", DataType::Utf8View, true)]);
        let entry = |catalog: &str, schema: &str, name: &str, kind| TableEntry {
            catalog: catalog.to_owned(),
            schema: schema.to_owned(),
            name: name.to_owned(),
            kind,
            columns: Some(Arc::new(columns.clone())),
        };
        vec![
            entry("updraft", "sales", "orders", TableKind::Table),
            entry("updraft", "main", "v", TableKind::View),
            entry("updraft", "main", "line_item", TableKind::Table),
            entry("updraft", "main", "lineXitem", TableKind::Table),
            entry("other", "main", "t", TableKind::Table),
        ]
    }

    fn command() -> CommandGetTables {
        CommandGetTables {
            catalog: None,
            db_schema_filter_pattern: None,
            table_name_filter_pattern: None,
            table_types: vec![],
            include_schema: false,
        }
    }

    fn names(command: CommandGetTables) -> String {
        let batch = answer(&command, &listing(), &WireOptions::default()).expect("answer");
        let text = |column: usize, row: usize| batch.column(column).as_string::<i32>().value(row).to_owned();
        let rows = (0..batch.num_rows())
            .map(|row| format!("{}.{}.{} {}", text(0, row), text(1, row), text(2, row), text(3, row)));
        rows.collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn sorted_by_catalog_schema_name() {
        assert_eq!(
            names(command()),
            "other.main.t TABLE, updraft.main.lineXitem TABLE, updraft.main.line_item TABLE, updraft.main.v VIEW, \
             updraft.sales.orders TABLE"
        );
    }

    #[test]
    fn filters() {
        let some = |text: &str| Some(text.to_owned());
        let check = |command: CommandGetTables, expected: &str| assert_eq!(names(command), expected);
        check(CommandGetTables { catalog: some("other"), ..command() }, "other.main.t TABLE");
        check(CommandGetTables { catalog: some(""), ..command() }, "");
        check(CommandGetTables { catalog: some("%"), ..command() }, "");
        check(CommandGetTables { db_schema_filter_pattern: some("s%"), ..command() }, "updraft.sales.orders TABLE");
        check(
            CommandGetTables { table_name_filter_pattern: some("line_item"), ..command() },
            "updraft.main.lineXitem TABLE, updraft.main.line_item TABLE",
        );
        check(
            CommandGetTables { table_name_filter_pattern: some("line\\_item"), ..command() },
            "updraft.main.line_item TABLE",
        );
        check(CommandGetTables { table_types: vec!["view".to_owned()], ..command() }, "updraft.main.v VIEW");
        check(CommandGetTables { table_types: vec!["SYSTEM TABLE".to_owned()], ..command() }, "");
        let both = vec!["TABLE".to_owned(), "VIEW".to_owned()];
        check(CommandGetTables { catalog: some("other"), table_types: both, ..command() }, "other.main.t TABLE");
    }

    #[test]
    fn columns_come_in_wire_types_with_metadata() {
        let asked = CommandGetTables {
            include_schema: true,
            table_name_filter_pattern: Some("orders".to_owned()),
            ..command()
        };
        let batch = answer(&asked, &listing(), &WireOptions::default()).expect("answer");
        let columns = try_schema_from_ipc_buffer(batch.column(4).as_binary::<i32>().value(0)).expect("schema");
        assert_eq!((columns.field(0).data_type(), columns.field(0).is_nullable()), (&DataType::Int64, false));
        assert_eq!(columns.field(1).data_type(), &DataType::Utf8);
        let metadata = |key: &str| columns.field(1).metadata()[&format!("ARROW:FLIGHT:SQL:{key}")].clone();
        assert_eq!(
            [metadata("CATALOG_NAME"), metadata("DB_SCHEMA_NAME"), metadata("TABLE_NAME"), metadata("TYPE_NAME")],
            ["updraft", "sales", "orders", "VARCHAR"]
        );
    }

    #[test]
    fn a_table_whose_columns_are_unknown_is_still_listed() {
        let mut listing = listing();
        listing[0].columns = None;
        let asked = CommandGetTables { include_schema: true, ..command() };
        let batch = answer(&asked, &listing, &WireOptions::default()).expect("answer");
        assert_eq!(batch.num_rows(), 5);
        let columns = try_schema_from_ipc_buffer(batch.column(4).as_binary::<i32>().value(4)).expect("schema");
        assert!(columns.fields().is_empty());
    }

    #[test]
    fn schema_is_that_of_the_protocol() {
        for include_schema in [false, true] {
            let builder = CommandGetTables { include_schema, ..command() }.into_builder();
            assert_eq!(schema(include_schema), builder.schema());
        }
    }
}
