//! The answer to DoGet: a body of messages that are framed already, and the status after the last.
//!
//! tonic's generated code knows only answers that its codec frames, which copies all of them. So the service gives it an
//! answer without messages and puts the real body into the extensions of the response, where [`with_own_body`] finds it;
//! decoding the request, and refusing it, stay tonic's.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use arrow_flight::FlightData;
use bytes::{Bytes, BytesMut};
use futures::stream::{self, BoxStream};
use futures::{Stream, StreamExt};
use http::HeaderMap;
use http_body::Frame;
use parking_lot::Mutex;
use tonic::body::Body;
use tonic::{Code, Response, Status};

use crate::transport::Patience;
use crate::wire::{COPIED_MAX, Message};

/// Small pieces are put together up to here, as long as they come at once: copying them costs less than a frame, or a slice of
/// one write, for each.
const TOGETHER_MAX: usize = 16 << 10;

/// The messages of an answer, and what is told after them.
pub(crate) struct Answer {
    messages: BoxStream<'static, Result<Message, Status>>,
    trailers: Box<dyn Fn() -> HeaderMap + Send>,
    patience: Option<Patience>,
}

/// What tonic gets to see of an answer.
pub(crate) type NoMessages = stream::Empty<Result<FlightData, Status>>;

impl Answer {
    /// An answer of `messages` that ends well, or with their error.
    pub(crate) fn new(messages: impl Stream<Item = Result<Message, Status>> + Send + 'static) -> Self {
        Self { messages: messages.boxed(), trailers: Box::new(HeaderMap::new), patience: None }
    }

    /// With the headers that `trailers` makes once the messages have ended, well or not.
    pub(crate) fn followed_by(self, trailers: impl Fn() -> HeaderMap + Send + 'static) -> Self {
        Self { trailers: Box::new(trailers), ..self }
    }

    /// For a client that may take none of it for this long, and not as the server has it for all.
    pub(crate) fn with_patience(self, patience: Patience) -> Self {
        Self { patience: Some(patience), ..self }
    }

    /// The response to give to tonic.
    pub(crate) fn into_response(self) -> Response<NoMessages> {
        let patience = self.patience;
        let body = Body::new(Sending {
            answer: self,
            pieces: Vec::new().into_iter(),
            together: BytesMut::new(),
            next: None,
            phase: Phase::Messages,
        });
        let mut response = Response::new(stream::empty());
        response.extensions_mut().insert(OwnBody(Arc::new(Mutex::new(Some(body)))));
        if let Some(patience) = patience {
            response.extensions_mut().insert(patience);
        }
        response
    }
}

/// The body of a response, for tonic to carry. Extensions must be `Clone`, which a body is not.
#[derive(Clone)]
struct OwnBody(Arc<Mutex<Option<Body>>>);

impl fmt::Debug for OwnBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OwnBody")
    }
}

/// `response` with the body that came with it, if one did.
pub(crate) fn with_own_body(mut response: http::Response<Body>) -> http::Response<Body> {
    match response.extensions_mut().remove::<OwnBody>().and_then(|own| own.0.lock().take()) {
        Some(body) => response.map(|_| body),
        None => response,
    }
}

struct Sending {
    answer: Answer,
    /// What is left of a message.
    pieces: std::vec::IntoIter<Bytes>,
    /// Small pieces that go first.
    together: BytesMut,
    /// A large piece that goes after them.
    next: Option<Bytes>,
    phase: Phase,
}

enum Phase {
    Messages,
    /// No more messages: the status is to be told.
    Status(Status),
    Done,
}

impl Sending {
    /// The next frame of data; `None` when the status is next.
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        loop {
            if self.together.len() >= TOGETHER_MAX {
                return Poll::Ready(Some(self.together.split().freeze()));
            }
            let piece = self.next.take().or_else(|| self.pieces.next());
            match piece {
                Some(small) if small.len() <= COPIED_MAX => self.together.extend_from_slice(&small),
                Some(large) if self.together.is_empty() => return Poll::Ready(Some(large)),
                Some(large) => {
                    self.next = Some(large);
                    return Poll::Ready(Some(self.together.split().freeze()));
                }
                None => match self.poll_message(cx) {
                    Poll::Ready(true) => {}
                    Poll::Pending if self.together.is_empty() => return Poll::Pending,
                    Poll::Ready(false) if self.together.is_empty() => return Poll::Ready(None),
                    _ => return Poll::Ready(Some(self.together.split().freeze())),
                },
            }
        }
    }

    /// Takes the next message; false when there is none.
    fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        if !matches!(self.phase, Phase::Messages) {
            return Poll::Ready(false);
        }
        self.answer.messages.poll_next_unpin(cx).map(|message| {
            let status = match message {
                Some(Ok(message)) => {
                    self.pieces = message.into_pieces();
                    return true;
                }
                Some(Err(status)) => status,
                None => Status::new(Code::Ok, ""),
            };
            self.phase = Phase::Status(status);
            false
        })
    }

    /// What ends the response: the status, and what the command tells.
    fn trailers(&self, status: &Status) -> Result<Frame<Bytes>, Status> {
        let mut trailers = (self.answer.trailers)();
        status.add_header(&mut trailers).map(|()| Frame::trailers(trailers))
    }
}

impl http_body::Body for Sending {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        self.poll_data(cx).map(|data| {
            if let Some(data) = data {
                return Some(Ok(Frame::data(data)));
            }
            match std::mem::replace(&mut self.phase, Phase::Done) {
                Phase::Status(status) => Some(self.trailers(&status)),
                Phase::Messages | Phase::Done => None,
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.phase, Phase::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::arrow::buffer::Buffer;
    use futures::executor::block_on;
    use http_body_util::BodyExt;

    fn message(body_bytes: usize) -> Message {
        Message::new(b"header", vec![Buffer::from(vec![7_u8; body_bytes])]).expect("it is short")
    }

    /// Lengths of the frames of data, and the trailers.
    fn sent(answer: Answer) -> (Vec<usize>, HeaderMap) {
        // As tonic's generated code has it: the extensions stay, the messages, none here, become a body.
        let (_, _, extensions) = answer.into_response().into_parts();
        let mut response = http::Response::new(Body::empty());
        *response.extensions_mut() = extensions;
        let mut body = with_own_body(response).into_body();
        let (mut frames, mut trailers) = (Vec::new(), HeaderMap::new());
        while let Some(frame) = block_on(body.frame()) {
            assert!(trailers.is_empty(), "nothing follows the trailers");
            match frame.expect("no error").into_data() {
                Ok(data) => frames.push(data.len()),
                Err(frame) => trailers = frame.into_trailers().expect("data or trailers"),
            }
        }
        assert!(http_body::Body::is_end_stream(&body));
        (frames, trailers)
    }

    #[test]
    fn what_is_small_goes_together_and_what_is_large_as_it_is() {
        let large = 100_000;
        let messages = [message(10), message(20), message(large), message(30)];
        let bytes: usize = messages.iter().map(updraft_engine::Weight::weight).sum();
        let (frames, trailers) = sent(Answer::new(stream::iter(messages.map(Ok))));
        assert_eq!((frames.len(), frames[1], frames.iter().sum::<usize>()), (3, large, bytes));
        assert_eq!(trailers["grpc-status"], "0");
        let many = (0..100).map(|_| Ok(message(1000)));
        let (frames, _) = sent(Answer::new(stream::iter(many)));
        assert!(frames.len() > 4 && frames.iter().all(|bytes| *bytes < TOGETHER_MAX + 2000), "{frames:?}");
    }

    #[test]
    fn nothing_waits_for_a_message_that_is_not_there() {
        let mut messages = vec![Some(message(10)), None, Some(message(10))].into_iter();
        let messages = stream::poll_fn(move |cx| match messages.next() {
            Some(Some(message)) => Poll::Ready(Some(Ok(message))),
            Some(None) => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            None => Poll::Ready(None),
        });
        assert_eq!(sent(Answer::new(messages)).0.len(), 2);
    }

    #[test]
    fn an_error_ends_the_stream_with_its_status_and_what_the_command_tells() {
        let messages = vec![Ok(message(10)), Err(Status::data_loss("torn \u{2603}")), Ok(message(10))];
        let told = || HeaderMap::from_iter([(http::HeaderName::from_static("x-told"), "1".parse().expect("a value"))]);
        let (frames, trailers) = sent(Answer::new(stream::iter(messages)).followed_by(told));
        assert_eq!(frames.len(), 1);
        assert_eq!(trailers["grpc-status"], "15");
        assert_eq!(trailers["grpc-message"], "torn%20%E2%98%83");
        assert_eq!(trailers["x-told"], "1");
    }
}
