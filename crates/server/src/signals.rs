//! What signals do to a running server: SIGTERM and SIGINT drain, a second one ends, SIGHUP reloads certificates.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{info, warn};

use crate::serve::{Ended, Error, Running};

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
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
/// The endpoint broke, or signals cannot be received.
pub(crate) async fn until_signal(mut running: Running) -> Result<Ended, Error> {
    let mut signals = Signals::new().map_err(Error::Process)?;
    let mut hang_up = signal(SignalKind::hangup()).map_err(Error::Process)?;
    let name = loop {
        tokio::select! {
            ended = running.broken() => return Err(ended),
            name = signals.end() => break name,
            _ = hang_up.recv() => {
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
