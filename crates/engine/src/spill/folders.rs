//! The folders of a process in the spill directories, and how what a killed process left there is removed.
//!
//! Each process has a folder of its own in every spill directory, and beside it a lock file that it holds
//! locked. The kernel lets go of the lock however the process ends, so a lock that can be taken means a
//! folder that nobody uses. Process ids would not do: containers that share a volume may all have id 1.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use tracing::{info, warn};
use uuid::Uuid;

use crate::error::Error;

const PREFIX: &str = "updraft-spill-";
const LOCK: &str = "lock";

/// What `statfs` calls a file system that lives in memory: `TMPFS_MAGIC` of Linux' `magic.h`.
const TMPFS: u64 = 0x0102_1994;

/// The folders this process spills into. They are removed with it.
#[derive(Debug)]
pub(crate) struct SpillFolders {
    claims: Vec<Claim>,
    /// Which directory has the next turn.
    turn: AtomicUsize,
}

/// One folder of this process.
#[derive(Debug)]
pub(super) struct Claim {
    /// As the operator named it.
    pub(super) directory: PathBuf,
    pub(super) folder: PathBuf,
    lock: PathBuf,
    /// Locked for as long as it is open.
    _held: File,
}

impl SpillFolders {
    /// Makes a folder in each of `directories`, or in the system's for temporary files when there are none,
    /// and removes what processes that are gone have left in them.
    ///
    /// # Errors
    /// `Invalid`, naming the directory that cannot be used.
    pub(crate) fn claim(directories: &[PathBuf]) -> Result<Self, Error> {
        let system = [std::env::temp_dir()];
        let directories = if directories.is_empty() { &system } else { directories };
        let claim = |directory: &PathBuf| {
            claim_in(directory).map_err(|error| {
                Error::Invalid(format!("engine.spill_directories: cannot use {}: {error}", directory.display()))
            })
        };
        let claims = directories.iter().map(claim).collect::<Result<_, _>>()?;
        Ok(Self { claims, turn: AtomicUsize::new(0) })
    }

    /// The folder of each directory.
    pub(super) fn claims(&self) -> &[Claim] {
        &self.claims
    }

    /// The order in which to try the directories for a new file, as indices of [`Self::claims`].
    ///
    /// Those with at least half the room of the roomiest take turns, so that all disks work; then the others,
    /// the roomiest first. A disk that fills up so leaves the rotation before it is full.
    pub(super) fn order(&self) -> Vec<usize> {
        if self.claims.len() == 1 {
            return vec![0];
        }
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let room: Vec<u64> = self.claims.iter().map(|claim| free_bytes(&claim.folder)).collect();
        let enough = room.iter().max().map_or(0, |most| most / 2);
        let (mut order, mut rest): (Vec<usize>, Vec<usize>) = (0..room.len()).partition(|index| room[*index] >= enough);
        let first = turn % order.len().max(1);
        order.rotate_left(first);
        rest.sort_by_key(|index| std::cmp::Reverse(room[*index]));
        order.append(&mut rest);
        order
    }

    /// Removes the folders with all that is in them. Also done on drop; a process that exits calls it.
    pub(crate) fn remove(&self) {
        for claim in &self.claims {
            remove(&claim.folder, &claim.lock);
        }
    }
}

impl Drop for SpillFolders {
    fn drop(&mut self) {
        self.remove();
    }
}

fn claim_in(directory: &Path) -> io::Result<Claim> {
    fs::create_dir_all(directory)?;
    sweep(directory)?;
    if rustix::fs::statfs(directory).is_ok_and(|system| u64::try_from(system.f_type) == Ok(TMPFS)) {
        warn!(
            directory = %directory.display(),
            "spilling into memory: this is a tmpfs; set engine.spill_directories to folders on a disk"
        );
    }
    let (name, lock, held) = loop {
        let name = format!("{PREFIX}{}", Uuid::now_v7().simple());
        let lock = directory.join(&name).with_extension(LOCK);
        let held = File::create_new(&lock)?;
        held.lock()?;
        // A server that starts at the same time may have found it before it was locked, and removed it.
        if lock.try_exists()? {
            break (name, lock, held);
        }
    };
    let folder = directory.join(name);
    make_private(&folder)?;
    Ok(Claim { directory: directory.to_owned(), folder, lock, _held: held })
}

/// Bytes a user without privileges may still write there; none when that cannot be told.
fn free_bytes(folder: &Path) -> u64 {
    rustix::fs::statvfs(folder).map_or(0, |system| system.f_bavail.saturating_mul(system.f_frsize))
}

/// Spilled rows are nobody else's business.
pub(super) fn make_private(folder: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().mode(0o700).create(folder)
}

fn sweep(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if !name.starts_with(PREFIX) || path.extension().is_none_or(|extension| extension != LOCK) {
            continue;
        }
        // One that cannot be opened is another user's, and not ours to remove.
        let Ok(lock) = File::open(&path) else { continue };
        match lock.try_lock() {
            Ok(()) => {
                info!(folder = %path.with_extension("").display(), "removing what a process that is gone had spilled");
                remove(&path.with_extension(""), &path);
            }
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => {
                warn!(file = %path.display(), %error, "cannot tell whether it is in use")
            }
        }
    }
    Ok(())
}

fn remove(folder: &Path, lock: &Path) {
    // The lock goes last: while it is there, the next start tries again.
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            warn!(folder = %folder.display(), %error, "cannot remove spilled data");
        }
        _ => drop(fs::remove_file(lock)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> usize {
        fs::read_dir(directory).expect("it is there").count()
    }

    #[test]
    fn what_a_killed_process_left_is_removed_and_what_is_in_use_is_not() {
        let directory = tempfile::tempdir().expect("a folder");
        let spill = directory.path().join("spill");
        let dead = spill.join(format!("{PREFIX}dead"));
        fs::create_dir_all(dead.join("datafusion-x")).expect("a folder");
        fs::write(dead.join("datafusion-x/file"), "rows").expect("a file");
        fs::write(dead.with_extension(LOCK), "").expect("a file");
        fs::write(spill.join("other"), "not ours").expect("a file");

        let first = SpillFolders::claim(std::slice::from_ref(&spill)).expect("the directory can be used");
        assert!(!dead.exists());
        assert_eq!(names(&spill), 3, "our folder, its lock, and what is not ours");
        let second = SpillFolders::claim(std::slice::from_ref(&spill)).expect("the directory can be used");
        assert!(first.claims[0].folder.is_dir() && second.claims[0].folder.is_dir(), "the first is in use");
        drop(first);
        drop(second);
        assert_eq!(names(&spill), 1, "only what is not ours");
    }

    #[test]
    fn directories_with_room_take_turns() {
        let parent = tempfile::tempdir().expect("a folder");
        let directories = ["a", "b"].map(|name| parent.path().join(name));
        let folders = SpillFolders::claim(&directories).expect("the directories can be used");
        assert_eq!((folders.order(), folders.order(), folders.order()), (vec![0, 1], vec![1, 0], vec![0, 1]));
        fs::remove_dir(&folders.claims[0].folder).expect("it is empty");
        assert_eq!((folders.order(), folders.order()), (vec![1, 0], vec![1, 0]), "one that is gone has no room");
    }

    #[test]
    fn a_directory_that_cannot_be_used_is_named() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let error = SpillFolders::claim(&[file.path().join("below")]).expect_err("a file has no folders");
        assert!(error.to_string().contains(&file.path().display().to_string()), "{error}");
    }
}
