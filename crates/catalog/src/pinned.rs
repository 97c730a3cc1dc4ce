//! A store that serves exactly the files a snapshot has pinned, as they were.
//!
//! Every read asks for the pinned version: remote stores get `If-Match` (or `If-Unmodified-Since`), and what they answer is
//! compared again, because some ignore the condition; a local file is compared, by its open handle, after each piece that
//! was read. A file that was replaced, rewritten in place or removed is [`Error::Changed`], never other rows.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::sync::{Arc, Weak};

use async_trait::async_trait;
use bytes::Bytes;
use datafusion::error::{DataFusionError, Result as DfResult};
use datafusion::execution::object_store::{ObjectStoreRegistry, ObjectStoreUrl};
use futures::future::{join, join_all};
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use object_store::path::Path;
use object_store::{
    Attributes, CopyOptions, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult,
};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use url::Url;

use crate::ahead::{Ahead, Piece, Room};
use crate::error::{Error, is_ours};
use crate::files::{Entry, local_entry};
use crate::local::{held, read_ranges};
use crate::remote::RemoteFile;
use crate::stores::{Backend, Root};

/// Bytes of a file that are handed on at once: large enough for a column chunk, small enough to keep many of them.
pub(crate) const PIECE: u64 = 4 << 20;

/// Identity of a file: equal ids hold equal bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct FileId {
    pub(crate) root: u32,
    pub(crate) entry: Entry,
}

/// A file of a snapshot.
#[derive(Debug)]
pub(crate) struct PinnedFile {
    pub(crate) root: Arc<Root>,
    pub(crate) id: FileId,
}

impl PinnedFile {
    /// Where the file is, for messages.
    pub(crate) fn display(&self) -> String {
        self.root.display(&self.id.entry.rel)
    }

    /// Its name, without folders.
    pub(crate) fn name(&self) -> &str {
        let entry = &self.id.entry;
        if entry.rel.is_empty() { self.root.name() } else { entry.name() }
    }

    /// Whether `range` is a part of it.
    fn has(&self, range: &Range<u64>) -> bool {
        range.start <= range.end && range.end <= self.id.entry.size
    }

    /// Whether it is of an object store.
    pub(crate) fn is_remote(&self) -> bool {
        matches!(self.root.backend, Backend::Remote { .. })
    }
}

/// The files of one snapshot as an object store. Plans hold it by their readers; the registry only knows it while it lives.
#[derive(Debug)]
pub(crate) struct PinnedStore {
    table: Arc<str>,
    files: HashMap<Path, Arc<PinnedFile>>,
    ahead: Ahead,
    io: Handle,
    key: String,
    registry: Weak<Live>,
}

impl PinnedStore {
    /// Makes the store known to `registry` for as long as it lives.
    pub(crate) fn new(
        table: String,
        files: HashMap<Path, Arc<PinnedFile>>,
        io: Handle,
        room: &Room,
        registry: &Arc<Registry>,
    ) -> Arc<Self> {
        let live = &registry.live;
        let mut stores = live.stores.lock();
        stores.next += 1;
        let key = format!("s{}", stores.next);
        let store = Arc::new(Self {
            table: table.into(),
            files,
            ahead: Ahead::new(room),
            io,
            key: key.clone(),
            registry: Arc::downgrade(live),
        });
        stores.by_key.insert(key, Arc::downgrade(&store));
        store
    }

    /// The URL under which plans find the store.
    pub(crate) fn url(&self) -> DfResult<ObjectStoreUrl> {
        ObjectStoreUrl::parse(format!("{SCHEME}://{}", self.key))
    }

    /// Table, for messages.
    pub(crate) fn table(&self) -> &str {
        &self.table
    }

    pub(crate) fn file(&self, location: &Path) -> object_store::Result<&Arc<PinnedFile>> {
        self.files.get(location).ok_or_else(|| object_store::Error::NotFound {
            path: location.to_string(),
            source: "not a file of this snapshot".into(),
        })
    }

    /// Where the file is, for messages.
    pub(crate) fn display(&self, location: &Path) -> String {
        self.files.get(location).map_or_else(|| location.to_string(), |file| file.display())
    }

    /// What goes wrong in reading the file at `location`, with its name; errors of this crate have said what to say.
    pub(crate) fn named(&self, location: &Path, error: DataFusionError) -> DataFusionError {
        if is_ours(&error) {
            return error;
        }
        Error::reading(&self.table, &self.display(location), String::new(), error).into()
    }

    /// The way to read `file`, if it is one of an object store.
    fn remote(&self, file: &Arc<PinnedFile>) -> Option<RemoteFile> {
        RemoteFile::new(&self.table, file, &self.io)
    }

    /// Asks for `ranges` of the file at `location` before they are needed; they stay until what this returns is dropped.
    /// `None` = they are not read ahead: the file is local, or there is no room.
    pub(crate) fn read_ahead(&self, location: &Path, ranges: &[Range<u64>]) -> Option<Vec<Arc<Piece>>> {
        let file = self.files.get(location)?;
        let remote = self.remote(file)?;
        ranges.iter().all(|range| file.has(range)).then(|| self.ahead.ask(location, &remote, ranges))?
    }

    /// The bytes of each of `ranges`: those read ahead, and the others.
    async fn read_remote(
        &self,
        location: &Path,
        file: &RemoteFile,
        ranges: &[Range<u64>],
    ) -> object_store::Result<Vec<Bytes>> {
        let mut got: Vec<Bytes> = vec![Bytes::new(); ranges.len()];
        let (mut coming, mut absent) = (Vec::new(), Vec::new());
        for (at, range) in ranges.iter().enumerate() {
            match self.ahead.find(location, range) {
                Some(bytes) => coming.push(bytes.map(move |bytes| (at, bytes))),
                None => absent.push(at),
            }
        }
        let (come, read) = join(join_all(coming), read_some(file, ranges, &absent)).await;
        let mut failed = Vec::new();
        for (at, bytes) in come {
            match bytes {
                Some(bytes) => got[at] = bytes,
                None => failed.push(at),
            }
        }
        // Now it matters, and its error is told.
        let again = read_some(file, ranges, &failed).await?;
        for (at, bytes) in absent.into_iter().zip(read?).chain(failed.into_iter().zip(again)) {
            got[at] = bytes;
        }
        Ok(got)
    }

    async fn get_local(&self, file: &Arc<PinnedFile>, range: Range<u64>) -> object_store::Result<GetResultPayload> {
        if range.end - range.start <= PIECE
            && let Some(bytes) = held(file, std::slice::from_ref(&range)).await.pop()
        {
            return Ok(GetResultPayload::Stream(futures::stream::once(async { Ok(bytes) }).boxed()));
        }
        let reading = Reading { file: file.clone(), table: self.table.clone(), at: range.start, end: range.end };
        // The first piece is read at once, so that a file that is gone fails here and not in the stream.
        let (first, rest) = self.piece(reading, None).await?;
        let io = self.io.clone();
        let rest = futures::stream::try_unfold(rest, move |state| {
            let io = io.clone();
            async move {
                let Some((reading, handle)) = state else { return Ok(None) };
                let (bytes, next) = spawn_piece(&io, reading, Some(handle)).await?;
                Ok(Some((bytes, next)))
            }
        });
        let stream = futures::stream::once(async move { Ok(first) }).chain(rest);
        Ok(GetResultPayload::Stream(stream.boxed()))
    }

    async fn piece(&self, reading: Reading, handle: Option<File>) -> object_store::Result<(Bytes, Rest)> {
        spawn_piece(&self.io, reading, handle).await
    }
}

/// What is still to be read of a local file.
struct Reading {
    file: Arc<PinnedFile>,
    table: Arc<str>,
    at: u64,
    end: u64,
}

type Rest = Option<(Reading, File)>;

async fn spawn_piece(io: &Handle, reading: Reading, handle: Option<File>) -> object_store::Result<(Bytes, Rest)> {
    let done = io.spawn_blocking(move || read_piece(reading, handle)).await;
    done.map_err(|source| object_store::Error::JoinError { source })?
}

fn read_piece(mut reading: Reading, handle: Option<File>) -> object_store::Result<(Bytes, Rest)> {
    let read = || -> io::Result<(Bytes, File, Entry)> {
        let mut handle = match handle {
            Some(handle) => handle,
            None => {
                let mut handle = File::open(local_path(&reading.file))?;
                handle.seek(SeekFrom::Start(reading.at))?;
                handle
            }
        };
        let wanted = (reading.end - reading.at).min(PIECE);
        let mut bytes = Vec::with_capacity(usize::try_from(wanted).unwrap_or_default());
        (&mut handle).take(wanted).read_to_end(&mut bytes)?;
        let now = local_entry(reading.file.id.entry.rel.clone(), &handle.metadata()?)?;
        Ok((bytes.into(), handle, now))
    };
    let (bytes, handle, now) = match read() {
        Ok(done) => done,
        Err(e) => return Err(local_error(&reading.table, &reading.file, e)),
    };
    let short = (bytes.len() as u64) < (reading.end - reading.at).min(PIECE);
    // A chmod changes the identity too: an error too many there, but no rewritten file slips through.
    if now != reading.file.id.entry || short {
        return Err(changed(&reading.table, &reading.file));
    }
    reading.at += bytes.len() as u64;
    let rest = (reading.at < reading.end).then_some((reading, handle));
    Ok((bytes, rest))
}

pub(crate) fn local_path(file: &PinnedFile) -> std::path::PathBuf {
    match &file.root.backend {
        Backend::Local { path, .. } if file.id.entry.rel.is_empty() => path.clone(),
        Backend::Local { path, .. } => path.join(&file.id.entry.rel),
        Backend::Remote { .. } => std::path::PathBuf::new(),
    }
}

pub(crate) fn local_error(table: &str, file: &PinnedFile, source: io::Error) -> object_store::Error {
    let path = file.display();
    match source.kind() {
        io::ErrorKind::NotFound => changed(table, file),
        io::ErrorKind::PermissionDenied => object_store::Error::PermissionDenied { path, source: source.into() },
        _ => object_store::Error::Generic { store: "local disk", source: source.into() },
    }
}

pub(crate) fn changed(table: &str, file: &PinnedFile) -> object_store::Error {
    let path = file.display();
    let source = Error::Changed { table: table.to_owned(), file: path.clone() };
    object_store::Error::Precondition { path, source: Box::new(source) }
}

fn read_only() -> object_store::Error {
    object_store::Error::NotSupported { source: "tables of the catalog are read only".into() }
}

impl std::fmt::Display for PinnedStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PinnedStore({}, {} files)", self.table, self.files.len())
    }
}

impl Drop for PinnedStore {
    fn drop(&mut self) {
        if let Some(live) = self.registry.upgrade() {
            live.stores.lock().by_key.remove(&self.key);
        }
    }
}

#[async_trait]
impl ObjectStore for PinnedStore {
    async fn get_opts(&self, location: &Path, options: GetOptions) -> object_store::Result<GetResult> {
        let file = self.file(location)?;
        let pinned = &file.id.entry;
        let meta = ObjectMeta {
            location: location.clone(),
            last_modified: pinned.modified,
            size: pinned.size,
            e_tag: pinned.etag.clone(),
            version: pinned.version.clone(),
        };
        if let Some(remote) = self.remote(file) {
            return remote.get(meta, options).await;
        }
        let range = match &options.range {
            _ if options.head => 0..0,
            Some(range) => range
                .as_range(pinned.size)
                .map_err(|e| object_store::Error::Generic { store: "local disk", source: e.to_string().into() })?,
            None => 0..pinned.size,
        };
        let payload = self.get_local(file, range.clone()).await?;
        Ok(GetResult { payload, meta, range, attributes: Attributes::default() })
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> object_store::Result<Vec<Bytes>> {
        let file = self.file(location)?;
        if let Some(range) = ranges.iter().find(|range| !file.has(range)) {
            let problem = format!("{range:?} is not inside of {} bytes", file.id.entry.size);
            return Err(object_store::Error::Generic { store: "snapshot", source: problem.into() });
        }
        match self.remote(file) {
            Some(remote) => self.read_remote(location, &remote, ranges).await,
            None => read_ranges(&self.io, &self.table, file, ranges).await,
        }
    }

    fn list(&self, _prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        futures::stream::once(async { Err(read_only()) }).boxed()
    }

    async fn list_with_delimiter(&self, _prefix: Option<&Path>) -> object_store::Result<ListResult> {
        Err(read_only())
    }

    async fn put_opts(&self, _: &Path, _: PutPayload, _: PutOptions) -> object_store::Result<PutResult> {
        Err(read_only())
    }

    async fn put_multipart_opts(
        &self,
        _: &Path,
        _: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        Err(read_only())
    }

    fn delete_stream(
        &self,
        _: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        futures::stream::once(async { Err(read_only()) }).boxed()
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> object_store::Result<()> {
        Err(read_only())
    }
}

/// The bytes of those of `ranges` whose places are `wanted`.
async fn read_some(file: &RemoteFile, ranges: &[Range<u64>], wanted: &[usize]) -> object_store::Result<Vec<Bytes>> {
    let ranges: Vec<_> = wanted.iter().map(|at| ranges[*at].clone()).collect();
    file.read(&ranges).await
}

/// Scheme of the URLs of snapshots. No SQL can name one that is not its own: keys are made up per snapshot.
const SCHEME: &str = "snapshot";

/// The object stores that DataFusion may use: the live snapshots, and nothing else.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    live: Arc<Live>,
}

#[derive(Debug, Default)]
struct Live {
    stores: Mutex<Keyed>,
}

#[derive(Debug, Default)]
struct Keyed {
    next: u64,
    by_key: HashMap<String, Weak<PinnedStore>>,
}

impl Registry {
    /// How many snapshots live.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.live.stores.lock().by_key.len()
    }
}

impl ObjectStoreRegistry for Registry {
    /// Nothing can be added: a store registered by a session would be open to all.
    fn register_store(&self, _url: &Url, _store: Arc<dyn ObjectStore>) -> Option<Arc<dyn ObjectStore>> {
        None
    }

    fn get_store(&self, url: &Url) -> DfResult<Arc<dyn ObjectStore>> {
        let key = url.host_str().filter(|_| url.scheme() == SCHEME).unwrap_or_default();
        let store = self.live.stores.lock().by_key.get(key).and_then(Weak::upgrade);
        let unknown = || DataFusionError::from(Error::UnknownStore { url: format!("{}://{key}", url.scheme()) });
        store.map(|store| store as Arc<dyn ObjectStore>).ok_or_else(unknown)
    }
}
