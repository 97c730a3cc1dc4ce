//! What a client sends with a call has to arrive in time: a call that is never sent whole would wait for ever.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::Status;

/// The body of a request, which fails when it is not over in time.
pub(super) struct Arriving {
    body: Incoming,
    began: Instant,
    within: Duration,
    /// Made when something has to be waited for: most calls have arrived when they are read.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Arriving {
    /// `body`, from now on `within` this time.
    pub(super) fn new(body: Incoming, within: Duration) -> Self {
        Self { body, began: Instant::now(), within, timer: None }
    }
}

impl http_body::Body for Arriving {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let me = &mut *self;
        if let Poll::Ready(frame) = Pin::new(&mut me.body).poll_frame(cx) {
            return Poll::Ready(frame.map(|frame| frame.map_err(|error| Status::from_error(Box::new(error)))));
        }
        let until = me.began + me.within;
        let timer = me.timer.get_or_insert_with(|| Box::pin(sleep_until(until)));
        timer.as_mut().poll(cx).map(|()| {
            let limit = humantime::format_duration(me.within);
            Some(Err(Status::deadline_exceeded(format!(
                "the call did not arrive within {limit} (flight.limits.request_timeout)"
            ))))
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
