//! Commands: one file each, with its schema, its answer and its tests. Here: which command a client sent.
//!
//! | file | commands |
//! |---|---|
//! | `query` | statements, Substrait plans and prepared statements to FlightInfo, schema and stream |
//! | `prepared` | create, bind and close prepared statements |
//! | `update` | DoPut of statements that return nothing |
//! | `session` | session options |
//! | `cancel` | cancel a query, renew an endpoint |
//! | `actions` | the list of actions, and which there are |
//! | `metadata` | the catalog commands as one kind |
//! | `catalogs`, `db_schemas`, `tables`, `table_types`, `keys`, `sql_info`, `xdbc_type_info` | their answers |
//! | `handshake` | login |

pub(crate) mod actions;
pub(crate) mod cancel;
mod catalogs;
mod db_schemas;
pub(crate) mod handshake;
mod keys;
pub(crate) mod metadata;
mod pattern;
pub(crate) mod prepared;
pub(crate) mod query;
pub(crate) mod session;
mod sql_info;
mod table_types;
pub(crate) mod tables;
pub(crate) mod update;
mod xdbc_type_info;

use arrow_flight::FlightDescriptor;
use arrow_flight::flight_descriptor::DescriptorType;
use arrow_flight::sql::{Any, Command, CommandStatementSubstraitPlan};
use bytes::Bytes;
use prost::Message;
use tonic::Status;
use updraft_engine::{PreparedHandle, Statement};

use crate::status::not_offered;

const TYPE_URL_PREFIX: &str = "type.googleapis.com/";

/// What a client asks for, whether in a descriptor or in a ticket.
#[derive(Debug)]
pub(crate) enum Asked {
    /// Run this.
    Statement(Statement),
    /// Run a prepared statement.
    Prepared(PreparedHandle),
    /// Fetch what a sealed ticket names.
    Planned(Bytes),
    /// Look at the catalog.
    Metadata(Box<Command>),
    /// Something that goes with DoPut.
    Put(Box<Command>),
}

/// What a descriptor asks for. Beside Flight SQL's commands, plain SQL text and the path of a table are
/// understood, so that a client of Flight alone can query.
///
/// # Errors
/// INVALID_ARGUMENT for what is no command; UNIMPLEMENTED for one that is not offered.
pub(crate) fn of_descriptor(descriptor: &FlightDescriptor) -> Result<Asked, Status> {
    match descriptor.r#type() {
        DescriptorType::Cmd => of_bytes(&descriptor.cmd),
        DescriptorType::Path => of_path(&descriptor.path),
        DescriptorType::Unknown => {
            Err(Status::invalid_argument("the descriptor has no type; give a command or a path"))
        }
    }
}

/// What a ticket or a command asks for: a Flight SQL command, or plain SQL text.
///
/// # Errors
/// As [`of_descriptor`].
pub(crate) fn of_bytes(bytes: &Bytes) -> Result<Asked, Status> {
    if bytes.is_empty() {
        return Err(Status::invalid_argument("the command is empty; give a Flight SQL command or SQL text"));
    }
    match Any::decode(bytes.clone()) {
        Ok(any) if any.type_url.starts_with(TYPE_URL_PREFIX) => of_any(any),
        // No SQL statement is a protobuf message with such a field, so text cannot be taken for a command.
        _ => match std::str::from_utf8(bytes) {
            Ok(sql) => Ok(Asked::Statement(Statement::Sql(sql.into()))),
            Err(_) => Err(Status::invalid_argument("the command is neither a Flight SQL command nor SQL text")),
        },
    }
}

fn of_any(any: Any) -> Result<Asked, Status> {
    let name = any.type_url.rsplit(['/', '.']).next().unwrap_or_default().to_owned();
    let command = Command::try_from(any)
        .map_err(|error| Status::invalid_argument(format!("{name} cannot be decoded: {error}")))?;
    match command {
        Command::CommandStatementQuery(query) => {
            no_transaction(query.transaction_id.as_ref())?;
            Ok(Asked::Statement(Statement::Sql(query.query.into())))
        }
        Command::CommandStatementSubstraitPlan(command) => {
            no_transaction(command.transaction_id.as_ref())?;
            Ok(Asked::Statement(substrait(command)?))
        }
        Command::CommandPreparedStatementQuery(query) => Ok(Asked::Prepared(handle(&query.prepared_statement_handle)?)),
        Command::TicketStatementQuery(ticket) => Ok(Asked::Planned(ticket.statement_handle)),
        Command::CommandGetCatalogs(_)
        | Command::CommandGetDbSchemas(_)
        | Command::CommandGetTables(_)
        | Command::CommandGetTableTypes(_)
        | Command::CommandGetPrimaryKeys(_)
        | Command::CommandGetExportedKeys(_)
        | Command::CommandGetImportedKeys(_)
        | Command::CommandGetCrossReference(_)
        | Command::CommandGetSqlInfo(_)
        | Command::CommandGetXdbcTypeInfo(_) => Ok(Asked::Metadata(Box::new(command))),
        Command::CommandStatementUpdate(_)
        | Command::CommandPreparedStatementUpdate(_)
        | Command::CommandStatementIngest(_) => Ok(Asked::Put(Box::new(command))),
        _ => Err(not_offered(&format!("{name} is"))),
    }
}

/// # Errors
/// INVALID_ARGUMENT when the command has no plan.
pub(crate) fn substrait(command: CommandStatementSubstraitPlan) -> Result<Statement, Status> {
    let plan = command.plan.ok_or_else(|| Status::invalid_argument("the command has no Substrait plan"))?;
    Ok(Statement::Substrait(plan.plan))
}

/// # Errors
/// NOT_FOUND for bytes that never were a handle of ours.
pub(crate) fn handle(bytes: &[u8]) -> Result<PreparedHandle, Status> {
    PreparedHandle::from_bytes(bytes)
        .ok_or_else(|| Status::not_found("there is no prepared statement with this handle"))
}

/// # Errors
/// UNIMPLEMENTED when there is one.
pub(crate) fn no_transaction(id: Option<&Bytes>) -> Result<(), Status> {
    match id {
        Some(id) if !id.is_empty() => Err(not_offered("transactions are")),
        _ => Ok(()),
    }
}

/// A table's path is a query for all of it.
fn of_path(path: &[String]) -> Result<Asked, Status> {
    if path.is_empty() || path.len() > 3 || path.iter().any(String::is_empty) {
        return Err(Status::invalid_argument(
            "a path names a table: [table], [schema, table] or [catalog, schema, table]",
        ));
    }
    let quoted: Vec<_> = path.iter().map(|part| format!("\"{}\"", part.replace('"', "\"\""))).collect();
    let sql = format!("SELECT * FROM {}", quoted.join("."));
    Ok(Asked::Statement(Statement::Sql(sql.into())))
}

#[cfg(test)]
mod tests {
    use arrow_flight::sql::{
        ActionBeginTransactionRequest, CommandGetCatalogs, CommandStatementQuery, ProstMessageExt,
    };

    use super::*;

    fn told(asked: Result<Asked, Status>) -> String {
        match asked {
            Ok(Asked::Statement(Statement::Sql(sql))) => format!("sql {sql}"),
            Ok(other) => format!("{other:?}").chars().take(8).collect(),
            Err(status) => format!("{:?} {}", status.code(), status.message()),
        }
    }

    #[test]
    fn commands_are_told_apart() {
        let query = |transaction_id| CommandStatementQuery { query: "SELECT 1".into(), transaction_id };
        let any = |type_url: &str, value: &'static [u8]| {
            Bytes::from(Any { type_url: type_url.into(), value: Bytes::from_static(value) }.encode_to_vec())
        };
        let sql = "type.googleapis.com/arrow.flight.protocol.sql.";
        for (bytes, expected) in [
            (Bytes::from_static(b"SELECT 1"), "sql SELECT 1"),
            (Bytes::from_static(b"\nSELECT 1"), "sql \nSELECT 1"),
            (Bytes::from_static(b"(SELECT 1)"), "sql (SELECT 1)"),
            (Bytes::from(query(None).as_any().encode_to_vec()), "sql SELECT 1"),
            (Bytes::from(query(Some(Bytes::new())).as_any().encode_to_vec()), "sql SELECT 1"),
            (
                Bytes::from(query(Some("t".into())).as_any().encode_to_vec()),
                "Unimplemented transactions are not offered",
            ),
            (Bytes::from(CommandGetCatalogs {}.as_any().encode_to_vec()), "Metadata"),
            (
                Bytes::from(ActionBeginTransactionRequest {}.as_any().encode_to_vec()),
                "Unimplemented ActionBeginTransactionRequest",
            ),
            (any(&format!("{sql}CommandNew"), b""), "Unimplemented CommandNew is not offered"),
            (
                any(&format!("{sql}CommandStatementQuery"), b"\xff\xff"),
                "InvalidArgument CommandStatementQuery cannot be decoded",
            ),
            (any(&format!("{sql}CommandPreparedStatementQuery"), b""), "NotFound"),
            (
                any(&format!("{sql}CommandStatementSubstraitPlan"), b""),
                "InvalidArgument the command has no Substrait plan",
            ),
            (Bytes::new(), "InvalidArgument the command is empty"),
            (Bytes::from_static(b"\xff\xfe"), "InvalidArgument the command is neither"),
        ] {
            let told = told(of_bytes(&bytes));
            assert!(told.starts_with(expected), "{bytes:?}: {told}, expected {expected}");
        }
    }

    #[test]
    fn a_path_names_a_table() {
        for (path, expected) in [
            (vec!["t"], "sql SELECT * FROM \"t\""),
            (vec!["s", "a\"b"], "sql SELECT * FROM \"s\".\"a\"\"b\""),
            (vec![], "InvalidArgument"),
            (vec!["a", "b", "c", "d"], "InvalidArgument"),
            (vec![""], "InvalidArgument"),
        ] {
            let path: Vec<String> = path.into_iter().map(str::to_owned).collect();
            assert!(told(of_descriptor(&FlightDescriptor::new_path(path.clone()))).starts_with(expected), "{path:?}");
        }
    }
}
