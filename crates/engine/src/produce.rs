//! The batches of a query encoded and sent, in order.
//!
//! Most results are encoded by the task that makes their batches: it keeps ahead of any client. What takes longer to encode
//! than to make, as what is compressed does, is encoded by tasks of its own, several at a time and while the next batch is made.

use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::future::{self, Either};
use futures::stream::BoxStream;
use futures::{FutureExt, Stream, StreamExt, TryStreamExt};
use tokio::runtime::Handle;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use crate::admission::Lane;
use crate::bridge::{Room, Sender, Weight};
use crate::error::Error;
use crate::query::Run;

/// How long a client may keep its query waiting before the query's slot and memory are left to others meanwhile.
const PATIENCE: Duration = Duration::from_secs(1);

/// The same for a client that is known to be slow: it would keep a slot for as long as it takes to read its result.
const PATIENCE_WITH_SLOW: Duration = Duration::from_millis(100);

/// A client is slow that has kept its query waiting for so long, and for three quarters of the time.
const SLOW_FROM: Duration = Duration::from_secs(10);

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
    let waits = Arc::new(Waits::default());
    match encode(counting(batches, Arc::clone(&run))) {
        Encoded::InTurn(mut items) => {
            while let Some(item) = items.try_next().await? {
                let room = patiently(&run, &waits, sender.reserve(item.weight())).await?;
                give(item, room);
            }
        }
        Encoded::SideBySide(parts) => {
            let at_once = match lane {
                Lane::Light => 1,
                Lane::Heavy => Handle::current().metrics().num_workers(),
            };
            let begun = parts.and_then(|part| {
                let (sender, run, waits) = (Arc::clone(&sender), Arc::clone(&run), Arc::clone(&waits));
                async move {
                    let room = patiently(&run, &waits, sender.reserve(part.bytes)).await?;
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

/// For how long a query has waited for its client, until now.
#[derive(Debug, Default)]
struct Waits {
    first: OnceLock<Instant>,
    /// In microseconds.
    total: AtomicU64,
}

impl Waits {
    /// For how long the query waits once more before others have its turn.
    fn patience(&self) -> Duration {
        let total = Duration::from_micros(self.total.load(Ordering::Relaxed));
        let since = self.first.get().map_or(Duration::ZERO, Instant::elapsed);
        if total >= SLOW_FROM && total >= since / 4 * 3 { PATIENCE_WITH_SLOW } else { PATIENCE }
    }

    /// Counts in a wait that began at `since`.
    fn add(&self, since: Instant) {
        self.total.fetch_add(since.elapsed().as_micros() as u64, Ordering::Relaxed);
    }
}

/// Waits for `room`, and leaves the turn of `run` to others when that takes long.
async fn patiently(run: &Run, waits: &Waits, room: impl Future<Output = Result<Room, Error>>) -> Result<Room, Error> {
    let mut room = pin!(room);
    if let Some(room) = (&mut room).now_or_never() {
        return room;
    }
    let since = Instant::now();
    waits.first.get_or_init(|| since);
    let room = match tokio::time::timeout(waits.patience(), &mut room).await {
        Ok(room) => room?,
        Err(_) => {
            let turn = run.turn();
            let parked = turn.as_ref().map(|turn| turn.park());
            let room = room.await?;
            if let Some(parked) = parked {
                parked.resume().await;
            }
            room
        }
    };
    waits.add(since);
    Ok(room)
}

fn counting(batches: SendableRecordBatchStream, run: Arc<Run>) -> SendableRecordBatchStream {
    let schema = batches.schema();
    let counted = batches.inspect_ok(move |batch| run.count_rows(batch.num_rows()));
    Box::pin(RecordBatchStreamAdapter::new(schema, counted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_client_that_is_slow_all_the_time_keeps_no_turn() {
        let waits = Waits::default();
        assert_eq!(waits.patience(), PATIENCE);
        // A tenth of a second of work for each wait of nine tenths, which is shorter than others wait for a turn.
        let read = async || {
            let since = Instant::now();
            waits.first.get_or_init(|| since);
            tokio::time::advance(Duration::from_millis(900)).await;
            waits.add(since);
            tokio::time::advance(Duration::from_millis(100)).await;
        };
        for _ in 0..11 {
            read().await;
        }
        assert_eq!(waits.patience(), PATIENCE, "it is not known yet");
        read().await;
        assert_eq!(waits.patience(), PATIENCE_WITH_SLOW);
        tokio::time::advance(Duration::from_secs(4)).await;
        assert_eq!(waits.patience(), PATIENCE, "it reads faster than rows are made");
    }
}
