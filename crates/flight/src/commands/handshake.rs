//! `Handshake`: a credential in, a token for a new session out.
//!
//! Clients differ in where they put the credential (a Basic header with or without padding, a Bearer header, a
//! `BasicAuth` message, nothing) and in where they look for the token (the response's headers, or its message), and
//! some never close their side. So all forms are read, the answer is given in both places, and the request's stream is
//! looked at only when no header came, and for one message.

use std::time::Duration;

use arrow_flight::{BasicAuth, HandshakeRequest, HandshakeResponse};
use futures::stream::{self, BoxStream, StreamExt};
use prost::Message;
use tonic::metadata::MetadataValue;
use tonic::{Request, Response, Status, Streaming};
use updraft_auth::{Authenticator, Credential, Error};
use uuid::Uuid;

use crate::layers::{credential, refusal};
use crate::transport::Connection;

/// How long the first message may take when no header says who calls. A client that sends none is taken to have none.
const FIRST_MESSAGE_WAIT: Duration = Duration::from_secs(5);

/// Logs in and opens a session (by name only: the engine makes it when it is first used).
///
/// Errors: UNAUTHENTICATED for a credential that is wrong or missing, RESOURCE_EXHAUSTED after too many failures.
pub(crate) async fn handshake(
    authenticator: &Authenticator,
    request: Request<Streaming<HandshakeRequest>>,
) -> Result<Response<BoxStream<'static, Result<HandshakeResponse, Status>>>, Status> {
    let connection = request.extensions().get::<Connection>().cloned().unwrap_or_else(crate::layers::in_process);
    let headers = request.metadata().clone().into_headers();
    let mut protocol_version = 0;
    let credential = match credential(&headers).map_err(|e| refusal(&e))? {
        Credential::None => {
            let first = first_message(request.into_inner()).await?;
            protocol_version = first.protocol_version;
            from_message(&first)?
        }
        sent => sent,
    };
    let identity = authenticator
        .authenticate(credential, &connection.certificate, connection.peer.ip())
        .await
        .map_err(|e| refusal(&e))?;
    // Always a new session: a token that logs in again must not reach into the session of whoever had it before.
    let token = authenticator.issue_token(&identity, Uuid::now_v7().into_bytes());
    let header = MetadataValue::try_from(format!("Bearer {token}"))
        .map_err(|_| refusal(&Error::Internal { step: "writing the token" }))?;
    let answer = HandshakeResponse { protocol_version, payload: token.into_bytes().into() };
    let mut response = Response::new(stream::iter([Ok(answer)]).boxed());
    response.metadata_mut().insert("authorization", header);
    Ok(response)
}

async fn first_message(mut messages: Streaming<HandshakeRequest>) -> Result<HandshakeRequest, Status> {
    match tokio::time::timeout(FIRST_MESSAGE_WAIT, messages.message()).await {
        Ok(message) => Ok(message?.unwrap_or_default()),
        Err(_) => Ok(HandshakeRequest::default()),
    }
}

/// `BasicAuth`, or nothing.
fn from_message(message: &HandshakeRequest) -> Result<Credential, Status> {
    if message.payload.is_empty() {
        return Ok(Credential::None);
    }
    let malformed = || Status::invalid_argument("payload of the handshake is not a BasicAuth message");
    let BasicAuth { username, password } = BasicAuth::decode(message.payload.clone()).map_err(|_| malformed())?;
    Ok(Credential::basic(username, password))
}
