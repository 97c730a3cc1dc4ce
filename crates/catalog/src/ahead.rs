//! Bytes of remote files that are asked for before they are needed, so that a scan decodes one part while the next one
//! is on its way.
//!
//! Whoever knows what will be read next asks, and keeps what it is given until that was read: dropping it gives up what
//! was asked for. All tables together, and each table, have a bound; beyond it nothing is read ahead. What was read ahead in
//! vain is asked for again when it is needed, and fails then.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Weak};

use bytes::Bytes;
use futures::future::{BoxFuture, Shared};
use futures::{FutureExt, TryFutureExt};
use object_store::path::Path;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::task::AbortOnDropHandle;

use crate::ranges::{coalesced, long, part};
use crate::remote::RemoteFile;

/// Of the room of all tables, what one may take.
const TABLE_SHARE: u64 = 4;
/// The unit in which room is counted.
const UNIT: u64 = 1 << 10;

/// Room for what is read ahead of all tables.
#[derive(Debug, Clone)]
pub(crate) struct Room {
    all: Arc<Semaphore>,
    table_bytes: u64,
}

impl Room {
    /// `bytes` for all tables together.
    pub(crate) fn new(bytes: u64) -> Self {
        Self { all: Arc::new(semaphore(bytes)), table_bytes: bytes / TABLE_SHARE }
    }

    /// What is read ahead of one table at most.
    pub(crate) fn table_bytes(&self) -> u64 {
        self.table_bytes
    }
}

fn semaphore(bytes: u64) -> Semaphore {
    Semaphore::new(usize::try_from(bytes / UNIT).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS))
}

/// What is read ahead of one table.
#[derive(Debug)]
pub(crate) struct Ahead {
    all: Arc<Semaphore>,
    own: Arc<Semaphore>,
    pieces: Mutex<HashMap<Path, Vec<Weak<Piece>>>>,
}

/// Bytes that were asked for, for as long as somebody keeps this.
pub(crate) struct Piece {
    range: Range<u64>,
    /// `None` = it failed.
    bytes: Shared<BoxFuture<'static, Option<Bytes>>>,
    _room: [OwnedSemaphorePermit; 2],
}

impl std::fmt::Debug for Piece {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Piece({:?})", self.range)
    }
}

impl Ahead {
    /// Nothing yet, in `room`.
    pub(crate) fn new(room: &Room) -> Self {
        Self { all: room.all.clone(), own: Arc::new(semaphore(room.table_bytes)), pieces: Mutex::default() }
    }

    /// Asks for `ranges` of `file`, which is at `location`, as far as there is room. `None` = there is none at all.
    pub(crate) fn ask(&self, location: &Path, file: &RemoteFile, ranges: &[Range<u64>]) -> Option<Vec<Arc<Piece>>> {
        let mut pieces = self.pieces.lock();
        let known = pieces.entry(location.clone()).or_default();
        known.retain(|piece| piece.strong_count() > 0);
        let mut kept: Vec<Arc<Piece>> = Vec::new();
        let mut absent = Vec::with_capacity(ranges.len());
        for range in ranges.iter().filter(|range| !range.is_empty()) {
            match holding(known, range) {
                Some(piece) => kept.push(piece),
                None => absent.push(range.clone()),
            }
        }
        let nothing_to_do = absent.is_empty();
        for span in coalesced(&absent) {
            let Some(room) = self.take(span.end - span.start) else { break };
            let piece = Arc::new(Piece { range: span.clone(), bytes: reading(file, span), _room: room });
            known.push(Arc::downgrade(&piece));
            kept.push(piece);
        }
        (nothing_to_do || !kept.is_empty()).then_some(kept)
    }

    fn take(&self, bytes: u64) -> Option<[OwnedSemaphorePermit; 2]> {
        let units = u32::try_from(bytes.div_ceil(UNIT)).ok()?;
        let own = self.own.clone().try_acquire_many_owned(units).ok()?;
        Some([own, self.all.clone().try_acquire_many_owned(units).ok()?])
    }

    /// `range` of the file at `location`, if it was asked for: `None` of the future = it failed.
    pub(crate) fn find(
        &self,
        location: &Path,
        range: &Range<u64>,
    ) -> Option<impl Future<Output = Option<Bytes>> + use<>> {
        let piece = holding(self.pieces.lock().get(location)?, range)?;
        let range = range.clone();
        // The piece stays until its bytes were taken, though who asked for it may be gone.
        Some(async move { piece.bytes.clone().await.map(|bytes| part(&bytes, piece.range.start, &range)) })
    }
}

fn holding(pieces: &[Weak<Piece>], range: &Range<u64>) -> Option<Arc<Piece>> {
    let live = pieces.iter().filter_map(Weak::upgrade);
    live.into_iter().find(|piece| piece.range.start <= range.start && range.end <= piece.range.end)
}

/// Begins to read `span` at once, whoever waits for it.
fn reading(file: &RemoteFile, span: Range<u64>) -> Shared<BoxFuture<'static, Option<Bytes>>> {
    let reader = file.clone();
    let read = async move { long(span, &|range| reader.fetch(range)).await };
    AbortOnDropHandle::new(file.io().spawn(read)).map_ok_or_else(|_| None, Result::ok).boxed().shared()
}
