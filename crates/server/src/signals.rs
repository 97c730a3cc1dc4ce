//! What signals do to a running server: SIGTERM and SIGINT drain, a second one ends, SIGHUP reloads certificates.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{info, warn};

use crate::serve::{Ended, Error, Running};

/// Signals that are caught from now on. Made before the server says that it listens: who waits for that line may send one
/// at once, and it must drain, not kill.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    /// # Errors
    /// A handler cannot be made.
    pub(crate) fn new() -> Result<Self, Error> {
        let caught = |kind| signal(kind).map_err(Error::Process);
        Ok(Self {
            terminate: caught(SignalKind::terminate())?,
            interrupt: caught(SignalKind::interrupt())?,
            hang_up: caught(SignalKind::hangup())?,
        })
    }

    /// The next request to end.
    async fn end(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// Serves until a signal, or the endpoint, ends it.
///
/// # Errors
/// The endpoint broke.
pub(crate) async fn until_signal(mut running: Running, mut signals: Signals) -> Result<Ended, Error> {
    let name = loop {
        tokio::select! {
            ended = running.broken() => return Err(ended),
            _ = signals.terminate.recv() => break "SIGTERM",
            _ = signals.interrupt.recv() => break "SIGINT",
            _ = signals.hang_up.recv() => {
                info!("SIGHUP: reading certificates anew");
                running.reload_certificates();
            }
        }
    };
    let grace = running.drain_grace();
    info!(signal = name, grace_seconds = grace.as_secs(), queries = running.engine().running(), "draining");
    let second = async {
        let name = signals.end().await;
        warn!(signal = name, "ending at once");
    };
    let ended = running.drain(grace, second).await?;
    info!(killed = ended.killed, "ended");
    Ok(ended)
}
