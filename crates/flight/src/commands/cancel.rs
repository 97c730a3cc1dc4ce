//! Cancel a query, and renew the endpoint of one.

use arrow_flight::sql::{ActionCancelQueryRequest, ActionCancelQueryResult, Any, TicketStatementQuery};
use arrow_flight::{
    CancelFlightInfoRequest, CancelFlightInfoResult, CancelStatus, FlightEndpoint, FlightInfo,
    RenewFlightEndpointRequest, Ticket,
};
use prost::Message;
use tonic::Status;
use updraft_engine::{CancelOutcome, QueryId};
use updraft_proto::v1;

use crate::call::Call;
use crate::commands::query::query_ticket;
use crate::server::Server;
use crate::ticket;

/// # Errors
/// NOT_FOUND when the caller has no such query.
pub(crate) fn cancel(
    server: &Server,
    call: &Call,
    request: CancelFlightInfoRequest,
) -> Result<CancelFlightInfoResult, Status> {
    let info = request.info.ok_or_else(|| Status::invalid_argument("the request has no FlightInfo"))?;
    Ok(CancelFlightInfoResult { status: cancel_info(server, call, &info)?.into() })
}

/// The older action of Flight SQL, with the FlightInfo serialized inside. Its results have the same numbers.
///
/// # Errors
/// As [`cancel`].
pub(crate) fn cancel_query(
    server: &Server,
    call: &Call,
    request: &ActionCancelQueryRequest,
) -> Result<ActionCancelQueryResult, Status> {
    let info = FlightInfo::decode(request.info.clone())
        .map_err(|error| Status::invalid_argument(format!("not a FlightInfo: {error}")))?;
    Ok(ActionCancelQueryResult { result: cancel_info(server, call, &info)?.into() })
}

fn cancel_info(server: &Server, call: &Call, info: &FlightInfo) -> Result<CancelStatus, Status> {
    let not_found = || Status::not_found("there is no such query: it has ended, or never was");
    let ticket = info.endpoint.iter().find_map(|endpoint| endpoint.ticket.as_ref()).ok_or_else(not_found)?;
    let sealed = sealed(ticket)?;
    let ticket = ticket::open_expired(&server.sealer, &sealed, &call.session.principal)?;
    let id = QueryId::from_bytes(&ticket.query).ok_or_else(not_found)?;
    match server.engine.cancel(id, &call.session) {
        CancelOutcome::NotFound => Err(not_found()),
        CancelOutcome::Cancelled => Ok(CancelStatus::Cancelled),
        CancelOutcome::Cancelling => Ok(CancelStatus::Cancelling),
    }
}

/// The same endpoint with a ticket that lives longer.
///
/// # Errors
/// INVALID_ARGUMENT for an endpoint that does not expire; FAILED_PRECONDITION for one that has.
pub(crate) fn renew(
    server: &Server,
    call: &Call,
    request: RenewFlightEndpointRequest,
) -> Result<FlightEndpoint, Status> {
    let endpoint = request.endpoint.ok_or_else(|| Status::invalid_argument("the request has no endpoint"))?;
    let old = endpoint.ticket.as_ref().ok_or_else(|| Status::invalid_argument("the endpoint has no ticket"))?;
    let ticket: v1::Ticket = ticket::open(&server.sealer, &sealed(old)?, &call.session.principal)?;
    let ttl = server.engine.ticket_ttl();
    // Looked at, so that the planned query lives on with its ticket.
    if let Some(id) = QueryId::from_bytes(&ticket.query) {
        server.engine.keep_alive(id);
    }
    let expiration_time = (ticket.parts == 0).then(|| ticket::expiry(ttl));
    let renewed = query_ticket(ticket::seal(&server.sealer, ticket, ttl));
    Ok(FlightEndpoint { ticket: Some(renewed), expiration_time, ..endpoint })
}

fn sealed(ticket: &Ticket) -> Result<bytes::Bytes, Status> {
    let bad = || Status::invalid_argument("the ticket is not one of a query");
    let any = Any::decode(ticket.ticket.clone()).map_err(|_| bad())?;
    let message: TicketStatementQuery = any.unpack().map_err(|_| bad())?.ok_or_else(bad)?;
    Ok(message.statement_handle)
}
