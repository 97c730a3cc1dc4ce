//! Arrow IPC, file and stream: one record batch in memory at a time, from any store.

use std::sync::Arc;

use bytes::Bytes;
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::buffer::Buffer;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::arrow::error::ArrowError;
use datafusion::arrow::ipc::convert::fb_to_schema;
use datafusion::arrow::ipc::reader::{FileDecoder, StreamDecoder, read_footer_length};
use datafusion::arrow::ipc::{Block, MetadataVersion, root_as_footer};
use datafusion::datasource::listing::PartitionedFile;
use datafusion::error::{DataFusionError, Result as DfResult};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{GetOptions, ObjectStore, ObjectStoreExt};

use crate::pinned::PinnedStore;
use crate::stored::Stored;

const MAGIC: &[u8] = b"ARROW1";
/// Footer length and magic at the end of a file.
const TAIL: u64 = 10;

/// The schema of an IPC file or stream, and how large its record batches are if it says so.
pub(crate) async fn look(store: &Arc<PinnedStore>, location: &Path, size: u64) -> DfResult<(SchemaRef, Stored)> {
    if is_file(store, location, size).await? {
        let footer = footer(store, location, size).await?;
        // What a block claims to be is not to be trusted; it is no larger than the file.
        let bytes = |block: &Block| u64::try_from(block.bodyLength()).unwrap_or_default().min(size);
        return Ok((footer.schema, Stored::in_parts(size, footer.batches.iter().map(bytes))));
    }
    let mut bytes = store.get_opts(location, GetOptions::default()).await?.into_stream();
    let mut decoder = StreamDecoder::new();
    while let Some(piece) = bytes.try_next().await? {
        let mut buffer = Buffer::from(piece);
        while !buffer.is_empty() {
            let batch = decoder.decode(&mut buffer)?;
            if let Some(schema) = decoder.schema() {
                return Ok((schema, Stored::file(size)));
            }
            if batch.is_none() && buffer.is_empty() {
                break;
            }
        }
    }
    Err(broken("it ends before its schema"))
}

/// The rows of a file, with the columns `wanted` (places in the file's schema, ascending); of a part of a file those whose
/// batch begins in it. A stream can not be entered in the middle: its first part is all of it.
pub(crate) async fn read(
    store: Arc<PinnedStore>,
    file: PartitionedFile,
    wanted: Vec<usize>,
) -> DfResult<BoxStream<'static, DfResult<RecordBatch>>> {
    let (location, size) = (file.object_meta.location, file.object_meta.size);
    let (start, end) = file.range.map_or((0, size), |range| (range.start.unsigned_abs(), range.end.unsigned_abs()));
    if !is_file(&store, &location, size).await? {
        return if start > 0 {
            Ok(futures::stream::empty().boxed())
        } else {
            read_stream(store, location, wanted).await
        };
    }
    let footer = footer(&store, &location, size).await?;
    let mut decoder = FileDecoder::new(footer.schema, footer.version).with_projection(wanted);
    for block in &footer.dictionaries {
        let bytes = block_bytes(&store, &location, block, size).await?;
        decoder.read_dictionary(block, &Buffer::from(bytes))?;
    }
    let in_part = move |block: &Block| u64::try_from(block.offset()).is_ok_and(|at| at >= start && at < end);
    let blocks: Vec<Block> = footer.batches.into_iter().filter(in_part).collect();
    let state = (store, location, decoder, blocks.into_iter());
    let batches = futures::stream::try_unfold(state, move |(store, location, decoder, mut blocks)| async move {
        let Some(block) = blocks.next() else { return Ok(None) };
        let bytes = block_bytes(&store, &location, &block, size).await?;
        let batch = decoder.read_record_batch(&block, &Buffer::from(bytes))?;
        Ok(Some((batch, (store, location, decoder, blocks))))
    });
    Ok(batches.try_filter_map(|batch| async move { Ok(batch) }).boxed())
}

async fn read_stream(
    store: Arc<PinnedStore>,
    location: Path,
    wanted: Vec<usize>,
) -> DfResult<BoxStream<'static, DfResult<RecordBatch>>> {
    let bytes = store.get_opts(&location, GetOptions::default()).await?.into_stream();
    let state = (bytes, StreamDecoder::new(), Buffer::from(Bytes::new()), wanted);
    let batches = futures::stream::try_unfold(state, |(mut bytes, mut decoder, mut buffer, wanted)| async move {
        loop {
            if buffer.is_empty() {
                match bytes.try_next().await? {
                    Some(piece) => buffer = Buffer::from(piece),
                    None => {
                        decoder.finish()?;
                        return Ok(None);
                    }
                }
            }
            if let Some(batch) = decoder.decode(&mut buffer)? {
                let batch = batch.project(&wanted)?;
                return Ok::<_, DataFusionError>(Some((batch, (bytes, decoder, buffer, wanted))));
            }
        }
    });
    Ok(batches.boxed())
}

async fn is_file(store: &Arc<PinnedStore>, location: &Path, size: u64) -> DfResult<bool> {
    let magic = MAGIC.len() as u64;
    if size < magic {
        return Ok(false);
    }
    Ok(store.get_range(location, 0..magic).await?.as_ref() == MAGIC)
}

struct Footer {
    schema: SchemaRef,
    version: MetadataVersion,
    dictionaries: Vec<Block>,
    batches: Vec<Block>,
}

async fn footer(store: &Arc<PinnedStore>, location: &Path, size: u64) -> DfResult<Footer> {
    if size < TAIL {
        return Err(broken("it is too short"));
    }
    let tail = store.get_range(location, size - TAIL..size).await?;
    let tail: [u8; TAIL as usize] = tail.as_ref().try_into().map_err(|_| broken("it is too short"))?;
    let length = read_footer_length(tail)? as u64;
    let start = (size - TAIL).checked_sub(length).ok_or_else(|| broken("its footer is longer than the file"))?;
    let bytes = store.get_range(location, start..size - TAIL).await?;
    let footer = root_as_footer(&bytes).map_err(|e| broken(&format!("its footer is not valid: {e}")))?;
    let schema = footer.schema().ok_or_else(|| broken("its footer has no schema"))?;
    Ok(Footer {
        schema: Arc::new(fb_to_schema(schema)),
        version: footer.version(),
        dictionaries: footer.dictionaries().iter().flatten().copied().collect(),
        batches: footer.recordBatches().iter().flatten().copied().collect(),
    })
}

/// The bytes of a block, whose place comes from the file and is not to be trusted.
async fn block_bytes(store: &Arc<PinnedStore>, location: &Path, block: &Block, size: u64) -> DfResult<Bytes> {
    let place = || {
        let start = u64::try_from(block.offset()).ok()?;
        let length =
            u64::try_from(block.metaDataLength()).ok()?.checked_add(u64::try_from(block.bodyLength()).ok()?)?;
        let end = start.checked_add(length)?;
        (end <= size && length > 0).then_some(start..end)
    };
    let range = place().ok_or_else(|| broken("a block lies outside of the file"))?;
    Ok(store.get_range(location, range).await?)
}

fn broken(what: &str) -> DataFusionError {
    ArrowError::IpcError(format!("not an Arrow IPC file or stream: {what}")).into()
}
