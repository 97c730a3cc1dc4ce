//! What is only known when a stream has ended, told after its last message.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;

/// Makes headers that follow a response. A command puts it into the extensions of its response.
#[derive(Clone)]
pub(crate) struct Trailers(Arc<dyn Fn() -> HeaderMap + Send + Sync>);

impl Trailers {
    /// `make` is called once the stream has ended, well or not.
    pub(crate) fn new(make: impl Fn() -> HeaderMap + Send + Sync + 'static) -> Self {
        Self(Arc::new(make))
    }
}

impl fmt::Debug for Trailers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Trailers")
    }
}

/// `response`, followed by the trailers it asks for.
pub(super) fn followed(mut response: http::Response<Body>) -> http::Response<Body> {
    match response.extensions_mut().remove::<Trailers>() {
        Some(trailers) => response.map(|body| Body::new(Followed { body, trailers })),
        None => response,
    }
}

struct Followed {
    body: Body,
    trailers: Trailers,
}

impl http_body::Body for Followed {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let me = &mut *self;
        let polled = Pin::new(&mut me.body).poll_frame(cx);
        polled.map_ok(|mut frame| {
            // The status of a gRPC call is in its trailers: every body ends with some.
            if let Some(last) = frame.trailers_mut() {
                last.extend((me.trailers.0)());
            }
            frame
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
