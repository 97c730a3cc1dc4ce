//! What happens to every call before a command sees it: request id, panic guard, login, deadline.
//!
//! Order, from the outside in: request id and span; panics become INTERNAL; deadline; who is calling. A command finds
//! [`RequestId`], [`Deadline`] and [`Caller`] in the request's extensions.
//!
//! Never: anything that knows a Flight message.
//!
//! | module | holds |
//! |---|---|
//! | `request_id` | a name for the call in logs and error texts |
//! | `panics` | a panic ends one call, with a status |
//! | `deadline` | `grpc-timeout` |
//! | `doors` | services of their own for calls that need no login |
//! | `login` | headers -> credential -> [`Caller`]; refusals as statuses |

mod deadline;
mod doors;
mod login;
mod panics;
mod request_id;

#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use tonic::body::Body;
use tower::Service;
use tracing::{Instrument, info_span};
use updraft_auth::Authenticator;

use crate::answer::with_own_body;

pub(crate) use deadline::Deadline;
pub(crate) use doors::Doors;
pub use login::Caller;
pub(crate) use login::{credential, in_process, refusal};
pub(crate) use request_id::RequestId;

/// A service with all layers around it. Cloning is as cheap as cloning the service.
#[derive(Debug, Clone)]
pub(crate) struct Layered<S> {
    service: S,
    authenticator: Authenticator,
}

/// Puts all layers around a service.
pub(crate) fn layered<S>(service: S, authenticator: Authenticator) -> Layered<S> {
    Layered { service, authenticator }
}

impl<S> Service<http::Request<Body>> for Layered<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        // The instance that was polled ready is the one to call; the clone waits for the next request.
        let fresh = self.service.clone();
        let mut service = std::mem::replace(&mut self.service, fresh);
        let authenticator = self.authenticator.clone();
        let id = RequestId::new();
        let span = info_span!("request", id = %id, method = request_id::method(request.uri().path()));
        request.extensions_mut().insert(id);
        if let Some(deadline) = deadline::deadline(request.headers()) {
            request.extensions_mut().insert(deadline);
        }
        let call = async move {
            let renewed = match login::log_in(&authenticator, &mut request).await {
                Ok(renewed) => renewed,
                Err(status) => return status.into_http(),
            };
            let Ok(response) = service.call(request).await;
            let mut response = with_own_body(response);
            if let Some(header) = renewed {
                response.headers_mut().entry(http::header::AUTHORIZATION).or_insert(header);
            }
            response
        };
        let body_span = span.clone();
        let guarded = async move { Ok(panics::guard(call, id, body_span).await) };
        Box::pin(guarded.instrument(span))
    }
}
