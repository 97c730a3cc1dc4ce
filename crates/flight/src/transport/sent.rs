//! Which clients take nothing of their answers.
//!
//! HTTP/2 asks for more of an answer only when its client makes room, so nothing that makes answers hears of a client
//! that has stopped, and what was handed over stays. Each answer therefore counts what HTTP/2 has of it, and its
//! connection looks at these counts now and then: no timer is set for a call, let alone for a frame.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::future::{AbortHandle, AbortRegistration};
use parking_lot::Mutex;
use tokio::time::Instant;
use tracing::debug;

/// What a client takes at least within its patience, in bytes, if there is as much: a frame of HTTP/2 as small as its
/// largest may be. Who takes a byte now and then has stopped, too.
const LEAST: u64 = 16 << 10;
/// How many looks there are until patience is over.
const LOOKS: u32 = 4;
/// Least and most time between two looks.
pub(super) const LOOK: Duration = Duration::from_millis(100);
const LOOK_LATE: Duration = Duration::from_secs(30);

/// How long a client may take nothing of an answer; zero = for ever. In the extensions of a response, where it differs
/// from that of the server.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience(pub(crate) Duration);

impl Patience {
    /// With a client whose query is ended when it takes nothing for `idle`: who comes back before it is over is told so.
    pub(crate) fn after(idle: Duration) -> Self {
        Self(idle.saturating_mul(2))
    }

    /// How often to look whether it is over.
    pub(super) fn look_every(self) -> Duration {
        if self.0.is_zero() { LOOK_LATE } else { (self.0 / LOOKS).clamp(LOOK, LOOK_LATE) }
    }

    /// It, or `most` if that is less.
    fn at_most(self, most: Option<Duration>) -> Duration {
        let own = if self.0.is_zero() { Duration::MAX } else { self.0 };
        most.map_or(own, |most| own.min(most))
    }
}

/// What HTTP/2 has of one answer.
#[derive(Debug)]
pub(super) struct Sent {
    /// Bytes that it was given and has not written.
    held: AtomicUsize,
    /// Bytes that it has written.
    taken: AtomicU64,
    /// Whether it waits for more. If not, the client has to make room first.
    asks: AtomicBool,
    /// Whether it will be given no more.
    over: AtomicBool,
    patience: OnceLock<Patience>,
    end: AbortHandle,
}

impl Sent {
    pub(super) fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    pub(super) fn gave(&self, bytes: usize) {
        self.held.fetch_add(bytes, Ordering::Relaxed);
    }

    /// It has written `bytes`, or thrown them away.
    pub(super) fn took(&self, bytes: usize) {
        self.held.fetch_sub(bytes, Ordering::Relaxed);
        self.taken.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn asks(&self, asks: bool) {
        self.asks.store(asks, Ordering::Relaxed);
    }

    pub(super) fn is_over(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    /// How long the client may take nothing of this answer.
    pub(super) fn bears(&self, patience: Patience) {
        let _ = self.patience.set(patience);
    }
}

/// The answers of a connection.
#[derive(Clone, Default)]
pub(super) struct Answers(Arc<Mutex<Vec<Watched>>>);

struct Watched {
    sent: Arc<Sent>,
    /// Bytes taken when the client was last found to take enough, or to have nothing to take, and when that was.
    mark: u64,
    since: Option<Instant>,
}

impl Answers {
    /// The answer to a call that begins, and what ends the call when its client takes nothing.
    pub(super) fn begin(&self) -> (Arc<Sent>, AbortRegistration) {
        let (end, ended_by) = AbortHandle::new_pair();
        let sent = Arc::new(Sent {
            held: AtomicUsize::new(0),
            taken: AtomicU64::new(0),
            asks: AtomicBool::new(true),
            over: AtomicBool::new(false),
            patience: OnceLock::new(),
            end,
        });
        let mut answers = self.0.lock();
        if answers.len() == answers.capacity() {
            answers.retain(Watched::is_there);
        }
        answers.push(Watched { sent: Arc::clone(&sent), mark: 0, since: None });
        (sent, ended_by)
    }

    /// Whether HTTP/2 has any of them that it has not written.
    pub(super) fn any_held(&self) -> bool {
        self.0.lock().iter().any(|watched| watched.is_there() && watched.sent.held() > 0)
    }

    /// Ends the calls whose clients take nothing, after `patience` or, where that is longer, `most`. True when that is no
    /// help, as the socket takes nothing: the connection has to be cut.
    pub(super) fn look(&self, patience: Patience, most: Option<Duration>) -> bool {
        let now = Instant::now();
        let mut is_stuck = false;
        self.0.lock().retain_mut(|watched| {
            let is_there = watched.is_there();
            is_stuck |= is_there && watched.is_stuck(now, patience, most);
            is_there
        });
        is_stuck
    }
}

impl Watched {
    /// Whether somebody else has it: the call, or HTTP/2.
    fn is_there(&self) -> bool {
        Arc::strong_count(&self.sent) > 1
    }

    fn is_stuck(&mut self, now: Instant, patience: Patience, most: Option<Duration>) -> bool {
        let sent = &self.sent;
        let (held, taken) = (sent.held(), sent.taken.load(Ordering::Relaxed));
        let waits_for_us = held == 0 && sent.asks.load(Ordering::Relaxed);
        let since = match self.since {
            Some(since) if !waits_for_us && taken - self.mark < LEAST => since,
            _ => {
                (self.mark, self.since) = (taken, Some(now));
                return false;
            }
        };
        let patience = sent.patience.get().copied().unwrap_or(patience).at_most(most);
        if now - since < patience {
            return false;
        }
        // Without its call HTTP/2 writes what it may, or throws it away. If it still has it, nothing can be written.
        if sent.over.load(Ordering::Relaxed) {
            return true;
        }
        debug!(held, "call cut: its client takes nothing of the answer");
        sent.end.abort();
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Patience = Patience(Duration::from_secs(60));

    /// Looks twice, with a little more than the patience between. Whether the call was ended, and the connection is stuck.
    async fn after_a_while(answers: &Answers, sent: &Sent, meanwhile: impl FnOnce()) -> (bool, bool) {
        answers.look(PATIENCE, None);
        tokio::time::advance(PATIENCE.0 + LOOK).await;
        meanwhile();
        let is_stuck = answers.look(PATIENCE, None);
        (sent.end.is_aborted(), is_stuck)
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_little_has_stopped_and_who_takes_enough_has_not() {
        let answers = Answers::default();
        let (sent, _ended_by) = answers.begin();
        assert_eq!(after_a_while(&answers, &sent, || ()).await, (false, false), "there is nothing to take yet");
        sent.asks(false);
        sent.gave(2 * LEAST as usize);
        let enough = || sent.took(LEAST as usize);
        assert_eq!(after_a_while(&answers, &sent, enough).await, (false, false));
        sent.took(LEAST as usize - 1);
        sent.asks(true);
        assert_eq!(after_a_while(&answers, &sent, || ()).await, (true, false), "all but the last byte");
    }

    #[tokio::test(start_paused = true)]
    async fn who_makes_no_room_has_stopped_even_if_nothing_is_held() {
        let answers = Answers::default();
        let (sent, _ended_by) = answers.begin();
        sent.asks(false);
        assert_eq!(after_a_while(&answers, &sent, || ()).await, (true, false));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_left_of_a_call_that_is_over_is_a_stuck_connection() {
        let answers = Answers::default();
        let (sent, _ended_by) = answers.begin();
        sent.gave(1);
        sent.is_over();
        assert_eq!(after_a_while(&answers, &sent, || ()).await, (false, true));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_may_have_its_own_patience_and_a_server_that_ends_less() {
        let answers = Answers::default();
        let (sent, _ended_by) = answers.begin();
        sent.asks(false);
        sent.bears(Patience(Duration::ZERO));
        assert_eq!(after_a_while(&answers, &sent, || ()).await, (false, false), "for ever");
        assert!(!answers.look(PATIENCE, Some(PATIENCE.0)));
        assert!(sent.end.is_aborted());
    }

    #[tokio::test]
    async fn answers_that_are_gone_take_no_memory() {
        let answers = Answers::default();
        let (kept, _ended_by) = answers.begin();
        for _ in 0..1000 {
            drop(answers.begin());
        }
        assert!(answers.0.lock().len() < 10, "{}", answers.0.lock().len());
        drop(kept);
        answers.look(PATIENCE, None);
        assert!(answers.0.lock().is_empty());
    }
}
