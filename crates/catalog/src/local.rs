//! Ranges of a local file, read in one go.
//!
//! What the kernel holds is read where it is asked for: copying takes less time than another thread takes to wake up, and
//! leaves the bytes in the caches of the processor that decodes them. Only what has to come from the disk is waited for
//! elsewhere.

use std::fs::File;
use std::io::{self, IoSliceMut, Read, Seek, SeekFrom};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use rustix::io::{Errno, ReadWriteFlags, preadv2};
use tokio::runtime::Handle;

use crate::files::local_entry;
use crate::pinned::{PinnedFile, changed, local_error, local_path};
use crate::stores::Backend;

/// Bytes that are copied at once: those that are made ready for it are still in the processor's caches.
const CHUNK: usize = 256 << 10;
/// Bytes after which others have their turn: some milliseconds.
const TURN: u64 = 8 << 20;

/// The bytes of each of `ranges`, which are inside of the file, each in a place of its own: what is decoded first can go
/// first, and nothing is copied twice. Then the file is compared with the one that was pinned.
///
/// # Errors
/// As for a file that is read in pieces.
pub(crate) async fn read_ranges(
    io: &Handle,
    table: &Arc<str>,
    file: &Arc<PinnedFile>,
    ranges: &[Range<u64>],
) -> object_store::Result<Vec<Bytes>> {
    let mut bytes = held(file, ranges).await;
    let others = &ranges[bytes.len()..];
    if !others.is_empty() {
        bytes.extend(waited_for(io, table, file, others).await?);
    }
    Ok(bytes)
}

async fn waited_for(
    io: &Handle,
    table: &Arc<str>,
    file: &Arc<PinnedFile>,
    ranges: &[Range<u64>],
) -> object_store::Result<Vec<Bytes>> {
    let (table, file, ranges) = (table.clone(), file.clone(), ranges.to_vec());
    let read = io.spawn_blocking(move || {
        let read = || {
            let mut handle = File::open(local_path(&file))?;
            let bytes = ranges.iter().map(|range| piece(&mut handle, range)).collect::<io::Result<Vec<_>>>()?;
            Ok((bytes, is_pinned(&file, &handle)?))
        };
        let (bytes, is_pinned): (Vec<Bytes>, _) = read().map_err(|e| local_error(&table, &file, e))?;
        let is_whole = |(range, bytes): (&Range<u64>, &Bytes)| bytes.len() as u64 == range.end - range.start;
        match is_pinned && ranges.iter().zip(&bytes).all(is_whole) {
            true => Ok(bytes),
            false => Err(changed(&table, &file)),
        }
    });
    read.await.map_err(|source| object_store::Error::JoinError { source })?
}

/// The bytes of the first of `ranges`: of as many as the kernel holds without a gap. Of none, if something is wrong with
/// the file: a read that waits will say what.
pub(crate) async fn held(file: &PinnedFile, ranges: &[Range<u64>]) -> Vec<Bytes> {
    let Backend::Local { mute, .. } = &file.root.backend else { return Vec::new() };
    if mute.load(Ordering::Relaxed) {
        return Vec::new();
    }
    let Ok(handle) = File::open(local_path(file)) else { return Vec::new() };
    let (mut all, mut turn) = (Vec::with_capacity(ranges.len()), 0);
    for range in ranges {
        match held_piece(&handle, range) {
            Ok(bytes) => all.push(bytes),
            Err(error) => {
                mute.fetch_or(error == Errno::OPNOTSUPP, Ordering::Relaxed);
                break;
            }
        }
        turn += range.end - range.start;
        if turn >= TURN {
            turn = 0;
            tokio::task::yield_now().await;
        }
    }
    if !is_pinned(file, &handle).is_ok_and(|is_pinned| is_pinned) {
        all.clear();
    }
    all
}

/// `AGAIN` = it would have to wait.
fn held_piece(file: &File, range: &Range<u64>) -> Result<Bytes, Errno> {
    let len = usize::try_from(range.end - range.start).map_err(|_| Errno::OVERFLOW)?;
    let mut bytes: Vec<u8> = Vec::with_capacity(len);
    while bytes.len() < len {
        let at = bytes.len();
        bytes.resize(len.min(at + CHUNK), 0);
        let place = &mut [IoSliceMut::new(&mut bytes[at..])];
        match preadv2(file, place, range.start + at as u64, ReadWriteFlags::NOWAIT) {
            // The file is shorter than it was.
            Ok(0) => return Err(Errno::AGAIN),
            Ok(read) => bytes.truncate(at + read),
            Err(Errno::INTR) => bytes.truncate(at),
            Err(error) => return Err(error),
        }
    }
    Ok(bytes.into())
}

/// Whether the open file is still the one that was pinned.
fn is_pinned(file: &PinnedFile, handle: &File) -> io::Result<bool> {
    Ok(local_entry(file.id.entry.rel.clone(), &handle.metadata()?)? == file.id.entry)
}

fn piece(file: &mut File, range: &Range<u64>) -> io::Result<Bytes> {
    let len = range.end - range.start;
    let mut bytes = Vec::with_capacity(usize::try_from(len).unwrap_or_default());
    file.seek(SeekFrom::Start(range.start))?;
    file.take(len).read_to_end(&mut bytes)?;
    Ok(bytes.into())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;
    use crate::pinned::FileId;
    use crate::stores::Root;

    #[tokio::test]
    async fn what_the_kernel_holds_is_what_the_disk_has_and_a_file_that_changed_is_neither() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a");
        let content: Vec<u8> = (0..3 * CHUNK as u32 + 5).map(|at| (at.wrapping_mul(0x9E37_79B9) >> 24) as u8).collect();
        std::fs::write(&path, &content).expect("written");
        let entry = local_entry(String::new(), &path.metadata().expect("metadata")).expect("an entry");
        let root = Root {
            id: 1,
            location: "a".to_owned(),
            backend: Backend::Local { path: path.clone(), mute: AtomicBool::new(false) },
        };
        let file = Arc::new(PinnedFile { root: Arc::new(root), id: FileId { root: 1, entry } });
        let (io, table) = (Handle::current(), Arc::from("public.a"));
        let len = content.len() as u64;
        let ranges = [0..len, 7..8, 5..5, len - 1..len, 10..2 * CHUNK as u64 + 10];
        let expected: Vec<_> = ranges.iter().map(|range| &content[range.start as usize..range.end as usize]).collect();
        assert_eq!(waited_for(&io, &table, &file, &ranges).await.expect("bytes"), expected);
        // Not every file system says what the kernel holds.
        let bytes = held(&file, &ranges).await;
        assert_eq!(bytes, expected[..bytes.len()]);
        assert_eq!(read_ranges(&io, &table, &file, &ranges).await.expect("bytes"), expected);
        std::fs::write(&path, &content[1..]).expect("written");
        assert!(held(&file, &ranges[1..2]).await.is_empty());
        let error = read_ranges(&io, &table, &file, &ranges[1..2]).await.expect_err("another file");
        assert!(matches!(error, object_store::Error::Precondition { .. }), "{error}");
    }
}
