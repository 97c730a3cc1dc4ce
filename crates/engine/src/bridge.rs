//! The channel between the CPU runtime, which makes results, and the one that sends them.
//!
//! Bounded by bytes, not by items: eight batches may be a kilobyte or a gigabyte. When a client reads
//! slowly the bound is reached, `send` waits, and the query stands still.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::error::Error;

/// How many bytes a thing holds in memory while it waits.
pub trait Weight {
    /// Bytes.
    fn weight(&self) -> usize;
}

/// How much may wait for a client, and how long it may take none of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) bytes: usize,
    /// Zero = for ever.
    pub(crate) idle: Duration,
}

pub(crate) fn channel<T: Weight>(bounds: Bounds) -> (Sender<T>, Receiver<T>) {
    let (items, received) = mpsc::unbounded_channel();
    let bytes_max = bounds.bytes.clamp(1, u32::MAX as usize);
    let room = Arc::new(Semaphore::new(bytes_max));
    let idle = if bounds.idle.is_zero() { Duration::MAX } else { bounds.idle };
    (Sender { items, room, bytes_max, idle }, Receiver { received })
}

#[derive(Debug)]
pub(crate) struct Sender<T> {
    items: mpsc::UnboundedSender<Result<(T, OwnedSemaphorePermit), Error>>,
    room: Arc<Semaphore>,
    bytes_max: usize,
    idle: Duration,
}

#[derive(Debug)]
pub(crate) struct Receiver<T> {
    received: mpsc::UnboundedReceiver<Result<(T, OwnedSemaphorePermit), Error>>,
}

impl<T: Weight> Sender<T> {
    /// Waits for room, then sends. An item above the bound passes alone.
    ///
    /// # Errors
    /// `Cancelled`, when nobody receives any more; `Idle`, when nobody has received for too long.
    pub(crate) async fn send(&self, item: T) -> Result<(), Error> {
        let bytes = item.weight().clamp(1, self.bytes_max) as u32;
        let room = Arc::clone(&self.room).acquire_many_owned(bytes);
        let permit = tokio::select! {
            permit = room => permit.map_err(|_| Error::Cancelled)?,
            () = self.items.closed() => return Err(Error::Cancelled),
            () = tokio::time::sleep(self.idle) => {
                return Err(Error::Idle(humantime::format_duration(self.idle).to_string()));
            }
        };
        self.items.send(Ok((item, permit))).map_err(|_| Error::Cancelled)
    }

    /// Sends the error that ends the stream.
    pub(crate) fn fail(&self, error: Error) {
        // Nobody left to tell is fine: the caller has logged it.
        let _ = self.items.send(Err(error));
    }
}

impl<T> Receiver<T> {
    /// The next item; `None` when the sender is gone.
    pub(crate) fn poll_next(&mut self, cx: &mut std::task::Context<'_>) -> std::task::Poll<Option<Result<T, Error>>> {
        self.received.poll_recv(cx).map(|item| item.map(|item| item.map(|(item, _permit)| item)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Weight for Vec<u8> {
        fn weight(&self) -> usize {
            self.len()
        }
    }

    async fn next(receiver: &mut Receiver<Vec<u8>>) -> Option<Result<Vec<u8>, Error>> {
        std::future::poll_fn(|cx| receiver.poll_next(cx)).await
    }

    #[tokio::test]
    async fn a_full_channel_makes_the_sender_wait() {
        let (sender, mut receiver) = channel::<Vec<u8>>(Bounds { bytes: 10, idle: Duration::from_secs(60) });
        sender.send(vec![0; 6]).await.expect("there is room");
        let waits = tokio::time::timeout(Duration::from_millis(20), sender.send(vec![0; 5]));
        assert!(waits.await.is_err(), "6 + 5 is more than 10");
        assert_eq!(next(&mut receiver).await.map(|item| item.map(|bytes| bytes.len()).ok()), Some(Some(6)));
        sender.send(vec![0; 500]).await.expect("an item above the bound passes alone");
        let waits = tokio::time::timeout(Duration::from_millis(20), sender.send(vec![0; 1]));
        assert!(waits.await.is_err(), "the big one takes all the room");
    }

    #[tokio::test]
    async fn a_receiver_that_goes_away_frees_a_waiting_sender() {
        let (sender, receiver) = channel::<Vec<u8>>(Bounds { bytes: 10, idle: Duration::from_secs(60) });
        sender.send(vec![0; 10]).await.expect("there is room");
        let waiting = tokio::spawn(async move { sender.send(vec![0; 1]).await });
        tokio::task::yield_now().await;
        drop(receiver);
        assert!(matches!(waiting.await.expect("no panic"), Err(Error::Cancelled)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_receiver_that_stops_ends_the_wait() {
        let (sender, mut receiver) = channel::<Vec<u8>>(Bounds { bytes: 10, idle: Duration::from_secs(60) });
        sender.send(vec![0; 10]).await.expect("there is room");
        assert!(matches!(sender.send(vec![0; 1]).await, Err(Error::Idle(_))));
        assert!(next(&mut receiver).await.is_some(), "what was sent is still there");
        let (sender, _receiver) = channel::<Vec<u8>>(Bounds { bytes: 10, idle: Duration::ZERO });
        sender.send(vec![0; 10]).await.expect("there is room");
        let a_year = Duration::from_secs(365 * 24 * 3600);
        assert!(tokio::time::timeout(a_year, sender.send(vec![0; 1])).await.is_err(), "zero waits for ever");
    }
}
