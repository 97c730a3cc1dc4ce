//! One spilled file: written and read in blocks, each with a checksum that stays in memory.
//!
//! DataFusion decodes what it has spilled without any check, so a flipped bit would be a wrong answer, or
//! worse; and a file cut between two batches would be a short one. Checksums and lengths are kept in memory,
//! 8 bytes for 128 KiB: on disk they could be damaged, or old, together with the data.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use datafusion::common::Result;
use datafusion::error::DataFusionError;
use datafusion::execution::{SpillFile, SpillWriter};
use futures::{Stream, stream};
use parking_lot::Mutex;

use super::{QuerySpill, SpillError, remove};

/// The most that one write or read moves, and what a writer and a reader hold in memory. DataFusion's own
/// reader takes as much; less means more trips to the blocking threads.
const BLOCK: usize = 128 << 10;

/// A file of one query. It is open only while it is written or read: a sort may have thousands of them.
pub(super) struct File(Arc<Shared>);

struct Shared {
    query: QuerySpill,
    /// Which directory it is in.
    directory: usize,
    path: PathBuf,
    written: Mutex<Written>,
}

/// What of the file is there to be read. It may be read while it is being written.
#[derive(Default)]
struct Written {
    blocks: Vec<Block>,
    bytes: u64,
    finished: bool,
}

#[derive(Clone, Copy)]
struct Block {
    bytes: u32,
    checksum: u32,
}

impl File {
    pub(super) fn create(query: QuerySpill, directory: usize, path: PathBuf) -> Result<Self, SpillError> {
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(|error| SpillError::of_io("create a file for", query.directory(directory), error))?;
        Ok(Self(Arc::new(Shared { query, directory, path, written: Mutex::default() })))
    }
}

impl SpillFile for File {
    fn size(&self) -> Option<u64> {
        Some(self.0.written.lock().bytes)
    }

    fn read_stream(&self) -> Result<Pin<Box<dyn Stream<Item = Result<Bytes>> + Send>>> {
        let reader = Reader { shared: Arc::clone(&self.0), file: None, block: 0, offset: 0 };
        Ok(Box::pin(stream::try_unfold(reader, |mut reader| async move {
            // Reads may wait for a disk, and the threads that run queries must not.
            let read = tokio::task::spawn_blocking(move || Ok(reader.read()?.map(|bytes| (bytes, reader))));
            read.await.map_err(|error| DataFusionError::External(Box::new(error)))?
        })))
    }

    fn open_writer(&self) -> Result<Box<dyn SpillWriter>> {
        let shared = Arc::clone(&self.0);
        let file = OpenOptions::new().write(true).open(&shared.path).map_err(|error| shared.failed("write", error))?;
        Ok(Box::new(Writer { shared, file, block: Vec::new() }))
    }
}

impl Shared {
    fn failed(&self, step: &'static str, error: io::Error) -> io::Error {
        SpillError::of_io(step, self.query.directory(self.directory), error).into()
    }

    fn damaged(&self, what: &'static str) -> io::Error {
        SpillError::Damaged { directory: self.query.directory(self.directory).to_owned(), what }.into()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        remove(fs::remove_file(&self.path), &self.path);
        self.query.give_back(self.written.get_mut().bytes);
    }
}

struct Writer {
    shared: Arc<Shared>,
    file: fs::File,
    /// What is not yet a whole block.
    block: Vec<u8>,
}

impl Writer {
    /// Writes one block at the end. What a failed write left there is not counted, and is written over.
    fn put(&self, bytes: &[u8]) -> io::Result<()> {
        let Shared { query, written, .. } = self.shared.as_ref();
        let block = Block {
            bytes: u32::try_from(bytes.len()).expect("a block is far below 4 GiB"),
            checksum: crc32fast::hash(bytes),
        };
        query.take(block.bytes.into())?;
        let end = written.lock().bytes;
        if let Err(error) = self.file.write_all_at(bytes, end) {
            query.give_back(block.bytes.into());
            return Err(self.shared.failed("write", error));
        }
        let mut written = written.lock();
        written.blocks.push(block);
        written.bytes = end + u64::from(block.bytes);
        Ok(())
    }

    fn put_rest(&mut self) -> io::Result<()> {
        if !self.block.is_empty() {
            self.put(&self.block)?;
            self.block.clear();
        }
        Ok(())
    }
}

impl io::Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // A batch comes in one piece and is mostly bigger than a block: no need to copy it.
        if self.block.is_empty() && bytes.len() >= BLOCK {
            self.put(&bytes[..BLOCK])?;
            return Ok(BLOCK);
        }
        let taken = bytes.len().min(BLOCK - self.block.len());
        self.block.extend_from_slice(&bytes[..taken]);
        if self.block.len() == BLOCK {
            self.put_rest()?;
        }
        Ok(taken)
    }

    /// What was written can be read after this.
    fn flush(&mut self) -> io::Result<()> {
        self.put_rest()
    }
}

impl SpillWriter for Writer {
    fn finish(&mut self) -> Result<()> {
        self.put_rest()?;
        self.block = Vec::new();
        self.shared.written.lock().finished = true;
        Ok(())
    }
}

struct Reader {
    shared: Arc<Shared>,
    file: Option<fs::File>,
    /// The next block, and where it starts.
    block: usize,
    offset: u64,
}

impl Reader {
    /// The next blocks, as many as fit in a read; `None` at the end.
    fn read(&mut self) -> Result<Option<Bytes>> {
        let blocks = self.next_blocks()?;
        if blocks.is_empty() {
            return Ok(None);
        }
        let shared = &self.shared;
        let file = match &mut self.file {
            Some(file) => file,
            closed => closed.insert(fs::File::open(&shared.path).map_err(|error| shared.failed("read", error))?),
        };
        let mut bytes = vec![0; blocks.iter().map(|block| block.bytes as usize).sum()];
        file.read_exact_at(&mut bytes, self.offset).map_err(|error| shared.failed("read", error))?;
        let mut rest = bytes.as_slice();
        for block in &blocks {
            let (this, after) = rest.split_at(block.bytes as usize);
            if crc32fast::hash(this) != block.checksum {
                return Err(shared.damaged("a checksum is wrong").into());
            }
            rest = after;
        }
        self.block += blocks.len();
        self.offset += bytes.len() as u64;
        Ok(Some(bytes.into()))
    }

    fn next_blocks(&self) -> Result<Vec<Block>> {
        let written = self.shared.written.lock();
        let mut room = BLOCK;
        let fits = |block: &&Block| {
            let fits = block.bytes as usize <= room;
            room = room.saturating_sub(block.bytes as usize);
            fits
        };
        let blocks: Vec<Block> = written.blocks[self.block..].iter().take_while(fits).copied().collect();
        if blocks.is_empty() && !written.finished {
            // Nobody asks for what is still to be written, so the writer has given up.
            return Err(self.shared.damaged("a file was never finished").into());
        }
        Ok(blocks)
    }
}
