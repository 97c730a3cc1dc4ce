//! Spilling: where queries put what does not fit in memory, and how much of it there may be.
//!
//! Each query has a [`QuerySpill`] of its own, which its runtime's disk manager makes files with. DataFusion's
//! own disk manager has one limit for everybody, keeps every file open, and believes what it reads back.
//!
//! | module | its story |
//! |---|---|
//! | `folders` | the directories, and the sweep at start |
//! | `quota` | a number of bytes that may be in use |
//! | `file` | one file: written and read in blocks with a checksum |
//! | `error` | what can go wrong, as it travels through Arrow and DataFusion |
//!
//! Nothing outlives its query: a file is removed when its last user drops it, and the query's folder with the
//! last file.

mod error;
mod file;
mod folders;
mod quota;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytesize::ByteSize;
use datafusion::common::Result;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::{SpillFile, TempFileFactory};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use self::file::File;
use self::folders::SpillFolders;
use self::quota::Quota;
use crate::config::Config;
use crate::error::Error;
use crate::query::QueryId;

pub(crate) use self::error::SpillError;

/// What all queries spill into. One for the process.
#[derive(Debug)]
pub(crate) struct Spill {
    folders: SpillFolders,
    total: Quota,
    query_limit: u64,
    /// Numbers the folders of queries: the same query may run twice at a time.
    runs: AtomicU64,
}

impl Spill {
    /// Makes the process's folders and removes what processes that are gone have left.
    ///
    /// # Errors
    /// `Invalid`, naming the directory that cannot be used.
    pub(crate) fn new(config: &Config) -> Result<Arc<Self>, Error> {
        let total = config.spill_limit.0;
        Ok(Arc::new(Self {
            folders: SpillFolders::claim(&config.spill_directories)?,
            total: Quota::new(total),
            query_limit: config.query_spill_limit.map_or(total, |limit| limit.0.min(total)),
            runs: AtomicU64::new(0),
        }))
    }

    /// What one run of a query spills into, until `cancel` says so. Nothing is made on disk before its first file.
    pub(crate) fn query(self: &Arc<Self>, id: QueryId, cancel: &CancellationToken) -> QuerySpill {
        let run = self.runs.fetch_add(1, Ordering::Relaxed);
        QuerySpill(Arc::new(Query {
            shared: Arc::clone(self),
            name: format!("{id}.{run}"),
            quota: Quota::new(self.query_limit),
            cancel: cancel.clone(),
            files: AtomicU64::new(0),
            written: AtomicU64::new(0),
            made: Mutex::new(vec![false; self.folders.claims().len()]),
        }))
    }

    /// Bytes that queries have spilled and not yet removed.
    pub(crate) fn used(&self) -> u64 {
        self.total.used()
    }

    /// Removes all that was spilled, for a process that exits: nothing may run after it.
    pub(crate) fn remove(&self) {
        self.folders.remove();
    }
}

/// What one run of a query spills into. Clones are the same one.
#[derive(Debug, Clone)]
pub(crate) struct QuerySpill(Arc<Query>);

#[derive(Debug)]
struct Query {
    shared: Arc<Spill>,
    /// Of its folder in each directory.
    name: String,
    quota: Quota,
    cancel: CancellationToken,
    files: AtomicU64,
    /// Over all files, those that are removed already included.
    written: AtomicU64,
    /// In which directories its folder is.
    made: Mutex<Vec<bool>>,
}

impl QuerySpill {
    /// For the runtime of this query.
    pub(crate) fn disk_manager(&self) -> DiskManagerBuilder {
        let builder = DiskManagerBuilder::default();
        if self.0.quota.limit() == 0 {
            // Operators then fail for memory, instead of by a write that is refused.
            return builder.with_mode(DiskManagerMode::Disabled);
        }
        builder.with_temp_file_factory(Arc::new(self.clone()))
    }

    /// Bytes written so far.
    pub(crate) fn bytes_written(&self) -> u64 {
        self.0.written.load(Ordering::Relaxed)
    }

    /// Files made so far.
    pub(crate) fn files(&self) -> u64 {
        self.0.files.load(Ordering::Relaxed)
    }

    /// The most bytes that were there at a time.
    pub(crate) fn peak(&self) -> u64 {
        self.0.quota.peak()
    }

    /// Takes room for `bytes` more. A query may write for seconds within one poll, so this is where it sees that it was
    /// cancelled.
    fn take(&self, bytes: u64) -> Result<(), SpillError> {
        let Query { quota, cancel, shared, written, .. } = self.0.as_ref();
        if cancel.is_cancelled() {
            return Err(SpillError::Cancelled);
        }
        if !quota.take(bytes) {
            return Err(SpillError::QueryLimit(ByteSize(quota.limit())));
        }
        if !shared.total.take(bytes) {
            quota.give_back(bytes);
            return Err(SpillError::Limit(ByteSize(shared.total.limit())));
        }
        written.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    /// Gives back the room of what is no longer there.
    fn give_back(&self, bytes: u64) {
        self.0.quota.give_back(bytes);
        self.0.shared.total.give_back(bytes);
    }

    /// A new file in the directory `index`.
    fn create_in(&self, index: usize) -> Result<File, SpillError> {
        let claim = &self.0.shared.folders.claims()[index];
        let folder = claim.folder.join(&self.0.name);
        {
            let mut made = self.0.made.lock();
            if !made[index] {
                folders::make_private(&folder)
                    .map_err(|error| SpillError::of_io("make a folder for", &claim.directory, error))?;
                made[index] = true;
            }
        }
        let number = self.0.files.fetch_add(1, Ordering::Relaxed);
        File::create(self.clone(), index, folder.join(number.to_string()))
    }

    /// The directory `index` as the operator named it.
    fn directory(&self, index: usize) -> &Path {
        &self.0.shared.folders.claims()[index].directory
    }
}

impl TempFileFactory for QuerySpill {
    fn create_temp_file(&self, _description: &str) -> Result<Arc<dyn SpillFile>> {
        let mut failed = None;
        for index in self.0.shared.folders.order() {
            match self.create_in(index) {
                Ok(file) => return Ok(Arc::new(file)),
                // Another directory may have room.
                Err(error) => failed = Some(error),
            }
        }
        let error = failed.expect("there is at least one directory");
        Err(std::io::Error::from(error).into())
    }
}

impl Drop for Query {
    fn drop(&mut self) {
        let made = std::mem::take(self.made.get_mut());
        let claims = self.shared.folders.claims().iter().zip(made).filter(|(_, made)| *made);
        for folder in claims.map(|(claim, _)| claim.folder.join(&self.name)) {
            remove(fs::remove_dir(&folder), &folder);
        }
    }
}

/// What could not be removed is left to the sweep at the next start.
fn remove(removed: std::io::Result<()>, path: &Path) {
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            warn!(path = %path.display(), %error, "cannot remove spilled data");
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests;
