//! The CPU runtime: where queries are planned and polled, apart from the one that moves bytes.

use std::future::Future;

use thread_priority::{ThreadPriority, ThreadPriorityValue};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio_util::task::AbortOnDropHandle;

use crate::admission::Lane;

/// Plans are trees, and are cloned and dropped by recursion. The limits on SQL text keep them below what
/// fits in this; it is address space, of which only what is touched becomes memory.
pub(crate) const STACK_BYTES: usize = 64 << 20;

/// Priority of the threads that heavy queries run on, of 0 to 99 where others have 50: a niceness of 9 on Linux.
const HEAVY_PRIORITY: u8 = 25;

/// Two tokio runtimes for work that computes, each with a worker per core. An operator may compute for a long time within
/// one poll, and nothing but the system can take a thread's core away: so what is small runs on threads of its own,
/// and the system lets them go first. Shut down, without waiting, when dropped.
#[derive(Debug)]
pub(crate) struct CpuRuntime {
    light: Pool,
    heavy: Pool,
    threads: usize,
}

#[derive(Debug)]
struct Pool(Option<Runtime>);

impl CpuRuntime {
    /// With `threads` workers for each lane; 0 = one per core.
    pub(crate) fn start(threads: usize) -> std::io::Result<Self> {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        let threads = if threads == 0 { cores() } else { threads };
        let pool = |name: &str, on_start: fn()| {
            let mut builder = Builder::new_multi_thread();
            builder.worker_threads(threads).thread_name(name).thread_stack_size(STACK_BYTES).enable_all();
            builder.on_thread_start(on_start).build().map(|runtime| Pool(Some(runtime)))
        };
        Ok(Self { light: pool("updraft-light", || ())?, heavy: pool("updraft-heavy", give_way)?, threads })
    }

    /// Workers for each lane.
    pub(crate) fn threads(&self) -> usize {
        self.threads
    }

    /// Starts `work` of `lane`, which ends when the handle is dropped.
    pub(crate) fn spawn<F>(&self, lane: Lane, work: F) -> AbortOnDropHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        AbortOnDropHandle::new(self.handle(lane).spawn(work))
    }

    /// Where work of `lane` runs.
    pub(crate) fn handle(&self, lane: Lane) -> &Handle {
        let Pool(runtime) = match lane {
            Lane::Light => &self.light,
            Lane::Heavy => &self.heavy,
        };
        runtime.as_ref().expect("the runtime is there until drop").handle()
    }
}

/// Lets other threads go before this one, where the system knows priorities.
fn give_way() {
    let priority = ThreadPriorityValue::try_from(HEAVY_PRIORITY).map(ThreadPriority::Crossplatform);
    if let Ok(priority) = priority {
        // Without it heavy queries are no worse off, and small ones only a little.
        let _ = priority.set_for_current();
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // A runtime may not be dropped where futures run; this returns at once.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}
