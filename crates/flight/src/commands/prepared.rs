//! Prepared statements: create, bind, close.

use std::sync::Arc;

use arrow_flight::PutResult;
use arrow_flight::sql::{
    ActionClosePreparedStatementRequest, ActionCreatePreparedStatementRequest,
    ActionCreatePreparedSubstraitPlanRequest, DoPutPreparedStatementResult,
};
use bytes::Bytes;
use datafusion::arrow::datatypes::{Field, Schema};
use prost::Message;
use tonic::Status;
use updraft_engine::{Prepared, PreparedHandle, Statement, UploadMemory};

use crate::call::Call;
use crate::commands::no_transaction;
use crate::commands::query::announced;
use crate::messages::CreatePreparedStatementResult;
use crate::server::Server;
use crate::status::{answer_failed, status};
use crate::wire::{Upload, schema_bytes, wire_schema};

/// # Errors
/// The engine's: what is wrong with the statement.
pub(crate) async fn create(
    server: &Server,
    call: &Call,
    request: ActionCreatePreparedStatementRequest,
) -> Result<CreatePreparedStatementResult, Status> {
    no_transaction(request.transaction_id.as_ref())?;
    create_from(server, call, Statement::Sql(request.query.into())).await
}

/// # Errors
/// As [`create`].
pub(crate) async fn create_substrait(
    server: &Server,
    call: &Call,
    request: ActionCreatePreparedSubstraitPlanRequest,
) -> Result<CreatePreparedStatementResult, Status> {
    no_transaction(request.transaction_id.as_ref())?;
    let plan = request.plan.ok_or_else(|| Status::invalid_argument("the request has no Substrait plan"))?;
    create_from(server, call, Statement::Substrait(plan.plan)).await
}

async fn create_from(
    server: &Server,
    call: &Call,
    statement: Statement,
) -> Result<CreatePreparedStatementResult, Status> {
    let prepare = server.engine.prepare(&call.session, statement, call.binds.unknown(), call.deadline);
    let prepared = prepare.await.map_err(status)?;
    let dataset_schema = match prepared.schema() {
        Some(schema) => schema_bytes(&announced(schema, &call.wire)).map_err(answer_failed)?,
        // Without one, the JDBC driver sends the statement as an update, which is what `SET` is.
        None => Bytes::new(),
    };
    Ok(CreatePreparedStatementResult {
        prepared_statement_handle: Bytes::copy_from_slice(prepared.handle().as_bytes()),
        dataset_schema,
        parameter_schema: schema_bytes(&parameter_schema(&prepared, call)).map_err(answer_failed)?,
        is_update: Some(prepared.schema().is_none()),
    })
}

/// All parameters in the order of binding, each nullable: a client may bind NULL to any.
fn parameter_schema(prepared: &Prepared, call: &Call) -> Schema {
    let field = |parameter: updraft_engine::Parameter| {
        let data_type = parameter.data_type.unwrap_or_else(|| call.binds.unknown());
        Field::new(parameter.name, call.binds.announced(data_type), true)
    };
    let fields: Vec<_> = prepared.parameters().into_iter().map(field).collect();
    wire_schema(&Schema::new(fields), &call.wire)
}

/// Binds what was uploaded, for which `memory` is held.
///
/// # Errors
/// NOT_FOUND for the handle; INVALID_ARGUMENT when columns and parameters do not match.
pub(crate) fn bind(
    server: &Server,
    call: &Call,
    handle: PreparedHandle,
    upload: Upload,
    memory: UploadMemory,
) -> Result<PutResult, Status> {
    let prepared: Arc<Prepared> = server.engine.prepared(handle, &call.session).map_err(status)?;
    prepared.bind(upload.batches, memory).map_err(status)?;
    // Always the handle: the Java client takes an absent one for an empty one.
    let result =
        DoPutPreparedStatementResult { prepared_statement_handle: Some(Bytes::copy_from_slice(handle.as_bytes())) };
    Ok(PutResult { app_metadata: result.encode_to_vec().into() })
}

/// Closes the statement. That it is gone already is fine: it may have expired.
pub(crate) fn close(server: &Server, call: &Call, request: &ActionClosePreparedStatementRequest) {
    if let Some(handle) = PreparedHandle::from_bytes(&request.prepared_statement_handle) {
        server.engine.close_prepared(handle, &call.session);
    }
}
