use std::any::Any;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::FutureExt;
use http_body::{Frame, SizeHint};
use tonic::body::Body;
use tonic::{Code, Status};
use tracing::{Span, error};

use super::RequestId;

/// Runs a call so that a panic in it, or later in the body it answers with, ends this call with INTERNAL and nothing
/// else. The text names the request; what the panic said goes to the log.
///
/// hyper runs each call as a task, so without this a panic would reset the stream and leave the client guessing.
pub(super) async fn guard(
    call: impl Future<Output = http::Response<Body>>,
    id: RequestId,
    span: Span,
) -> http::Response<Body> {
    match AssertUnwindSafe(call).catch_unwind().await {
        Ok(response) => response.map(|body| Body::new(Guarded { body, id, span })),
        Err(panic) => internal(id, &*panic).into_http(),
    }
}

/// A body that is polled inside the request's span, and whose panic becomes its trailers.
struct Guarded {
    body: Body,
    id: RequestId,
    span: Span,
}

impl http_body::Body for Guarded {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let me = &mut *self;
        let _in_span = me.span.enter();
        let body = &mut me.body;
        match catch_unwind(AssertUnwindSafe(|| Pin::new(body).poll_frame(cx))) {
            Ok(polled) => polled,
            Err(panic) => {
                me.body = Body::empty();
                Poll::Ready(Some(Ok(Frame::trailers(trailers(&internal(me.id, &*panic))))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn internal(id: RequestId, panic: &(dyn Any + Send)) -> Status {
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("(no text)");
    error!(%id, panic = text, "call panicked");
    Status::new(Code::Internal, format!("internal error; quote request {id} to the operator"))
}

fn trailers(status: &Status) -> http::HeaderMap {
    // The status as a response would carry it, less what belongs to headers.
    let mut headers = status.clone().into_http::<Body>().into_parts().0.headers;
    headers.remove(http::header::CONTENT_TYPE);
    headers
}
