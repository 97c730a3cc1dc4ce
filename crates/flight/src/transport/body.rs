//! The body of a response on its way into HTTP/2: as many bytes to a frame as there are.
//!
//! HTTP/2 writes frame by frame, and a batch of ten columns is ten pieces of memory. Each write wakes the client, who
//! finds the less to read the more often that is.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use http_body::Frame;
use tonic::Status;
use tonic::body::Body;

use super::sent::Sent;

/// From here on nothing more is gathered for a frame. Clients that read much take frames of about this size.
pub(super) const ENOUGH: usize = 256 << 10;
/// Nor from so many pieces on: one write takes no more.
const PIECES_MAX: usize = 16;

/// A body whose frames of data that are there at once leave as one, not put together but written by one call.
pub(super) struct Joined {
    body: Body,
    sent: Arc<Sent>,
    /// Bytes that HTTP/2 is to have of the body at most, but for the piece that goes beyond.
    held_max: usize,
    /// What was found behind the data of the last frame: trailers, an error, or the end.
    after: Option<Option<Result<Frame<Pieces>, Status>>>,
}

impl Joined {
    /// `body` on its way, counted by `sent`, at most `held_max` bytes and a piece at a time.
    pub(super) fn new(body: Body, sent: Arc<Sent>, held_max: usize) -> Self {
        sent.asks(false);
        Self { body, sent, held_max, after: None }
    }

    /// Pieces for a frame. What is found behind them is put into `after`.
    fn gather(&mut self, cx: &mut Context<'_>) -> Poll<Pieces> {
        let mut pieces = Pieces::of(Arc::clone(&self.sent));
        let enough = self.held_max.saturating_sub(self.sent.held()).clamp(1, ENOUGH);
        loop {
            match http_body::Body::poll_frame(Pin::new(&mut self.body), cx) {
                Poll::Pending if pieces.bytes == 0 => return Poll::Pending,
                Poll::Pending => break,
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => pieces.push(data),
                    Err(frame) => {
                        // There is no third kind.
                        self.after = Some(frame.into_trailers().ok().map(|trailers| Ok(Frame::trailers(trailers))));
                        break;
                    }
                },
                Poll::Ready(Some(Err(status))) => {
                    self.after = Some(Some(Err(status)));
                    break;
                }
                Poll::Ready(None) => {
                    self.after = Some(None);
                    break;
                }
            }
            if pieces.bytes >= enough || pieces.pieces.len() >= PIECES_MAX {
                break;
            }
        }
        Poll::Ready(pieces)
    }
}

impl http_body::Body for Joined {
    type Data = Pieces;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Pieces>, Status>>> {
        if let Some(after) = self.after.take() {
            return Poll::Ready(after);
        }
        let pieces = self.gather(cx);
        self.sent.asks(pieces.is_pending());
        pieces.map(|pieces| match self.after.take_if(|_| pieces.bytes == 0) {
            Some(after) => after,
            None => Some(Ok(Frame::data(pieces))),
        })
    }

    fn is_end_stream(&self) -> bool {
        match &self.after {
            Some(after) => after.is_none(),
            None => self.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        self.sent.is_over();
    }
}

/// Bytes in several pieces, none of them empty.
#[derive(Debug)]
pub(super) struct Pieces {
    pieces: VecDeque<Bytes>,
    bytes: usize,
    /// Hears what becomes of them.
    sent: Arc<Sent>,
}

impl Pieces {
    fn of(sent: Arc<Sent>) -> Self {
        Self { pieces: VecDeque::new(), bytes: 0, sent }
    }

    fn push(&mut self, piece: Bytes) {
        if !piece.is_empty() {
            self.bytes += piece.len();
            self.sent.gave(piece.len());
            self.pieces.push_back(piece);
        }
    }
}

impl Drop for Pieces {
    fn drop(&mut self) {
        self.sent.took(self.bytes);
    }
}

impl Buf for Pieces {
    fn remaining(&self) -> usize {
        self.bytes
    }

    fn chunk(&self) -> &[u8] {
        self.pieces.front().map_or(&[], |piece| piece)
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let filled = slices.iter_mut().zip(&self.pieces).map(|(slice, piece)| *slice = IoSlice::new(piece));
        filled.count()
    }

    fn advance(&mut self, count: usize) {
        assert!(count <= self.bytes, "{count} bytes of {}", self.bytes);
        self.bytes -= count;
        self.sent.took(count);
        let mut left = count;
        while left > 0
            && let Some(first) = self.pieces.front_mut()
        {
            if left < first.len() {
                first.advance(left);
                return;
            }
            left -= first.len();
            self.pieces.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::stream;
    use http::HeaderMap;
    use http_body_util::{BodyExt, StreamBody};

    use super::super::sent::Answers;
    use super::*;

    /// Room for anything.
    const ALL: usize = usize::MAX;

    fn sent() -> Arc<Sent> {
        Answers::default().begin().0
    }

    fn joined(frames: Vec<Result<Frame<Bytes>, Status>>) -> Joined {
        Joined::new(Body::new(StreamBody::new(stream::iter(frames))), sent(), ALL)
    }

    fn data(piece: &'static [u8]) -> Result<Frame<Bytes>, Status> {
        Ok(Frame::data(Bytes::from_static(piece)))
    }

    /// The bytes of each frame, and how many pieces they came in; what is no data is shown.
    async fn frames(mut body: Joined) -> Vec<String> {
        let mut seen = Vec::new();
        while let Some(frame) = body.frame().await {
            seen.push(match frame.map(Frame::into_data) {
                Ok(Ok(mut pieces)) => {
                    let count = pieces.chunks_vectored(&mut [IoSlice::new(&[]); 64]);
                    let bytes = pieces.copy_to_bytes(pieces.remaining());
                    format!("{count}: {}", String::from_utf8_lossy(&bytes))
                }
                Ok(Err(frame)) => format!("{:?}", frame.into_trailers().expect("trailers")),
                Err(status) => status.message().to_owned(),
            });
        }
        seen
    }

    #[tokio::test]
    async fn what_is_there_leaves_together_and_the_end_after_it() {
        let trailers = || Ok(Frame::trailers(HeaderMap::new()));
        assert_eq!(frames(joined(vec![data(b"ab"), data(b""), data(b"c"), trailers()])).await, ["2: abc", "{}"]);
        assert_eq!(frames(joined(vec![data(b"ab"), Err(Status::internal("no more"))])).await, ["1: ab", "no more"]);
        assert_eq!(frames(joined(vec![trailers()])).await, ["{}"]);
        assert_eq!(frames(joined(vec![data(b"")])).await, Vec::<String>::new());
        let many = (0..PIECES_MAX + 1).map(|_| data(b"x")).collect();
        assert_eq!(frames(joined(many)).await, [format!("16: {}", "x".repeat(PIECES_MAX)), "1: x".to_owned()]);
        let large: &'static [u8] = vec![b'z'; ENOUGH].leak();
        assert_eq!(frames(joined(vec![data(large), data(b"x")])).await.len(), 2, "one frame was enough");
    }

    #[tokio::test]
    async fn what_is_there_does_not_wait_for_more() {
        let some = stream::iter([data(b"a"), data(b"b")]);
        let mut body =
            Joined::new(Body::new(StreamBody::new(futures::StreamExt::chain(some, stream::pending()))), sent(), ALL);
        let frame = body.frame().await.expect("a frame").expect("data");
        assert_eq!(frame.into_data().expect("data").remaining(), 2);
    }

    #[test]
    fn pieces_are_used_up_in_order() {
        let sent = sent();
        let mut pieces = Pieces::of(Arc::clone(&sent));
        for piece in [&b"abc"[..], b"", b"de"] {
            pieces.push(Bytes::from_static(piece));
        }
        pieces.advance(2);
        assert_eq!((pieces.chunk(), pieces.remaining()), (&b"c"[..], 3));
        pieces.advance(2);
        assert_eq!((pieces.chunk(), pieces.remaining()), (&b"e"[..], 1));
        assert_eq!(sent.held(), 1);
        pieces.advance(1);
        assert_eq!((pieces.chunk(), pieces.remaining()), (&b""[..], 0));
        pieces.push(Bytes::from_static(b"never sent"));
        drop(pieces);
        assert_eq!(sent.held(), 0);
    }

    #[tokio::test]
    async fn no_more_is_handed_over_than_may_be_held_and_a_piece() {
        let sent = sent();
        let pieces = (0..4).map(|_| data(b"0123456789")).collect::<Vec<_>>();
        let mut body = Joined::new(Body::new(StreamBody::new(stream::iter(pieces))), Arc::clone(&sent), 15);
        let first = body.frame().await.expect("a frame").expect("data").into_data().expect("data");
        assert_eq!((first.remaining(), sent.held()), (20, 20));
        let second = body.frame().await.expect("a frame").expect("data").into_data().expect("data");
        assert_eq!((second.remaining(), sent.held()), (10, 30), "one, when it is asked for more all the same");
        drop(first);
        let third = body.frame().await.expect("a frame").expect("data").into_data().expect("data");
        assert_eq!((third.remaining(), sent.held()), (10, 20));
    }
}
