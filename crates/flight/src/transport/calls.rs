//! The calls of a connection, run by the connection's own task.
//!
//! hyper would have each call as a task. Then what answers a call and what writes to the socket run side by side: the
//! headers of an answer, its messages and its trailers leave in as many packets as the two race to make, each with a
//! write here and a wakeup in the client, and threads are woken to do it. Calls compute next to nothing (queries run
//! elsewhere), so nothing is lost by running them in turn, and what a turn has made leaves with one write.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures::future::{AbortRegistration, Abortable};
use futures::stream::FuturesUnordered;
use futures::task::AtomicWaker;
use futures::{FutureExt, StreamExt};
use parking_lot::Mutex;

/// How often a connection and its calls are looked at in turn before others on this thread are.
const ROUNDS_MAX: usize = 16;

type Call = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Where hyper puts the calls that begin.
#[derive(Clone, Default)]
pub(super) struct Begun(Arc<Mutex<Calls>>);

#[derive(Default)]
struct Calls {
    begun: Vec<Call>,
    /// Ends the call that begins next.
    ended_by: Option<AbortRegistration>,
}

impl Begun {
    /// The call that begins next can be ended. hyper has the service called, and then begins the call.
    pub(super) fn next(&self, ended_by: AbortRegistration) {
        self.0.lock().ended_by = Some(ended_by);
    }
}

impl<F> hyper::rt::Executor<F> for Begun
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, call: F) {
        let mut calls = self.0.lock();
        let call: Call = match calls.ended_by.take() {
            Some(ended_by) => Box::pin(Abortable::new(call, ended_by).map(drop)),
            None => Box::pin(call),
        };
        calls.begun.push(call);
    }
}

/// A connection together with its calls. It ends when the connection does, and the calls with it.
pub(super) struct WithCalls<C> {
    connection: C,
    begun: Begun,
    calls: FuturesUnordered<Call>,
    had_calls: bool,
    turn: Arc<Turn>,
}

impl<C> WithCalls<C> {
    /// `connection` puts its calls into `begun`.
    pub(super) fn new(connection: C, begun: Begun) -> Self {
        Self { connection, begun, calls: FuturesUnordered::new(), had_calls: false, turn: Arc::default() }
    }

    /// Whether calls are going on: until the last byte of an answer was given to the connection.
    pub(super) fn has_calls(&self) -> bool {
        !self.calls.is_empty()
    }

    /// Whether there ever was a call.
    pub(super) fn had_calls(&self) -> bool {
        self.had_calls
    }

    pub(super) fn connection(&mut self) -> Pin<&mut C>
    where
        C: Unpin,
    {
        Pin::new(&mut self.connection)
    }
}

impl<C: Future + Unpin> Future for WithCalls<C> {
    type Output = C::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<C::Output> {
        let me = &mut *self;
        me.turn.task.register(cx.waker());
        let waker = Waker::from(Arc::clone(&me.turn));
        let mut inner = Context::from_waker(&waker);
        me.turn.goes_on.store(true, Ordering::SeqCst);
        for _ in 0..ROUNDS_MAX {
            me.turn.woken.store(false, Ordering::SeqCst);
            if let Poll::Ready(ended) = Pin::new(&mut me.connection).poll(&mut inner) {
                return Poll::Ready(ended);
            }
            me.calls.extend(me.begun.0.lock().begun.drain(..));
            me.had_calls |= !me.calls.is_empty();
            while let Poll::Ready(Some(())) = me.calls.poll_next_unpin(&mut inner) {}
            // What calls have sent wakes the connection, and what came for calls wakes them.
            if !me.turn.woken.load(Ordering::SeqCst) {
                break;
            }
        }
        me.turn.goes_on.store(false, Ordering::SeqCst);
        if me.turn.woken.load(Ordering::SeqCst) {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }
}

impl<C> Drop for WithCalls<C> {
    fn drop(&mut self) {
        // Calls that began as the connection ended. hyper's calls hold their executor, so they would keep each other.
        let begun = std::mem::take(&mut self.begun.0.lock().begun);
        drop(begun);
    }
}

/// Wakes the task, unless it is at it: a task that is woken while it runs is queued, and another thread woken to take it.
#[derive(Default)]
struct Turn {
    task: AtomicWaker,
    goes_on: AtomicBool,
    woken: AtomicBool,
}

impl Wake for Turn {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // In this order, as the task ends its turn in the other: one of both sees that there is more to do.
        self.woken.store(true, Ordering::SeqCst);
        if !self.goes_on.load(Ordering::SeqCst) {
            self.task.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use futures::task::{ArcWake, noop_waker, waker};

    use super::*;

    /// A connection that does in each poll what it is given, and counts its polls.
    struct Scripted<F> {
        polls: usize,
        poll: F,
    }

    impl<F: FnMut(usize, &mut Context<'_>) -> Poll<()> + Unpin> Future for Scripted<F> {
        type Output = ();

        fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
            self.polls += 1;
            let polls = self.polls;
            (self.poll)(polls, cx)
        }
    }

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl ArcWake for Woken {
        fn wake_by_ref(me: &Arc<Self>) {
            me.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn what_a_call_sends_is_written_in_the_same_turn() {
        let begun = Begun::default();
        let executor = begun.clone();
        let connection = Scripted {
            polls: 0,
            poll: move |polls, cx: &mut Context<'_>| {
                if polls == 1 {
                    // The call has something to send, of which the connection hears by its waker.
                    let waker = cx.waker().clone();
                    hyper::rt::Executor::execute(&executor, async move { waker.wake() });
                }
                Poll::Pending
            },
        };
        let mut with_calls = WithCalls::new(connection, begun);
        let woken = Arc::new(Woken::default());
        let waker = waker(Arc::clone(&woken));
        assert!(Pin::new(&mut with_calls).poll(&mut Context::from_waker(&waker)).is_pending());
        assert_eq!(with_calls.connection.polls, 2, "once more after the call");
        assert_eq!(woken.0.load(Ordering::SeqCst), 0, "the task has nothing left to do");
    }

    #[test]
    fn a_wakeup_between_turns_reaches_the_task() {
        let kept = Arc::new(Mutex::new(None::<Waker>));
        let keep = Arc::clone(&kept);
        let connection = Scripted {
            polls: 0,
            poll: move |_, cx: &mut Context<'_>| {
                *keep.lock() = Some(cx.waker().clone());
                Poll::Pending
            },
        };
        let mut with_calls = WithCalls::new(connection, Begun::default());
        let woken = Arc::new(Woken::default());
        let waker = waker(Arc::clone(&woken));
        assert!(Pin::new(&mut with_calls).poll(&mut Context::from_waker(&waker)).is_pending());
        kept.lock().take().expect("it was polled").wake();
        assert_eq!(woken.0.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn who_is_never_done_lets_others_go_on() {
        let connection = Scripted {
            polls: 0,
            poll: |_, cx: &mut Context<'_>| {
                cx.waker().wake_by_ref();
                Poll::Pending
            },
        };
        let mut with_calls = WithCalls::new(connection, Begun::default());
        let woken = Arc::new(Woken::default());
        let waker = waker(Arc::clone(&woken));
        assert!(Pin::new(&mut with_calls).poll(&mut Context::from_waker(&waker)).is_pending());
        assert_eq!(with_calls.connection.polls, ROUNDS_MAX);
        assert_eq!(woken.0.load(Ordering::SeqCst), 1, "it comes back");
    }

    #[test]
    fn calls_end_with_their_connection() {
        let (held, over) = (Arc::new(()), Arc::new(AtomicBool::new(false)));
        let begun = Begun::default();
        let (executor, end) = (begun.clone(), Arc::clone(&over));
        let mut hold = Some(Arc::clone(&held));
        let connection = Scripted {
            polls: 0,
            poll: move |_, _: &mut Context<'_>| {
                if let Some(held) = hold.take() {
                    hyper::rt::Executor::execute(&executor, async move {
                        let _held = held;
                        std::future::pending::<()>().await;
                    });
                }
                if end.load(Ordering::SeqCst) { Poll::Ready(()) } else { Poll::Pending }
            },
        };
        let mut with_calls = WithCalls::new(connection, begun);
        let waker = noop_waker();
        let mut cx = Context::from_waker(&waker);
        assert!(Pin::new(&mut with_calls).poll(&mut cx).is_pending());
        assert_eq!(Arc::strong_count(&held), 2);
        over.store(true, Ordering::SeqCst);
        assert!(Pin::new(&mut with_calls).poll(&mut cx).is_ready());
        drop(with_calls);
        assert_eq!(Arc::strong_count(&held), 1);
    }

    #[test]
    fn calls_that_begin_as_their_connection_ends_leave_nothing() {
        let held = Arc::new(());
        let begun = Begun::default();
        let executor = begun.clone();
        let mut hold = Some(Arc::clone(&held));
        let connection = Scripted {
            polls: 0,
            poll: move |_, _: &mut Context<'_>| {
                // As hyper's do, the call holds what it was given to.
                let both = (hold.take(), executor.clone());
                hyper::rt::Executor::execute(&executor, async move {
                    let _both = both;
                    std::future::pending::<()>().await;
                });
                Poll::Ready(())
            },
        };
        let mut with_calls = WithCalls::new(connection, begun);
        let waker = noop_waker();
        assert!(Pin::new(&mut with_calls).poll(&mut Context::from_waker(&waker)).is_ready());
        drop(with_calls);
        assert_eq!(Arc::strong_count(&held), 1);
    }
}
