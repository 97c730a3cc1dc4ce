//! DoPut of statements: what returns nothing (`SET`) runs, what would write is not offered.

use arrow_flight::PutResult;
use arrow_flight::sql::{Command, DoPutUpdateResult};
use prost::Message;
use tonic::Status;
use updraft_engine::{Error, Statement, UploadMemory};

use crate::call::Call;
use crate::commands::{handle, no_transaction};
use crate::server::Server;
use crate::status::{not_offered, status};
use crate::wire::Upload;

/// `memory` is held for what was uploaded.
///
/// # Errors
/// UNIMPLEMENTED for all that would change data.
pub(crate) async fn update(
    server: &Server,
    call: &Call,
    command: Command,
    upload: Upload,
    memory: UploadMemory,
) -> Result<PutResult, Status> {
    let engine = &server.engine;
    let planned = match command {
        Command::CommandStatementUpdate(update) => {
            no_transaction(update.transaction_id.as_ref())?;
            let statement = Statement::Sql(update.query.into());
            engine.plan(&call.session, statement, call.deadline).await.map_err(refused)?
        }
        Command::CommandPreparedStatementUpdate(update) => {
            let handle = handle(&update.prepared_statement_handle)?;
            let prepared = engine.prepared(handle, &call.session).map_err(status)?;
            if upload.num_rows() > 0 {
                prepared.bind(upload.batches, memory).map_err(status)?;
            }
            engine.plan_prepared(&call.session, prepared, call.deadline).await.map_err(refused)?
        }
        Command::CommandStatementIngest(_) => return Err(not_offered("bulk ingestion is")),
        _ => return Err(not_offered("this upload is")),
    };
    engine.run_change(&call.session, &planned).map_err(refused)?;
    let result = DoPutUpdateResult { record_count: 0 };
    Ok(PutResult { app_metadata: result.encode_to_vec().into() })
}

/// A statement that writes is bad SQL in a query; in an update it is what updates are for, and not offered.
fn refused(error: Error) -> Status {
    match error {
        Error::Unsupported(text) => Status::unimplemented(text),
        other => status(other),
    }
}
