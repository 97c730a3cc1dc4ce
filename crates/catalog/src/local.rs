//! Ranges of a local file, read in one go.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use tokio::runtime::Handle;

use crate::files::local_entry;
use crate::pinned::{PinnedFile, changed, local_error, local_path};

/// The bytes of each of `ranges`, which are inside of the file, each in a place of its own: what is decoded first can go first, and nothing is copied twice.
/// Then the file is compared with the one that was pinned.
///
/// # Errors
/// As for a file that is read in pieces.
pub(crate) async fn read_ranges(
    io: &Handle,
    table: Arc<str>,
    file: &Arc<PinnedFile>,
    ranges: &[Range<u64>],
) -> object_store::Result<Vec<Bytes>> {
    let (file, ranges) = (file.clone(), ranges.to_vec());
    let read = io.spawn_blocking(move || {
        let read = || {
            let mut handle = File::open(local_path(&file))?;
            let bytes = ranges.iter().map(|range| piece(&mut handle, range)).collect::<io::Result<Vec<_>>>()?;
            Ok((bytes, local_entry(file.id.entry.rel.clone(), &handle.metadata()?)?))
        };
        let (bytes, now): (Vec<Bytes>, _) = read().map_err(|e| local_error(&table, &file, e))?;
        let is_whole = |(range, bytes): (&Range<u64>, &Bytes)| bytes.len() as u64 == range.end - range.start;
        match now == file.id.entry && ranges.iter().zip(&bytes).all(is_whole) {
            true => Ok(bytes),
            false => Err(changed(&table, &file)),
        }
    });
    read.await.map_err(|source| object_store::Error::JoinError { source })?
}

fn piece(file: &mut File, range: &Range<u64>) -> io::Result<Bytes> {
    let len = range.end - range.start;
    let mut bytes = Vec::with_capacity(usize::try_from(len).unwrap_or_default());
    file.seek(SeekFrom::Start(range.start))?;
    file.take(len).read_to_end(&mut bytes)?;
    Ok(bytes.into())
}
