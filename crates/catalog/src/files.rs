//! Listing: the files and folders below a root.
//!
//! Hidden names (`.` or `_` first) and empty files (markers such as `_SUCCESS`, or an upload's first moment) are not
//! there. A symbolic link is followed as long as its target stays below the root; one that leads out is not there either.

use std::collections::HashMap;
use std::io;
use std::path::Path as FsPath;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ListResult, ObjectMeta, ObjectStore, ObjectStoreExt};
use parking_lot::Mutex;
use tokio::runtime::Handle;

use crate::error::{Error, ErrorKind, find};
use crate::stores::{Backend, Root};

/// Nested folders that are followed in one table: a bound for loops of links.
const DEPTH_MAX: usize = 32;
/// Listings kept for `list_ttl`; at the bound all are dropped.
const LISTINGS_MAX: usize = 4096;

/// A file as it was when it was listed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Entry {
    /// Path below the root, `/` between the parts; empty when the root is the file.
    pub(crate) rel: String,
    /// Bytes.
    pub(crate) size: u64,
    pub(crate) modified: DateTime<Utc>,
    /// Entity tag of the store; of a local file its inode, change time and size.
    pub(crate) etag: Option<String>,
    pub(crate) version: Option<String>,
}

impl Entry {
    pub(crate) fn name(&self) -> &str {
        self.rel.rsplit('/').next().unwrap_or(&self.rel)
    }
}

/// What is directly in a folder, sorted by name.
#[derive(Debug, Clone, Default)]
pub(crate) struct Level {
    pub(crate) files: Vec<Entry>,
    /// Names, not paths.
    pub(crate) folders: Vec<String>,
}

impl Level {
    fn sorted(mut self) -> Self {
        self.files.sort_by(|a, b| a.rel.cmp(&b.rel));
        self.folders.sort();
        self
    }
}

/// What a location turned out to be.
#[derive(Debug, Clone)]
enum Found {
    File(Entry),
    Folder,
}

/// What a location turned out to be, and what is in it.
#[derive(Debug, Clone)]
pub(crate) enum Looked {
    File(Entry),
    Folder(Arc<Level>),
}

/// Root, path below it, and whether all below that was asked for.
type Asked = (u32, String, bool);

/// Lists, and remembers listings for `ttl`.
#[derive(Debug)]
pub(crate) struct Listing {
    ttl: Duration,
    io: Handle,
    seen: Mutex<HashMap<Asked, (Instant, Arc<Level>)>>,
}

impl Listing {
    pub(crate) fn new(ttl: Duration, io: Handle) -> Self {
        Self { ttl, io, seen: Mutex::default() }
    }

    /// What the root itself is. A folder of an object store is there without being made.
    async fn stat(&self, root: &Arc<Root>) -> Result<Found, Error> {
        match &root.backend {
            Backend::Local { path, .. } => {
                let path = path.clone();
                let found = self.blocking(move || stat_local(&path)).await?;
                found.map_err(|e| local_error(root, "", e))
            }
            Backend::Remote { store, prefix, lists, .. } => {
                let looks_like_file =
                    prefix.filename().is_some_and(|name| crate::formats::FileName::parse(name).is_some());
                if *lists && !looks_like_file {
                    return Ok(Found::Folder);
                }
                match store.head(prefix).await {
                    Ok(meta) => Ok(Found::File(entry_of(String::new(), &meta))),
                    Err(object_store::Error::NotFound { .. }) if *lists => Ok(Found::Folder),
                    Err(e) => Err(store_error(root, "", e)),
                }
            }
        }
    }

    /// What the root itself is, and, if it is a folder, what is directly in it, or, if `deep`, all below it, as by
    /// [`Self::level`] and [`Self::walk`]. On a local disk it costs one wait for another thread instead of two, and that
    /// for every statement.
    pub(crate) async fn look(&self, root: &Arc<Root>, deep: bool) -> Result<Looked, Error> {
        if let (Backend::Local { path, .. }, true) = (&root.backend, self.ttl.is_zero()) {
            let path = path.clone();
            let look = move || match stat_local(&path)? {
                Found::File(file) => Ok(Looked::File(file)),
                Found::Folder => list_local(&path, "", deep).map(|level| Looked::Folder(Arc::new(level.sorted()))),
            };
            return self.blocking(look).await?.map_err(|e| local_error(root, "", e));
        }
        Ok(match self.stat(root).await? {
            Found::File(file) => Looked::File(file),
            Found::Folder => Looked::Folder(self.list(root, "", deep).await?),
        })
    }

    /// What is directly in the folder `rel`.
    pub(crate) async fn level(&self, root: &Arc<Root>, rel: &str) -> Result<Arc<Level>, Error> {
        self.list(root, rel, false).await
    }

    /// All files below the folder `rel`, at any depth, sorted by path.
    pub(crate) async fn walk(&self, root: &Arc<Root>, rel: &str) -> Result<Arc<Level>, Error> {
        self.list(root, rel, true).await
    }

    async fn list(&self, root: &Arc<Root>, rel: &str, deep: bool) -> Result<Arc<Level>, Error> {
        let key = (root.id, rel.to_owned(), deep);
        if !self.ttl.is_zero()
            && let Some((at, level)) = self.seen.lock().get(&key)
            && at.elapsed() < self.ttl
        {
            return Ok(level.clone());
        }
        let at = Instant::now();
        let level = match &root.backend {
            Backend::Local { path, .. } => {
                let (path, below) = (path.clone(), rel.to_owned());
                let listed = self.blocking(move || list_local(&path, &below, deep)).await?;
                listed.map_err(|e| local_error(root, rel, e))?
            }
            Backend::Remote { .. } => list_remote(root, rel, deep).await?,
        };
        let level = Arc::new(level.sorted());
        if !self.ttl.is_zero() {
            let mut seen = self.seen.lock();
            if seen.len() >= LISTINGS_MAX {
                seen.clear();
            }
            seen.insert(key, (at, level.clone()));
        }
        Ok(level)
    }

    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
        let done = self.io.spawn_blocking(work).await;
        done.map_err(|e| Error::Internal { what: format!("listing did not end: {e}") })
    }
}

/// Whether a file or folder of this name is looked at.
fn is_hidden(name: &str) -> bool {
    name.starts_with(['.', '_']) || name.is_empty()
}

fn list_local(root: &FsPath, rel: &str, deep: bool) -> io::Result<Level> {
    let home = root.canonicalize()?;
    let mut level = Level::default();
    let mut pending = vec![(rel.to_owned(), 0)];
    while let Some((folder, depth)) = pending.pop() {
        for item in std::fs::read_dir(root.join(&folder))? {
            let item = item?;
            // Names that are not UTF-8 can not be written in SQL.
            let Ok(name) = item.file_name().into_string() else { continue };
            if is_hidden(&name) {
                continue;
            }
            let meta = if item.file_type()?.is_symlink() {
                match item.path().canonicalize() {
                    Ok(target) if target.starts_with(&home) => std::fs::metadata(target),
                    _ => {
                        tracing::debug!(path = %item.path().display(), "link leads out of the data root or nowhere");
                        continue;
                    }
                }
            } else {
                item.metadata()
            };
            let meta = match meta {
                Ok(meta) => meta,
                // Removed between the listing and the look at it.
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(e),
            };
            let path = if folder.is_empty() { name.clone() } else { format!("{folder}/{name}") };
            if meta.is_dir() {
                if deep && depth < DEPTH_MAX {
                    pending.push((path, depth + 1));
                }
                level.folders.push(name);
            } else if meta.is_file() && meta.len() > 0 {
                level.files.push(local_entry(path, &meta)?);
            }
        }
    }
    Ok(level)
}

fn stat_local(path: &FsPath) -> io::Result<Found> {
    let meta = std::fs::metadata(path)?;
    Ok(if meta.is_dir() { Found::Folder } else { Found::File(local_entry(String::new(), &meta)?) })
}

/// The identity of a local file; also asked of the open file while it is read.
pub(crate) fn local_entry(rel: String, meta: &std::fs::Metadata) -> io::Result<Entry> {
    let modified = DateTime::<Utc>::from(meta.modified()?);
    Ok(Entry { rel, size: meta.len(), modified, etag: local_etag(meta), version: None })
}

#[cfg(unix)]
fn local_etag(meta: &std::fs::Metadata) -> Option<String> {
    use std::os::unix::fs::MetadataExt;
    // The change time can not be set back by a program, unlike the modification time.
    Some(format!("{:x}-{:x}-{:x}-{:x}", meta.ino(), meta.ctime(), meta.ctime_nsec(), meta.len()))
}

#[cfg(not(unix))]
fn local_etag(_meta: &std::fs::Metadata) -> Option<String> {
    None
}

async fn list_remote(root: &Arc<Root>, rel: &str, deep: bool) -> Result<Level, Error> {
    let Backend::Remote { store, prefix, lists, .. } = &root.backend else { return Ok(Level::default()) };
    if !lists {
        return Err(Error::Location {
            location: root.location.clone(),
            problem: "is a folder of a web server, which has no listing; name each file in catalog.tables".to_owned(),
        });
    }
    let base = join(prefix, rel);
    let asked = (!base.is_root()).then_some(&base);
    let below = |path: &Path| -> Option<String> {
        let parts: Option<Vec<_>> =
            path.prefix_match(prefix).map(|parts| parts.map(|p| p.as_ref().to_owned()).collect());
        parts.filter(|parts| !parts.is_empty()).map(|parts| parts.join("/"))
    };
    let skip = if rel.is_empty() { 0 } else { rel.len() + 1 };
    let mut level = Level::default();
    let listed = match ask(store, asked, deep).await {
        Err(e @ object_store::Error::Generic { .. }) => match store.head(&base).await.map_err(|e| find(&e)) {
            Err(Some(ErrorKind::Denied)) => {
                let path = root.display(rel);
                Err(object_store::Error::PermissionDenied { path, source: e.into() })
            }
            // No such bucket; or the store is back, and there is just no object of the folder's name.
            Err(Some(ErrorKind::NotFound)) => ask(store, asked, deep)
                .await
                .map_err(|e| object_store::Error::NotFound { path: root.display(rel), source: e.into() }),
            _ => Err(e),
        },
        answer => answer,
    };
    let listed = listed.map_err(|e| store_error(root, rel, e))?;
    let names = listed.common_prefixes.iter().filter_map(|p| p.filename()).filter(|name| !is_hidden(name));
    level.folders = names.map(str::to_owned).collect();
    let objects = listed.objects;
    for meta in objects {
        let Some(path) = below(&meta.location) else { continue };
        let inner = path.get(skip..).unwrap_or_default();
        if meta.size > 0 && !inner.split('/').any(is_hidden) {
            level.files.push(entry_of(path, &meta));
        }
    }
    Ok(level)
}

/// One listing. Stores say why a listing is refused only in the text of a generic error, so the caller asks for one object
/// as well, where they say it by kind.
async fn ask(store: &Arc<dyn ObjectStore>, prefix: Option<&Path>, deep: bool) -> object_store::Result<ListResult> {
    match deep {
        true => Ok(ListResult { objects: store.list(prefix).try_collect().await?, common_prefixes: Vec::new() }),
        false => store.list_with_delimiter(prefix).await,
    }
}

/// `prefix` and below it `rel`, whose parts are already in the form that stores use.
pub(crate) fn join(prefix: &Path, rel: &str) -> Path {
    let parts = rel.split('/').filter(|part| !part.is_empty());
    parts.fold(prefix.clone(), |path, part| match Path::parse(part) {
        // A listed part is parsed as it is: encoding it once more would name another object.
        Ok(parsed) => parsed.parts().fold(path, |path, part| path.join(part)),
        Err(_) => path.join(part),
    })
}

fn entry_of(rel: String, meta: &ObjectMeta) -> Entry {
    Entry {
        rel,
        size: meta.size,
        modified: meta.last_modified,
        etag: meta.e_tag.clone(),
        version: meta.version.clone(),
    }
}

fn local_error(root: &Root, rel: &str, source: io::Error) -> Error {
    let location = root.display(rel);
    match source.kind() {
        io::ErrorKind::NotFound => Error::Missing { location },
        io::ErrorKind::PermissionDenied => Error::Store {
            source: object_store::Error::PermissionDenied { path: location.clone(), source: source.into() },
            location,
        },
        _ => Error::Store {
            location,
            source: object_store::Error::Generic { store: "local disk", source: source.into() },
        },
    }
}

fn store_error(root: &Root, rel: &str, source: object_store::Error) -> Error {
    let location = root.display(rel);
    match find(&source) {
        // A bucket, or a single file, that is not there: the location says which.
        Some(ErrorKind::NotFound) => Error::Missing { location },
        _ => Error::Store { location, source },
    }
}
