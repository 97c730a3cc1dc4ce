//! The channel between the CPU runtime, which makes results, and the one that sends them.
//!
//! Bounded by bytes, not by items: eight batches may be a kilobyte or a gigabyte. When a client reads
//! slowly the bound is reached, `send` waits, and the query stands still. When it reads nothing for too long
//! the query ends, and what it had waiting is dropped: a client that never comes back, but keeps its
//! connection open, must not keep memory.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::Error;
use crate::unsent::{Charge, Outgoing};

/// How many bytes a thing holds in memory while it waits.
pub trait Weight {
    /// Bytes.
    fn weight(&self) -> usize;

    /// Takes what counts it as not sent, when it waits no longer. Kept until it has gone, it goes on counting.
    fn keep(&mut self, charge: Charge) {
        drop(charge);
    }
}

/// How much may wait for a client, and how long it may take none of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) bytes: usize,
    /// Zero = for ever.
    pub(crate) idle: Duration,
}

/// Both ends; what is sent counts as `outgoing`.
pub(crate) fn channel<T: Weight>(bounds: Bounds, outgoing: Arc<Outgoing>) -> (Sender<T>, Receiver<T>) {
    let bytes_max = bounds.bytes.clamp(1, u32::MAX as usize) as u32;
    let shared = Arc::new(Shared { room: Arc::new(Semaphore::new(bytes_max as usize)), waiting: Mutex::default() });
    let idle = if bounds.idle.is_zero() { Duration::MAX } else { bounds.idle };
    (Sender { shared: Arc::clone(&shared), outgoing, bytes_max, idle }, Receiver { shared, idle: bounds.idle })
}

#[derive(Debug)]
struct Shared<T> {
    /// One permit for each byte that may wait. Closed when nobody receives any more.
    room: Arc<Semaphore>,
    waiting: Mutex<Waiting<T>>,
}

#[derive(Debug)]
struct Waiting<T> {
    items: VecDeque<(T, Place)>,
    /// How many items were received.
    received: u64,
    /// The last item, and that there will be no other.
    error: Option<Error>,
    ended: bool,
    receiver: Option<Waker>,
}

/// Room for an item, taken until that was received.
pub(crate) type Room = OwnedSemaphorePermit;

/// What an item has while it waits.
#[derive(Debug)]
struct Place {
    _room: Room,
    charge: Charge,
}

impl<T> Default for Waiting<T> {
    fn default() -> Self {
        Self { items: VecDeque::new(), received: 0, error: None, ended: false, receiver: None }
    }
}

#[derive(Debug)]
pub(crate) struct Sender<T> {
    shared: Arc<Shared<T>>,
    outgoing: Arc<Outgoing>,
    bytes_max: u32,
    idle: Duration,
}

#[derive(Debug)]
pub(crate) struct Receiver<T> {
    shared: Arc<Shared<T>>,
    idle: Duration,
}

impl<T: Weight> Sender<T> {
    /// Sends `item` in the `room` that was waited for. The receiver is woken `now`, or only for what comes next, the end if
    /// nothing does.
    pub(crate) fn give(&self, item: T, mut room: Room, now: bool) {
        // What has become smaller than was expected leaves the rest to others.
        let surplus = room.num_permits().saturating_sub(self.permits(item.weight()) as usize);
        drop(room.split(surplus));
        let place = Place { _room: room, charge: self.outgoing.charge(item.weight()) };
        match now {
            true => self.shared.change(|waiting| waiting.items.push_back((item, place))),
            false => self.shared.waiting.lock().items.push_back((item, place)),
        }
    }
}

impl<T> Sender<T> {
    /// Waits for the room of an item of `bytes`, for as long as something is received now and then. One above the bound
    /// gets all there is, alone.
    ///
    /// # Errors
    /// `Cancelled`, when nobody receives any more; `Idle`, when nothing was received for too long.
    pub(crate) async fn reserve(&self, bytes: usize) -> Result<Room, Error> {
        self.room(self.permits(bytes)).await
    }

    fn permits(&self, bytes: usize) -> u32 {
        u32::try_from(bytes).unwrap_or(u32::MAX).clamp(1, self.bytes_max)
    }

    /// The query is over, and what it has sent is all that is left of it.
    pub(crate) fn run_is_over(&self) {
        self.outgoing.run_is_over();
    }

    /// Sends the error that ends the stream. What waits before it is dropped when it is for a client that
    /// does not read.
    pub(crate) fn fail(&self, error: Error) {
        let dropped = self.shared.change(|waiting| {
            let idle = matches!(error, Error::Idle(_));
            waiting.error = Some(error);
            waiting.ended = true;
            if idle { std::mem::take(&mut waiting.items) } else { VecDeque::new() }
        });
        drop(dropped);
    }

    /// Ends the stream, then waits until all of it was received, or drops what nobody receives.
    pub(crate) async fn finish(&self) {
        self.shared.change(|waiting| waiting.ended = true);
        if let Err(error @ Error::Idle(_)) = self.room(self.bytes_max).await {
            self.fail(error);
        }
    }

    async fn room(&self, bytes: u32) -> Result<Room, Error> {
        if let Ok(permit) = Arc::clone(&self.shared.room).try_acquire_many_owned(bytes) {
            return Ok(permit);
        }
        // What the receiver was not told of has to go first.
        let mut received = self.shared.change(|waiting| waiting.received);
        loop {
            let room = Arc::clone(&self.shared.room).acquire_many_owned(bytes);
            if let Ok(permit) = tokio::time::timeout(self.idle, room).await {
                return permit.map_err(|_| Error::Cancelled);
            }
            let before = std::mem::replace(&mut received, self.shared.waiting.lock().received);
            if received == before {
                return Err(Error::Idle(humantime::format_duration(self.idle).to_string()));
            }
        }
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.shared.change(|waiting| waiting.ended = true);
    }
}

impl<T> Shared<T> {
    /// Changes what waits, and wakes the receiver.
    fn change<R>(&self, change: impl FnOnce(&mut Waiting<T>) -> R) -> R {
        let (changed, receiver) = {
            let mut waiting = self.waiting.lock();
            (change(&mut waiting), waiting.receiver.take())
        };
        if let Some(receiver) = receiver {
            receiver.wake();
        }
        changed
    }
}

impl<T> Receiver<T> {
    /// How long nothing may be received; zero = for ever.
    pub(crate) fn idle(&self) -> Duration {
        self.idle
    }

    /// Whether all there will be was sent.
    pub(crate) fn has_ended(&self) -> bool {
        self.shared.waiting.lock().ended
    }

    /// Whether there is an item, or will be none.
    pub(crate) fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut waiting = self.shared.waiting.lock();
        if !waiting.items.is_empty() || waiting.error.is_some() || waiting.ended {
            return Poll::Ready(());
        }
        waiting.receiver = Some(cx.waker().clone());
        Poll::Pending
    }

    /// The next item; `None` when the sender is gone.
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<T, Error>>>
    where
        T: Weight,
    {
        let mut waiting = self.shared.waiting.lock();
        if let Some((mut item, place)) = waiting.items.pop_front() {
            waiting.received += 1;
            drop(waiting);
            // Its room is free for the next.
            item.keep(place.charge);
            return Poll::Ready(Some(Ok(item)));
        }
        if let Some(error) = waiting.error.take() {
            return Poll::Ready(Some(Err(error)));
        }
        if waiting.ended {
            return Poll::Ready(None);
        }
        waiting.receiver = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.shared.room.close();
        let items = std::mem::take(&mut self.shared.waiting.lock().items);
        drop(items);
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{sleep, timeout};

    use super::*;
    use crate::config::MemoryPoolKind;
    use crate::memory::Memory;
    use crate::unsent::Unsent;

    const MINUTE: Duration = Duration::from_secs(60);

    impl Weight for Vec<u8> {
        fn weight(&self) -> usize {
            self.len()
        }
    }

    fn channel<T: Weight>(bounds: Bounds) -> (Sender<T>, Receiver<T>) {
        super::channel(bounds, Outgoing::new(&Unsent::new(Memory::new(MemoryPoolKind::Fair, 0))))
    }

    impl<T: Weight> Sender<T> {
        async fn send(&self, item: T, now: bool) -> Result<(), Error> {
            let room = self.reserve(item.weight()).await?;
            self.give(item, room, now);
            Ok(())
        }
    }

    async fn next(receiver: &mut Receiver<Vec<u8>>) -> Option<Result<Vec<u8>, Error>> {
        std::future::poll_fn(|cx| receiver.poll_next(cx)).await
    }

    #[tokio::test]
    async fn a_full_channel_makes_the_sender_wait() {
        let (sender, mut receiver) = channel::<Vec<u8>>(Bounds { bytes: 10, idle: MINUTE });
        sender.send(vec![0; 6], true).await.expect("there is room");
        let waits = timeout(Duration::from_millis(20), sender.send(vec![0; 5], true));
        assert!(waits.await.is_err(), "6 + 5 is more than 10");
        assert_eq!(next(&mut receiver).await.map(|item| item.map(|bytes| bytes.len()).ok()), Some(Some(6)));
        sender.send(vec![0; 500], true).await.expect("an item above the bound passes alone");
        let waits = timeout(Duration::from_millis(20), sender.send(vec![0; 1], true));
        assert!(waits.await.is_err(), "the big one takes all the room");
    }

    #[tokio::test]
    async fn what_is_smaller_than_its_room_leaves_the_rest() {
        let (sender, _receiver) = channel::<Vec<u8>>(Bounds { bytes: 10, idle: MINUTE });
        let room = sender.reserve(10).await.expect("there is room");
        assert!(timeout(Duration::from_millis(20), sender.reserve(1)).await.is_err(), "all of it is taken");
        sender.give(vec![0; 4], room, true);
        sender.send(vec![0; 6], true).await.expect("there is room again");
        assert!(timeout(Duration::from_millis(20), sender.reserve(1)).await.is_err(), "4 and 6 wait");
    }

    #[tokio::test]
    async fn a_receiver_waits_for_items_and_for_the_end() {
        let (sender, mut receiver) = channel::<Vec<u8>>(Bounds { bytes: 10, idle: MINUTE });
        let received = tokio::spawn(async move {
            let mut lengths = Vec::new();
            while let Some(Ok(item)) = next(&mut receiver).await {
                lengths.push(item.len());
            }
            lengths
        });
        for bytes in [1, 20, 3] {
            tokio::task::yield_now().await;
            sender.send(vec![0; bytes], true).await.expect("it is received");
        }
        sender.finish().await;
        assert_eq!(received.await.expect("no panic"), [1, 20, 3]);
    }

    #[tokio::test]
    async fn what_is_not_announced_goes_with_what_comes_next() {
        let (sender, mut receiver) = channel::<Vec<u8>>(Bounds { bytes: 10, idle: MINUTE });
        let received = tokio::spawn(async move {
            let mut lengths = Vec::new();
            while let Some(item) = next(&mut receiver).await {
                lengths.push(item.expect("no error").len());
            }
            lengths
        });
        tokio::task::yield_now().await;
        sender.send(vec![0; 6], false).await.expect("there is room");
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        assert_eq!(sender.shared.waiting.lock().items.len(), 1, "nobody was woken");
        // It needs the room of the first.
        sender.send(vec![0; 5], false).await.expect("the receiver is told when somebody waits");
        sender.finish().await;
        assert_eq!(received.await.expect("no panic"), [6, 5]);
    }

    #[tokio::test]
    async fn a_receiver_that_goes_away_frees_a_waiting_sender() {
        let (sender, receiver) = channel::<Vec<u8>>(Bounds { bytes: 10, idle: MINUTE });
        sender.send(vec![0; 10], true).await.expect("there is room");
        let waiting = tokio::spawn(async move { sender.send(vec![0; 1], true).await });
        tokio::task::yield_now().await;
        drop(receiver);
        assert!(matches!(waiting.await.expect("no panic"), Err(Error::Cancelled)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_receiver_that_stops_ends_the_wait_and_keeps_nothing() {
        let (sender, mut receiver) = channel::<Vec<u8>>(Bounds { bytes: 10, idle: MINUTE });
        sender.send(vec![0; 10], true).await.expect("there is room");
        let error = sender.send(vec![0; 1], true).await.expect_err("nothing is received");
        sender.fail(error);
        assert!(receiver.shared.waiting.lock().items.is_empty(), "it may never come back");
        assert!(matches!(next(&mut receiver).await, Some(Err(Error::Idle(_)))), "if it does, it is told");
        assert!(next(&mut receiver).await.is_none());
        let (sender, _receiver) = channel::<Vec<u8>>(Bounds { bytes: 10, idle: Duration::ZERO });
        sender.send(vec![0; 10], true).await.expect("there is room");
        let a_year = Duration::from_secs(365 * 24 * 3600);
        assert!(timeout(a_year, sender.send(vec![0; 1], true)).await.is_err(), "zero waits for ever");
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_a_result_is_not_kept_for_ever_either() {
        let (sender, mut receiver) = channel::<Vec<u8>>(Bounds { bytes: 10, idle: MINUTE });
        sender.send(vec![0; 4], true).await.expect("there is room");
        sender.finish().await;
        assert!(matches!(next(&mut receiver).await, Some(Err(Error::Idle(_)))));
    }

    #[tokio::test(start_paused = true)]
    async fn who_reads_slowly_is_not_idle() {
        let (sender, mut receiver) = channel::<Vec<u8>>(Bounds { bytes: 10, idle: MINUTE });
        for _ in 0..10 {
            sender.send(vec![0; 1], true).await.expect("there is room");
        }
        let sending = tokio::spawn(async move { sender.send(vec![0; 10], true).await });
        for _ in 0..10 {
            sleep(MINUTE - Duration::from_secs(1)).await;
            next(&mut receiver).await.expect("ten were sent").expect("it is not idle");
        }
        sending.await.expect("no panic").expect("there is room at last");
    }

    #[tokio::test]
    async fn other_errors_come_after_what_was_sent() {
        let (sender, mut receiver) = channel::<Vec<u8>>(Bounds { bytes: 10, idle: MINUTE });
        sender.send(vec![0; 4], true).await.expect("there is room");
        sender.fail(Error::Draining);
        assert!(matches!(next(&mut receiver).await, Some(Ok(_))));
        assert!(matches!(next(&mut receiver).await, Some(Err(Error::Draining))));
    }
}
