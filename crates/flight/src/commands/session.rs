//! Session options: the settings of `SET`, by Flight's own actions.

use tonic::Status;
use tonic::metadata::{AsciiMetadataValue, MetadataMap};

use crate::call::Call;
use crate::messages::{
    CloseSessionResult, CloseSessionStatus, GetSessionOptionsResult, OptionValue, SessionOptionValue,
    SetSessionOptionError, SetSessionOptionErrorValue, SetSessionOptionsRequest, SetSessionOptionsResult,
};
use crate::server::Server;

/// Sets the options one by one; the answer names those that could not be set.
pub(crate) fn set(server: &Server, call: &Call, request: SetSessionOptionsRequest) -> SetSessionOptionsResult {
    let mut result = SetSessionOptionsResult::default();
    for (name, option) in request.session_options {
        let outcome = match server.engine.setting_name(&name) {
            Err(_) => Err(SetSessionOptionErrorValue::InvalidName),
            Ok(known) => match text(option) {
                Ok(value) => server
                    .engine
                    .set(&call.session, known, value.as_deref())
                    .map_err(|_| SetSessionOptionErrorValue::InvalidValue),
                Err(error) => Err(error),
            },
        };
        if let Err(value) = outcome {
            result.errors.insert(name, SetSessionOptionError { value: value.into() });
        }
    }
    result
}

/// `None` = unset.
fn text(option: SessionOptionValue) -> Result<Option<String>, SetSessionOptionErrorValue> {
    Ok(match option.option_value {
        None => None,
        Some(OptionValue::String(text)) => Some(text),
        Some(OptionValue::Bool(value)) => Some(value.to_string()),
        Some(OptionValue::Int64(value)) => Some(value.to_string()),
        Some(OptionValue::Double(value)) => Some(value.to_string()),
        // `wire_types` is a list, and the only one.
        Some(OptionValue::StringList(list)) => Some(list.values.join(",")),
    })
}

/// All settings with their values.
pub(crate) fn get(server: &Server, call: &Call) -> GetSessionOptionsResult {
    let option = |value| SessionOptionValue { option_value: Some(OptionValue::String(value)) };
    let settings = server.engine.settings(&call.session);
    let session_options = settings.into_iter().map(|(name, value, _)| (name.to_owned(), option(value)));
    GetSessionOptionsResult { session_options: session_options.collect() }
}

/// Closes the session and all it has open.
pub(crate) fn close(server: &Server, call: &Call) -> CloseSessionResult {
    server.engine.close_session(&call.session);
    CloseSessionResult { status: CloseSessionStatus::Closed.into() }
}

/// Tells a client without token or cookie the name of its session, so that it finds it on other connections.
///
/// # Errors
/// None in practice: hex digits are always a header value.
pub(crate) fn offer_cookie(call: &Call, metadata: &mut MetadataMap) -> Result<(), Status> {
    if call.wants_cookie {
        let id = uuid::Uuid::from_bytes(call.session.id.0).simple();
        let cookie = format!("arrow_flight_session_id={id}; HttpOnly");
        let value =
            AsciiMetadataValue::try_from(cookie).map_err(|_| Status::internal("session id is not a header value"))?;
        metadata.insert("set-cookie", value);
    }
    Ok(())
}
