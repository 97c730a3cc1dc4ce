//! Where queries spill, and how what a killed process left there is found and removed.
//!
//! Each process has a folder of its own in every spill directory, and beside it a lock file that it holds
//! locked. The kernel lets go of the lock however the process ends, so a lock that can be taken means a
//! folder that nobody uses. Process ids would not do: containers that share a volume may all have id 1.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use tracing::{info, warn};
use uuid::Uuid;

use crate::error::Error;

const PREFIX: &str = "updraft-spill-";
const LOCK: &str = "lock";

/// The folders this process spills into. They are removed with it.
#[derive(Debug)]
pub(crate) struct SpillFolders {
    claims: Vec<Claim>,
}

#[derive(Debug)]
struct Claim {
    folder: PathBuf,
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
        Ok(Self { claims: directories.iter().map(claim).collect::<Result<_, _>>()? })
    }

    /// The folders, for DataFusion's disk manager.
    pub(crate) fn paths(&self) -> Vec<PathBuf> {
        self.claims.iter().map(|claim| claim.folder.clone()).collect()
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
    let name = format!("{PREFIX}{}", Uuid::now_v7().simple());
    let lock = directory.join(&name).with_extension(LOCK);
    let held = File::create_new(&lock)?;
    held.lock()?;
    let folder = directory.join(name);
    make_private(&folder)?;
    Ok(Claim { folder, lock, _held: held })
}

/// Spilled rows are nobody else's business.
fn make_private(folder: &Path) -> io::Result<()> {
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
        assert!(first.paths()[0].is_dir() && second.paths()[0].is_dir(), "the first is in use");
        drop(first);
        drop(second);
        assert_eq!(names(&spill), 1, "only what is not ours");
    }

    #[test]
    fn a_directory_that_cannot_be_used_is_named() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let error = SpillFolders::claim(&[file.path().join("below")]).expect_err("a file has no folders");
        assert!(error.to_string().contains(&file.path().display().to_string()), "{error}");
    }
}
