//! Rows and bytes so far, on one line of standard error, when a person watches.

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytesize::ByteSize;

/// Often enough to look alive, rarely enough to cost nothing.
const INTERVAL: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(super) struct Progress {
    rows: usize,
    bytes: Bytes,
    started: Instant,
    /// When the line was last drawn; none when nobody watches.
    drawn: Option<Instant>,
}

/// Counts bytes where they arrive, inside the stream.
#[derive(Debug, Clone, Default)]
pub(super) struct Bytes(Arc<AtomicUsize>);

impl Bytes {
    pub(super) fn add(&self, bytes: usize) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl Progress {
    /// `rows_on_terminal`: rows scroll by on the terminal themselves, and a line among them would be noise.
    pub(super) fn new(rows_on_terminal: bool) -> Self {
        let now = Instant::now();
        let watched = std::io::stderr().is_terminal() && !rows_on_terminal;
        Self { rows: 0, bytes: Bytes::default(), started: now, drawn: watched.then_some(now) }
    }

    pub(super) fn bytes(&self) -> Bytes {
        self.bytes.clone()
    }

    pub(super) fn add_rows(&mut self, rows: usize) {
        self.rows += rows;
        if self.drawn.is_some_and(|drawn| drawn.elapsed() >= INTERVAL) {
            self.draw("");
            self.drawn = Some(Instant::now());
        }
    }

    fn draw(&self, end: &str) {
        let line = line(self.rows, self.bytes.0.load(Ordering::Relaxed), self.started.elapsed());
        // Carriage return, and clear to the end of the line. A terminal that is gone is no reason to stop.
        let _ = write!(std::io::stderr(), "\r\x1b[K{line}{end}");
    }
}

impl Drop for Progress {
    /// The last state stays on the screen, however the query ended.
    fn drop(&mut self) {
        if self.drawn.is_some() {
            self.draw("\n");
        }
    }
}

fn line(rows: usize, bytes: usize, elapsed: Duration) -> String {
    let plural = if rows == 1 { "" } else { "s" };
    format!("{rows} row{plural}, {}, {:.1} s", ByteSize::b(bytes as u64), elapsed.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::line;
    use std::time::Duration;

    #[test]
    fn the_line_names_rows_bytes_and_seconds() {
        assert_eq!(line(1, 10, Duration::from_millis(40)), "1 row, 10 B, 0.0 s");
        assert_eq!(line(20_000, 3 << 20, Duration::from_secs(2)), "20000 rows, 3.0 MiB, 2.0 s");
    }
}
