//! Requests to one store: how many at the same time, and one more for each that takes too long.
//!
//! A store answers most requests alike and a few of them ten times later, and a scan waits for the last of a hundred. So a
//! read that takes much longer than others is sent again, on another connection, and the first answer counts. Such reads
//! are counted out: a store that is slow as a whole is not asked twice as often for that.

use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::future::{Either, select};
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

/// Reads of which the time is remembered.
const REMEMBERED: usize = 64;
/// No read is sent again before so many were seen.
const SEEN_MIN: usize = 16;
/// One in so many of the remembered reads was slower than what is usual.
const SLOWEST: usize = 20;
/// A read that takes so many times what is usual is sent again.
const PATIENCE: u32 = 2;
/// And no earlier than this: a busy machine is as slow.
const PATIENCE_MIN: Duration = Duration::from_millis(50);
/// Bytes that take about as long as the answer's beginning.
const BYTES_AS_LONG: u64 = 1 << 20;
/// Reads for each that may be sent again.
const READS_PER_EXTRA: u64 = 20;
/// Unused ones add up to so many.
const EXTRAS_MAX: u64 = 10;

/// The requests of one store.
#[derive(Debug)]
pub(crate) struct Requests {
    turns: Semaphore,
    /// After how long a read is sent again: `None` = as others show, zero = never.
    hedge_after: Option<Duration>,
    pace: Mutex<Pace>,
    counts: Counts,
}

#[derive(Debug, Default)]
struct Counts {
    reads: AtomicU64,
    bytes: AtomicU64,
    sent_twice: AtomicU64,
}

/// What a store was asked for since the server began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreFigures {
    /// Reads of files; a read that is tried again after an error counts once.
    pub reads: u64,
    /// Bytes that they gave.
    pub bytes: u64,
    /// Reads that were sent a second time because the first was slow.
    pub sent_twice: u64,
}

/// How long the last reads took.
#[derive(Debug, Default)]
struct Pace {
    /// In microseconds, each divided by its [`weight`].
    last: Vec<u32>,
    next: usize,
    /// Reads since the last one that was sent again, as far as they matter.
    saved: u64,
}

impl Requests {
    /// Up to `together` at the same time.
    pub(crate) fn new(together: usize, hedge_after: Option<Duration>) -> Self {
        let turns = Semaphore::new(together.clamp(1, Semaphore::MAX_PERMITS));
        Self { turns, hedge_after, pace: Mutex::default(), counts: Counts::default() }
    }

    /// What was asked for until now.
    pub(crate) fn figures(&self) -> StoreFigures {
        let Counts { reads, bytes, sent_twice } = &self.counts;
        let [reads, bytes, sent_twice] = [reads, bytes, sent_twice].map(|count| count.load(Ordering::Relaxed));
        StoreFigures { reads, bytes, sent_twice }
    }

    /// What `ask` gets, about `bytes` of them: the first answer, if it is asked twice. Must be polled on a runtime with
    /// timers.
    ///
    /// # Errors
    /// Of `ask`; asked twice, only when both fail.
    pub(crate) async fn get<F, E>(&self, bytes: u64, ask: impl Fn() -> F) -> Result<Bytes, E>
    where
        F: Future<Output = Result<Bytes, E>>,
    {
        let _turn = self.turns.acquire().await.expect("it is never closed");
        self.counts.reads.fetch_add(1, Ordering::Relaxed);
        let started = Instant::now();
        let mut first = pin!(ask());
        let answer = match self.patience(bytes) {
            None => first.await,
            Some(patience) => match timeout(patience, &mut first).await {
                Ok(answer) => answer,
                Err(_) => self.hedged(first, ask).await,
            },
        };
        if answer.is_ok() {
            self.counts.bytes.fetch_add(bytes, Ordering::Relaxed);
            self.pace.lock().remember(bytes, started.elapsed());
        }
        answer
    }

    /// The answer to `first`, or to the same asked again, if that may be.
    async fn hedged<F, E>(
        &self,
        first: impl Future<Output = Result<Bytes, E>> + Unpin,
        ask: impl Fn() -> F,
    ) -> Result<Bytes, E>
    where
        F: Future<Output = Result<Bytes, E>>,
    {
        // Without a free turn the store is as busy as it may be.
        let Some(_turn) = self.turns.try_acquire().ok().filter(|_| self.pace.lock().spend()) else {
            return first.await;
        };
        self.counts.sent_twice.fetch_add(1, Ordering::Relaxed);
        match select(first, pin!(ask())).await {
            Either::Left((Ok(bytes), _)) | Either::Right((Ok(bytes), _)) => Ok(bytes),
            Either::Left((Err(_), second)) => second.await,
            Either::Right((Err(_), first)) => first.await,
        }
    }

    /// How long to wait for `bytes` before they are asked for again; `None` = until they are there.
    fn patience(&self, bytes: u64) -> Option<Duration> {
        match self.hedge_after {
            Some(Duration::ZERO) => None,
            Some(after) => Some(after),
            None => Some((self.pace.lock().usual()? * PATIENCE).max(PATIENCE_MIN).mul_f64(weight(bytes))),
        }
    }
}

/// How much longer so many bytes take than none.
fn weight(bytes: u64) -> f64 {
    1.0 + bytes as f64 / BYTES_AS_LONG as f64
}

impl Pace {
    fn remember(&mut self, bytes: u64, took: Duration) {
        let took = took.div_f64(weight(bytes));
        let took = u32::try_from(took.as_micros()).unwrap_or(u32::MAX);
        match self.last.len() {
            REMEMBERED => self.last[self.next] = took,
            _ => self.last.push(took),
        }
        self.next = (self.next + 1) % REMEMBERED;
        self.saved = (self.saved + 1).min(EXTRAS_MAX * READS_PER_EXTRA);
    }

    /// What nearly all of the last reads took at most, without their bytes; `None` = too few were seen.
    fn usual(&self) -> Option<Duration> {
        if self.last.len() < SEEN_MIN {
            return None;
        }
        let mut sorted = self.last.clone();
        let place = sorted.len() - 1 - sorted.len() / SLOWEST;
        let (_, usual, _) = sorted.select_nth_unstable(place);
        Some(Duration::from_micros(u64::from(*usual)))
    }

    /// Whether one more read may be sent again.
    fn spend(&mut self) -> bool {
        let enough = self.saved >= READS_PER_EXTRA;
        if enough {
            self.saved -= READS_PER_EXTRA;
        }
        enough
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// A store of which each request takes as long as `times` says, and fails when it says zero.
    struct Script<'a> {
        times: RefCell<Vec<Duration>>,
        asked: &'a Cell<usize>,
    }

    impl Script<'_> {
        async fn ask(&self) -> Result<Bytes, &'static str> {
            self.asked.set(self.asked.get() + 1);
            let time = self.times.borrow_mut().pop().unwrap_or(20 * MS);
            tokio::time::sleep(time).await;
            if time.is_zero() { Err("failed") } else { Ok(Bytes::from_static(b"x")) }
        }
    }

    /// Reads with the first requests taking `times`: how long it took, how many requests it took, and whether it went well.
    async fn read(requests: &Requests, times: &[u32]) -> (Duration, usize, bool) {
        let asked = Cell::new(0);
        let times = RefCell::new(times.iter().rev().map(|ms| *ms * MS).collect());
        let script = Script { times, asked: &asked };
        let started = Instant::now();
        let answer = requests.get(1, || script.ask()).await;
        (started.elapsed(), asked.get(), answer.is_ok())
    }

    async fn seasoned(hedge_after: Option<Duration>) -> Requests {
        let requests = Requests::new(4, hedge_after);
        for _ in 0..READS_PER_EXTRA {
            read(&requests, &[]).await;
        }
        requests
    }

    #[tokio::test(start_paused = true)]
    async fn a_read_that_takes_too_long_is_sent_again_and_the_first_answer_counts() {
        let (took, asked, ok) = read(&seasoned(None).await, &[1000]).await;
        assert!(took < 80 * MS, "{took:?}");
        assert_eq!((asked, ok), (2, true));
        let (took, asked, ok) = read(&seasoned(None).await, &[60, 1000]).await;
        assert!(took < 70 * MS, "the first one may still be faster: {took:?}");
        assert_eq!((asked, ok), (2, true));
        assert_eq!(read(&seasoned(None).await, &[45]).await.1, 1, "that is not long");
        assert_eq!(read(&seasoned(Some(Duration::ZERO)).await, &[1000]).await.1, 1, "it was turned off");
        assert_eq!(read(&Requests::new(4, None), &[1000]).await.1, 1, "nothing is known of the store");
    }

    #[tokio::test(start_paused = true)]
    async fn one_answer_of_two_is_enough_and_two_errors_are_one() {
        let failing = |first: &'static [u32]| async move { read(&seasoned(None).await, first).await };
        assert_eq!(failing(&[200, 0]).await, (200 * MS, 2, true));
        let requests = seasoned(None).await;
        let asked = Cell::new(0);
        let both = || async {
            asked.set(asked.get() + 1);
            tokio::time::sleep(100 * MS).await;
            Err::<Bytes, _>("failed")
        };
        assert_eq!((requests.get(1, both).await, asked.get()), (Err("failed"), 2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_is_slow_as_a_whole_is_not_asked_much_more() {
        let requests = seasoned(Some(30 * MS)).await;
        let mut asked = 0;
        for _ in 0..400 {
            asked += read(&requests, &[500, 500]).await.1;
        }
        assert!((401..=421).contains(&asked), "{asked} requests for 400 reads");
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_request_takes_a_turn_too() {
        let requests = seasoned(Some(30 * MS)).await;
        let held = requests.turns.acquire_many(3).await.expect("open");
        assert_eq!(read(&requests, &[500]).await.1, 1);
        drop(held);
        assert_eq!(read(&requests, &[500]).await.1, 2);
    }
}
