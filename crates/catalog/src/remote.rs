//! Reads of a pinned file of an object store: every one asks for the pinned version, on the I/O runtime, and is bounded
//! in length.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use chrono::DateTime;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use object_store::{Attributes, GetOptions, GetResult, GetResultPayload, ObjectMeta, ObjectStore};
use tokio::runtime::Handle;
use tokio_util::task::AbortOnDropHandle;

use crate::files::join;
use crate::pinned::{PIECE, PinnedFile, changed};
use crate::ranges;
use crate::requests::Requests;
use crate::stores::Backend;

/// A pinned file of an object store. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct RemoteFile {
    table: Arc<str>,
    file: Arc<PinnedFile>,
    store: Arc<dyn ObjectStore>,
    requests: Arc<Requests>,
    io: Handle,
}

impl RemoteFile {
    /// `file` of `table`; `None` when it is a local one.
    pub(crate) fn new(table: &Arc<str>, file: &Arc<PinnedFile>, io: &Handle) -> Option<Self> {
        let Backend::Remote { store, requests, .. } = &file.root.backend else { return None };
        let (table, file, store) = (table.clone(), file.clone(), store.clone());
        Some(Self { table, file, store, requests: requests.clone(), io: io.clone() })
    }

    /// The runtime that its requests run on.
    pub(crate) fn io(&self) -> &Handle {
        &self.io
    }

    /// What the store says to `options`, as one answer; `meta` is what callers know the file by.
    pub(crate) async fn get(&self, meta: ObjectMeta, options: GetOptions) -> object_store::Result<GetResult> {
        let Backend::Remote { lists, .. } = &self.file.root.backend else {
            unreachable!("it was remote when it was made")
        };
        // A plain web server may not know ranges.
        if options.head || !(*lists || options.range.is_some()) {
            return Ok(GetResult { meta, ..self.ask(options).await? });
        }
        let size = self.file.id.entry.size;
        let range = match &options.range {
            Some(range) => range.as_range(size).map_err(|e| self.generic(e.to_string()))?,
            None => 0..size,
        };
        let payload = GetResultPayload::Stream(self.stream(range.clone()).await?);
        Ok(GetResult { payload, meta, range, attributes: Attributes::default() })
    }

    /// The bytes of each of `ranges`.
    pub(crate) async fn read(&self, ranges: &[Range<u64>]) -> object_store::Result<Vec<Bytes>> {
        let file = self.clone();
        ranges::read(ranges, move |range| file.fetch(range)).await
    }

    /// The bytes of `range`, by one request, once it is polled.
    pub(crate) fn fetch(&self, range: Range<u64>) -> impl Future<Output = object_store::Result<Bytes>> + Send + use<> {
        let file = self.clone();
        async move { file.begin(range).await }
    }

    /// The same, from now on.
    fn begin(&self, range: Range<u64>) -> impl Future<Output = object_store::Result<Bytes>> + Send + use<> {
        let file = self.clone();
        let read = async move {
            let bytes = range.end.saturating_sub(range.start);
            file.requests.get(bytes, || file.once(range.clone())).await
        };
        let read = AbortOnDropHandle::new(self.io.spawn(read));
        read.map(|done| done.map_err(|source| object_store::Error::JoinError { source })?)
    }

    async fn once(&self, range: Range<u64>) -> object_store::Result<Bytes> {
        let wanted = range.end.saturating_sub(range.start);
        let bytes = self.ask(GetOptions::new().with_range(Some(range))).await?.bytes().await?;
        if bytes.len() as u64 != wanted {
            return Err(self.generic(format!("the store sent {} bytes instead of {wanted}", bytes.len())));
        }
        Ok(bytes)
    }

    /// `range` in pieces. While one is worked on the next is on its way, and no more: the body of one long answer would be
    /// gathered in memory as fast as it comes, and its time would run out with a reader that is slow.
    async fn stream(&self, range: Range<u64>) -> object_store::Result<BoxStream<'static, object_store::Result<Bytes>>> {
        let end = range.end;
        let piece = move |at: u64| at..end.min(at.saturating_add(PIECE));
        if range.is_empty() {
            return Ok(futures::stream::empty().boxed());
        }
        // The first one is waited for here, so that a file that is gone is not found out in the middle.
        let first = self.fetch(piece(range.start)).await?;
        let file = self.clone();
        let begin = move |at: u64| (at < end).then(|| file.begin(piece(at)));
        let next = begin(range.start + first.len() as u64);
        let at = range.start + first.len() as u64;
        let rest = futures::stream::try_unfold((next, at), move |(next, at)| {
            let begin = begin.clone();
            async move {
                let Some(next) = next else { return Ok(None) };
                let bytes = next.await?;
                let at = at + bytes.len() as u64;
                Ok(Some((bytes, (begin(at), at))))
            }
        });
        Ok(futures::stream::once(async move { Ok(first) }).chain(rest).boxed())
    }

    /// One request for the pinned version, whose answer is compared again.
    async fn ask(&self, mut options: GetOptions) -> object_store::Result<GetResult> {
        let Backend::Remote { prefix, .. } = &self.file.root.backend else {
            unreachable!("it was remote when it was made")
        };
        let pinned = &self.file.id.entry;
        options.version = pinned.version.clone();
        match &pinned.etag {
            // A weak tag never matches `If-Match`; it is compared below.
            Some(etag) if !etag.starts_with("W/") => options.if_match = Some(etag.clone()),
            _ if pinned.modified > DateTime::UNIX_EPOCH => options.if_unmodified_since = Some(pinned.modified),
            _ => {}
        }
        let result = match self.store.get_opts(&join(prefix, &pinned.rel), options).await {
            Ok(result) => result,
            Err(
                object_store::Error::NotFound { .. }
                | object_store::Error::Precondition { .. }
                | object_store::Error::NotModified { .. },
            ) => return Err(changed(&self.table, &self.file)),
            Err(e) => return Err(e),
        };
        let same_etag = match (&pinned.etag, &result.meta.e_tag) {
            (Some(pinned), Some(now)) => pinned == now,
            // Servers without tags: the time is all there is.
            (None, None) => pinned.modified == result.meta.last_modified,
            _ => true,
        };
        if result.meta.size != pinned.size || !same_etag {
            return Err(changed(&self.table, &self.file));
        }
        Ok(result)
    }

    fn generic(&self, problem: String) -> object_store::Error {
        object_store::Error::Generic { store: "object store", source: problem.into() }
    }
}
