//! The batches of a query encoded and sent, in order.
//!
//! Most results are encoded by the task that makes their batches: it keeps ahead of any client. What takes longer to encode
//! than to make, as what is compressed does, is encoded by tasks of its own, several at a time and while the next batch is made.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::future::{self, Either};
use futures::stream::BoxStream;
use futures::{Stream, StreamExt, TryStreamExt};
use tokio::runtime::Handle;
use tokio_util::task::AbortOnDropHandle;

use crate::admission::Lane;
use crate::bridge::{Room, Sender, Weight};
use crate::error::Error;
use crate::query::Run;

/// How long a client may keep its query waiting before the query's slot and memory are left to others meanwhile.
const PATIENCE: Duration = Duration::from_secs(1);

/// Below this to wake another thread takes about as long as to compress what it would.
const BESIDE_BYTES_MIN: usize = 16 << 10;

/// What becomes of the batches of a query, in their order.
#[expect(missing_debug_implementations, reason = "streams have none")]
pub enum Encoded<T> {
    /// Each is made when it is asked for.
    InTurn(BoxStream<'static, Result<T, Error>>),
    /// Several are made side by side: at most one for each thread of the CPU runtime, and what they may come to is within
    /// `engine.stream_buffer`, as what waits for the client is.
    SideBySide(BoxStream<'static, Result<Unencoded<T>, Error>>),
}

impl<T> Encoded<T> {
    /// As `items` makes them.
    pub fn in_turn(items: impl Stream<Item = Result<T, Error>> + Send + 'static) -> Self {
        Self::InTurn(items.boxed())
    }

    /// As all that is in `parts` comes to be encoded.
    pub fn side_by_side(parts: impl Stream<Item = Result<Unencoded<T>, Error>> + Send + 'static) -> Self {
        Self::SideBySide(parts.boxed())
    }
}

/// A part of a result, to be encoded.
#[expect(missing_debug_implementations, reason = "closures have none")]
pub struct Unencoded<T> {
    bytes: usize,
    encode: Box<dyn FnOnce() -> Result<T, Error> + Send>,
}

impl<T> Unencoded<T> {
    /// `encode` makes something of about `bytes` bytes, or less.
    pub fn new(bytes: usize, encode: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Self {
        Self { bytes, encode: Box::new(encode) }
    }
}

/// Encodes and sends all of `batches`, on the threads of `lane`.
pub(crate) async fn produce<T: Weight + Send + 'static>(
    sender: Arc<Sender<T>>,
    run: Arc<Run>,
    batches: SendableRecordBatchStream,
    lane: Lane,
    encode: impl FnOnce(SendableRecordBatchStream) -> Encoded<T> + Send,
) -> Result<(), Error> {
    // The columns of what is over in a moment go with its first rows: one wakeup less, here and at the client.
    let mut now = lane == Lane::Heavy;
    let mut give = |item: T, room| {
        run.count_bytes(item.weight());
        sender.give(item, room, std::mem::replace(&mut now, true));
    };
    match encode(counting(batches, Arc::clone(&run))) {
        Encoded::InTurn(mut items) => {
            while let Some(item) = items.try_next().await? {
                let room = patiently(&run, sender.reserve(item.weight())).await?;
                give(item, room);
            }
        }
        Encoded::SideBySide(parts) => {
            let at_once = match lane {
                Lane::Light => 1,
                Lane::Heavy => Handle::current().metrics().num_workers(),
            };
            let begun = parts.and_then(|part| {
                let (sender, run) = (Arc::clone(&sender), Arc::clone(&run));
                async move {
                    let room = patiently(&run, sender.reserve(part.bytes)).await?;
                    Ok(begin(part, room, lane))
                }
            });
            let mut done = pin!(begun.try_buffered(at_once));
            while let Some((item, room)) = done.try_next().await? {
                give(item, room);
            }
        }
    }
    Ok(())
}

/// Encodes `part`, which has `room`: at once if it is little or its query is, else by a task that ends when this is dropped.
fn begin<T: Send + 'static>(
    part: Unencoded<T>,
    room: Room,
    lane: Lane,
) -> impl Future<Output = Result<(T, Room), Error>> + Send {
    let Unencoded { bytes, encode } = part;
    let encoded = move || Ok((encode()?, room));
    if lane == Lane::Light || bytes < BESIDE_BYTES_MIN {
        return Either::Left(future::ready(encoded()));
    }
    Either::Right(joined(AbortOnDropHandle::new(tokio::spawn(async { encoded() }))))
}

/// What a task of a query came to, its panic included.
pub(crate) async fn joined<R>(task: AbortOnDropHandle<Result<R, Error>>) -> Result<R, Error> {
    match task.await {
        Ok(outcome) => outcome,
        Err(join) => match join.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime goes away.
            Err(_) => Err(Error::Cancelled),
        },
    }
}

/// Waits for `room`, and leaves the turn of `run` to others when that takes long.
async fn patiently(run: &Run, room: impl Future<Output = Result<Room, Error>>) -> Result<Room, Error> {
    let mut room = pin!(room);
    if let Ok(room) = tokio::time::timeout(PATIENCE, &mut room).await {
        return room;
    }
    let turn = run.turn();
    let parked = turn.as_ref().map(|turn| turn.park());
    let room = room.await?;
    if let Some(parked) = parked {
        parked.resume().await;
    }
    Ok(room)
}

fn counting(batches: SendableRecordBatchStream, run: Arc<Run>) -> SendableRecordBatchStream {
    let schema = batches.schema();
    let counted = batches.inspect_ok(move |batch| run.count_rows(batch.num_rows()));
    Box::pin(RecordBatchStreamAdapter::new(schema, counted))
}
