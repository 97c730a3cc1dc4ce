//! Two ways in: one for calls that need no login, whose services set aside little for what strangers send.

use std::task::{Context, Poll, ready};

use tower::Service;

use super::login::is_exempt;

/// A service for each of them. Cloning is as cheap as cloning both.
#[derive(Debug, Clone)]
pub(crate) struct Doors<S> {
    /// For health and login.
    pub(crate) for_strangers: S,
    /// For all else.
    pub(crate) for_callers: S,
}

impl<S, B> Service<http::Request<B>> for Doors<S>
where
    S: Service<http::Request<B>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        ready!(self.for_strangers.poll_ready(cx))?;
        self.for_callers.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        match is_exempt(request.uri().path()) {
            true => self.for_strangers.call(request),
            false => self.for_callers.call(request),
        }
    }
}
