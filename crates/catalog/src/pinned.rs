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
use chrono::DateTime;
use datafusion::error::{DataFusionError, Result as DfResult};
use datafusion::execution::object_store::{ObjectStoreRegistry, ObjectStoreUrl};
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    Attributes, CopyOptions, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload,
    OBJECT_STORE_COALESCE_DEFAULT, ObjectMeta, ObjectStore, ObjectStoreExt, PutMultipartOptions, PutOptions,
    PutPayload, PutResult, coalesce_ranges,
};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use url::Url;

use crate::error::Error;
use crate::files::{Entry, join, local_entry};
use crate::local::read_ranges;
use crate::stores::{Backend, Root};

/// Bytes read at once from a local file: large enough for a column chunk, small enough to keep many of them.
const PIECE: u64 = 4 << 20;

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
}

/// The files of one snapshot as an object store. Plans hold it by their readers; the registry only knows it while it lives.
#[derive(Debug)]
pub(crate) struct PinnedStore {
    table: String,
    files: HashMap<Path, Arc<PinnedFile>>,
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
        registry: &Arc<Registry>,
    ) -> Arc<Self> {
        let live = &registry.live;
        let mut stores = live.stores.lock();
        stores.next += 1;
        let key = format!("s{}", stores.next);
        let store = Arc::new(Self { table, files, io, key: key.clone(), registry: Arc::downgrade(live) });
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

    fn changed(&self, file: &PinnedFile) -> object_store::Error {
        changed(&self.table, file)
    }

    async fn get_remote(
        &self,
        file: &PinnedFile,
        store: &Arc<dyn ObjectStore>,
        prefix: &Path,
        mut options: GetOptions,
    ) -> object_store::Result<GetResult> {
        let pinned = &file.id.entry;
        options.version = pinned.version.clone();
        match &pinned.etag {
            // A weak tag never matches `If-Match`; it is compared below.
            Some(etag) if !etag.starts_with("W/") => options.if_match = Some(etag.clone()),
            _ if pinned.modified > DateTime::UNIX_EPOCH => options.if_unmodified_since = Some(pinned.modified),
            _ => {}
        }
        let result = match store.get_opts(&join(prefix, &pinned.rel), options).await {
            Ok(result) => result,
            Err(
                object_store::Error::NotFound { .. }
                | object_store::Error::Precondition { .. }
                | object_store::Error::NotModified { .. },
            ) => return Err(self.changed(file)),
            Err(e) => return Err(e),
        };
        let same_etag = match (&pinned.etag, &result.meta.e_tag) {
            (Some(pinned), Some(now)) => pinned == now,
            // Servers without tags: the time is all there is.
            (None, None) => pinned.modified == result.meta.last_modified,
            _ => true,
        };
        if result.meta.size != pinned.size || !same_etag {
            return Err(self.changed(file));
        }
        Ok(result)
    }

    async fn get_local(&self, file: &Arc<PinnedFile>, range: Range<u64>) -> object_store::Result<GetResultPayload> {
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
    table: String,
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
        Backend::Local { path } if file.id.entry.rel.is_empty() => path.clone(),
        Backend::Local { path } => path.join(&file.id.entry.rel),
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
        match &file.root.backend {
            Backend::Remote { store, prefix, .. } => {
                let mut result = self.get_remote(file, store, prefix, options).await?;
                result.meta = meta;
                Ok(result)
            }
            Backend::Local { .. } => {
                let range = match &options.range {
                    _ if options.head => 0..0,
                    Some(range) => range.as_range(pinned.size).map_err(|e| object_store::Error::Generic {
                        store: "local disk",
                        source: e.to_string().into(),
                    })?,
                    None => 0..pinned.size,
                };
                let payload = self.get_local(file, range.clone()).await?;
                Ok(GetResult { payload, meta, range, attributes: Attributes::default() })
            }
        }
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> object_store::Result<Vec<Bytes>> {
        let file = self.file(location)?;
        match &file.root.backend {
            Backend::Local { .. } => read_ranges(&self.io, self.table.clone(), file, ranges).await,
            // Through `get_opts`, and so through the pin.
            Backend::Remote { .. } => {
                let get = |range| self.get_range(location, range);
                coalesce_ranges(ranges, get, OBJECT_STORE_COALESCE_DEFAULT).await
            }
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
