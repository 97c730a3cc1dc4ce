//! The commands that look at the catalog: their schema before they run, their answer when they do.

use arrow_flight::sql::metadata::SqlInfoData;
use arrow_flight::sql::{Command, CommandGetTables};
use arrow_flight::{FlightDescriptor, FlightEndpoint, FlightInfo, Ticket};
use bytes::Bytes;
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::arrow::error::ArrowError;
use tonic::Status;
use updraft_engine::TableDescription;

use super::tables::{TableEntry, TableKind};
use super::{catalogs, db_schemas, keys, sql_info, table_types, tables, xdbc_type_info};
use crate::call::Call;
use crate::server::Server;
use crate::status::{answer_failed, status};
use crate::wire::{Encoder, Message, WireError, WireOptions, schema_bytes};

/// The one catalog.
const CATALOG: &str = updraft_engine::CATALOG;

/// The schema of the answer to `command`.
///
/// # Panics
/// For a command that is not of the catalog; `Asked` never holds another here.
pub(crate) fn schema(command: &Command) -> SchemaRef {
    match command {
        Command::CommandGetCatalogs(_) => catalogs::schema(),
        Command::CommandGetDbSchemas(_) => db_schemas::schema(),
        Command::CommandGetTables(command) => tables::schema(command.include_schema),
        Command::CommandGetTableTypes(_) => table_types::schema(),
        Command::CommandGetPrimaryKeys(_) => keys::primary_schema(),
        Command::CommandGetExportedKeys(_)
        | Command::CommandGetImportedKeys(_)
        | Command::CommandGetCrossReference(_) => keys::foreign_schema(),
        Command::CommandGetSqlInfo(_) => sql_info::schema(),
        Command::CommandGetXdbcTypeInfo(_) => xdbc_type_info::schema(),
        other => unreachable!("{} is not a command of the catalog", other.type_url()),
    }
}

/// How to fetch the answer: the ticket is the command itself.
///
/// # Errors
/// None in practice: the schemas are fixed.
pub(crate) fn info(command: &Command, bytes: Bytes, descriptor: FlightDescriptor) -> Result<FlightInfo, Status> {
    let endpoint = FlightEndpoint { ticket: Some(Ticket { ticket: bytes }), ..FlightEndpoint::default() };
    Ok(FlightInfo {
        schema: schema_bytes(&schema(command)).map_err(answer_failed)?,
        flight_descriptor: Some(descriptor),
        endpoint: vec![endpoint],
        total_records: -1,
        total_bytes: -1,
        ordered: true,
        app_metadata: Bytes::new(),
    })
}

/// The messages of the answer.
///
/// # Errors
/// The engine's, when the catalog cannot be listed.
pub(crate) async fn answer(server: &Server, call: &Call, command: &Command) -> Result<Vec<Message>, Status> {
    let batch = batch(server, call, command).await?;
    // In one message as far as it goes: ADBC's GetTableSchema reads only the first.
    let options = WireOptions { compression: call.wire.compression, ..WireOptions::default() };
    let failed = |error: WireError| Status::internal(error.to_string());
    let encoder = Encoder::new(batch.schema(), &options, METADATA_MESSAGE_BYTES).map_err(failed)?;
    let mut messages = vec![encoder.schema()];
    messages.extend(encoder.batch(&batch).map_err(failed)?);
    Ok(messages)
}

/// Under the 4 MiB that Go's database/sql takes.
const METADATA_MESSAGE_BYTES: usize = 3 << 20;

async fn batch(server: &Server, call: &Call, command: &Command) -> Result<RecordBatch, Status> {
    let batch = match command {
        Command::CommandGetCatalogs(command) => catalogs::answer(command, &[CATALOG.to_owned()]),
        Command::CommandGetDbSchemas(command) => {
            let mut schemas = vec![(CATALOG.to_owned(), updraft_engine::SCHEMA.to_owned())];
            let listed = server.engine.tables().await.map_err(status)?;
            schemas.extend(listed.into_iter().map(|table| (CATALOG.to_owned(), table.schema)));
            db_schemas::answer(command, &schemas)
        }
        Command::CommandGetTables(command) => {
            let entries = entries(server, call, command).await?;
            tables::answer(command, &entries, &call.wire)
        }
        Command::CommandGetTableTypes(command) => table_types::answer(command),
        Command::CommandGetPrimaryKeys(_) => Ok(keys::primary_answer()),
        Command::CommandGetExportedKeys(_)
        | Command::CommandGetImportedKeys(_)
        | Command::CommandGetCrossReference(_) => Ok(keys::foreign_answer()),
        Command::CommandGetSqlInfo(command) => sql_info::answer(command, &server.sql_info),
        Command::CommandGetXdbcTypeInfo(command) => xdbc_type_info::answer(command),
        other => return Err(Status::invalid_argument(format!("{} is not a command of the catalog", other.type_url()))),
    };
    batch.map_err(answer_failed)
}

/// The tables that pass the filters of `command`; their columns only when they are asked for, because
/// that opens files.
async fn entries(server: &Server, call: &Call, command: &CommandGetTables) -> Result<Vec<TableEntry>, Status> {
    let listed = server.engine.tables().await.map_err(status)?;
    let (mut found, mut entries): (Vec<TableDescription>, Vec<TableEntry>) = (Vec::new(), Vec::new());
    for table in listed {
        let entry = TableEntry {
            catalog: CATALOG.to_owned(),
            schema: table.schema.clone(),
            name: table.name.clone(),
            kind: if table.is_view { TableKind::View } else { TableKind::Table },
            columns: None,
        };
        if tables::wanted(command, &entry) {
            found.push(table);
            entries.push(entry);
        }
    }
    if command.include_schema {
        let columns = server.engine.columns(&call.session, &found, call.deadline).await.map_err(status)?;
        for (entry, columns) in entries.iter_mut().zip(columns) {
            entry.columns = columns;
        }
    }
    Ok(entries)
}

/// What `GetSqlInfo` answers, which does not change while the server runs.
///
/// # Errors
/// None in practice: arrow refuses only codes of the wrong type.
pub(crate) fn sql_info(engine: &updraft_engine::Engine, connections_max: usize) -> Result<SqlInfoData, ArrowError> {
    let config = engine.config();
    let substrait = updraft_engine::substrait_version();
    let facts = sql_info::ServerFacts {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        substrait: Some((substrait.clone(), substrait)),
        statement_timeout_ms: i32::try_from(config.statement_timeout.as_millis()).unwrap_or(i32::MAX),
        statement_length_max: i64::try_from(config.sql_length_max.0).unwrap_or(i64::MAX),
        connections_max: i64::try_from(connections_max).unwrap_or(i64::MAX),
    };
    sql_info::data(&facts, &engine.functions())
}

#[cfg(test)]
mod tests {
    use arrow_flight::sql::{CommandGetSqlInfo, SqlInfo};

    use super::*;

    #[test]
    fn an_info_of_the_catalog_is_fetched_with_its_command() {
        let command = Command::CommandGetSqlInfo(CommandGetSqlInfo { info: vec![SqlInfo::FlightSqlServerName as u32] });
        let bytes = Bytes::from_static(b"the command");
        let info = info(&command, bytes.clone(), FlightDescriptor::new_cmd(bytes.clone())).expect("a fixed schema");
        assert_eq!(info.endpoint[0].ticket.as_ref().map(|ticket| ticket.ticket.clone()), Some(bytes));
    }
}
