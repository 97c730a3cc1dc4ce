//! Which actions there are.

use arrow_flight::ActionType;

/// Name and description of every action that is answered. What is not offered is not listed.
const ACTIONS: &[(&str, &str)] = &[
    (
        "CreatePreparedStatement",
        "Prepares a statement. Request: ActionCreatePreparedStatementRequest. Response: ActionCreatePreparedStatementResult.",
    ),
    (
        "CreatePreparedSubstraitPlan",
        "Prepares a Substrait plan. Request: ActionCreatePreparedSubstraitPlanRequest. Response: ActionCreatePreparedStatementResult.",
    ),
    (
        "ClosePreparedStatement",
        "Closes a prepared statement. Request: ActionClosePreparedStatementRequest. Response: none.",
    ),
    ("CancelFlightInfo", "Cancels a query. Request: CancelFlightInfoRequest. Response: CancelFlightInfoResult."),
    (
        "CancelQuery",
        "Cancels a query, in the older form. Request: ActionCancelQueryRequest. Response: ActionCancelQueryResult.",
    ),
    (
        "RenewFlightEndpoint",
        "Extends the life of an endpoint. Request: RenewFlightEndpointRequest. Response: FlightEndpoint.",
    ),
    (
        "SetSessionOptions",
        "Changes settings of the session. Request: SetSessionOptionsRequest. Response: SetSessionOptionsResult.",
    ),
    (
        "GetSessionOptions",
        "Reads the settings of the session. Request: GetSessionOptionsRequest. Response: GetSessionOptionsResult.",
    ),
    (
        "CloseSession",
        "Closes the session and its prepared statements. Request: CloseSessionRequest. Response: CloseSessionResult.",
    ),
];

pub(crate) fn list() -> Vec<ActionType> {
    let action = |(name, description): &(&str, &str)| ActionType {
        r#type: (*name).to_owned(),
        description: (*description).to_owned(),
    };
    ACTIONS.iter().map(action).collect()
}
