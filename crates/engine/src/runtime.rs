//! The CPU runtime: where queries are planned and polled, apart from the one that moves bytes.

use std::future::Future;

use tokio::runtime::{Builder, Handle, Runtime};
use tokio_util::task::AbortOnDropHandle;

/// Plans are trees, and are cloned and dropped by recursion. The limits on SQL text keep them below what
/// fits in this; it is address space, of which only what is touched becomes memory.
pub(crate) const STACK_BYTES: usize = 64 << 20;

/// A tokio runtime for work that computes. Shut down, without waiting, when dropped.
#[derive(Debug)]
pub(crate) struct CpuRuntime {
    runtime: Option<Runtime>,
    threads: usize,
}

impl CpuRuntime {
    /// With `threads` workers; 0 = one per core.
    pub(crate) fn start(threads: usize) -> std::io::Result<Self> {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        let threads = if threads == 0 { cores() } else { threads };
        let runtime = Builder::new_multi_thread()
            .worker_threads(threads)
            .thread_name("updraft-cpu")
            .thread_stack_size(STACK_BYTES)
            .enable_all()
            .build()?;
        Ok(Self { runtime: Some(runtime), threads })
    }

    pub(crate) fn threads(&self) -> usize {
        self.threads
    }

    /// Starts `work`, which ends when the handle is dropped.
    pub(crate) fn spawn<F>(&self, work: F) -> AbortOnDropHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        AbortOnDropHandle::new(self.handle().spawn(work))
    }

    fn handle(&self) -> &Handle {
        self.runtime.as_ref().expect("the runtime is there until drop").handle()
    }
}

impl Drop for CpuRuntime {
    fn drop(&mut self) {
        // A runtime may not be dropped where futures run; this returns at once.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
