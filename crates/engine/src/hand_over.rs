//! Lets other tasks run while an operator stays within one poll.
//!
//! A worker of the runtime runs one task at a time, and what waits in its queue, its timers and its sockets wait as long
//! as the task does not return. An operator that stays calls [`breathe`] again and again. Its thread keeps the
//! operator, and another thread goes on as the worker.

use std::cell::Cell;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use tokio::runtime::{Handle, RuntimeFlavor};

/// What a thread may take before others have their turn.
const TURN: Duration = Duration::from_millis(5);

/// A look at the clock takes longer than the cheapest calls.
const CALLS_PER_LOOK: u32 = 32;

/// The longest wait for another thread, which has to wait for a processor itself.
const PATIENCE: Duration = Duration::from_millis(20);

thread_local! {
    static CALLS: Cell<u32> = const { Cell::new(0) };
    /// When another thread last had the worker.
    static HANDED_OVER: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Hands the worker over when it is time to.
pub(crate) fn breathe() {
    let calls = CALLS.get().wrapping_add(1);
    CALLS.set(calls);
    if calls.is_multiple_of(CALLS_PER_LOOK) && HANDED_OVER.get().is_none_or(|then| then.elapsed() >= TURN) {
        hand_over();
    }
}

/// Lets the runtime give this worker's queue to another thread.
pub(crate) fn hand_over() {
    let Ok(runtime) = Handle::try_current() else { return };
    // The runtime takes its queue back from a thread that was not quick enough: this waits until it was.
    blocking(|| {
        let (running, runs) = mpsc::sync_channel(1);
        runtime.spawn(async move { running.send(()) });
        runs.recv_timeout(PATIENCE).ok()
    });
    HANDED_OVER.set(Some(Instant::now()));
}

/// What `f` gives, which may wait meanwhile; `None`, without a call, where nobody could go on as the worker.
pub(crate) fn blocking<R>(f: impl FnOnce() -> R) -> Option<R> {
    match Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => Some(tokio::task::block_in_place(f)),
        Ok(_) => None,
        Err(_) => Some(f()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_was_handed_over_runs_other_tasks_and_timers() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("it starts");
        for _ in 0..10 {
            let (quit, quits) = mpsc::channel::<()>();
            // The only worker is within one poll until it is told to quit, which a test that fails does too.
            runtime.spawn(async move {
                hand_over();
                quits.recv()
            });
            let (done, is_done) = mpsc::channel();
            runtime.spawn(async move {
                tokio::time::sleep(Duration::from_millis(1)).await;
                done.send(())
            });
            assert_eq!(is_done.recv_timeout(Duration::from_secs(5)), Ok(()));
            drop(quit);
        }
    }
}
