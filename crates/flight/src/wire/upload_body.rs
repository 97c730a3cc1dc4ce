//! The shape of a record batch of an upload, checked against its schema and its body.
//!
//! The walk below visits nodes and buffers in the order in which arrow-ipc will, and proves for each what arrow-ipc
//! takes for granted: that it is there, that it lies inside the body, that it is long enough for its rows, and that it
//! will not grow past the limit when it is decompressed. Values (offsets, keys, UTF-8, views) are validated by arrow.

use std::io::Read;

use arrow_ipc as fb;
use datafusion::arrow::datatypes::{DataType, Field};

use super::upload::UploadError;

/// What a compressed buffer is charged at least.
const COMPRESSED_BUFFER_BYTES_MIN: usize = 4096;

/// What decoding may still produce before the upload is refused.
pub(super) struct Budget {
    /// Bytes after decompression.
    pub(super) bytes: usize,
    /// Most values in one column, nested ones included: columns of nulls have no bytes that would bound them.
    pub(super) values_per_column_max: usize,
}

impl Budget {
    /// Takes `bytes` out of the budget.
    pub(super) fn spend(&mut self, bytes: usize) -> Result<(), UploadError> {
        self.bytes = self.bytes.checked_sub(bytes).ok_or(UploadError::TooLarge { what: "decoded data" })?;
        Ok(())
    }
}

fn invalid(what: impl Into<String>) -> UploadError {
    UploadError::Batch { what: what.into() }
}

/// Checks that `batch` with `body` holds exactly the columns `fields`, and takes its decoded size out of `budget`.
pub(super) fn check_batch<'a>(
    batch: fb::RecordBatch<'_>,
    body: &[u8],
    fields: impl IntoIterator<Item = &'a Field>,
    budget: &mut Budget,
) -> Result<(), UploadError> {
    let rows = usize::try_from(batch.length()).map_err(|_| invalid("negative number of rows"))?;
    if rows > budget.values_per_column_max {
        return Err(UploadError::TooLarge { what: "number of rows" });
    }
    let codec = match batch.compression() {
        None => None,
        Some(compression) if compression.method() != fb::BodyCompressionMethod::BUFFER => {
            return Err(invalid("unknown compression method"));
        }
        Some(compression) => match compression.codec() {
            codec @ (fb::CompressionType::LZ4_FRAME | fb::CompressionType::ZSTD) => Some(codec),
            _ => return Err(invalid("unknown compression codec")),
        },
    };
    // Both may be missing in a batch without columns, but arrow-ipc asks for them.
    let nodes = batch.nodes().ok_or_else(|| invalid("no list of columns"))?;
    let buffers = batch.buffers().ok_or_else(|| invalid("no list of buffers"))?;
    let mut walk = Walk {
        body,
        codec,
        nodes: nodes.iter(),
        buffers: buffers.iter(),
        variadic: batch.variadicBufferCounts().into_iter().flatten().collect::<Vec<_>>().into_iter(),
        budget,
    };
    for field in fields {
        let length = walk.column(field.data_type())?;
        if length != rows {
            return Err(invalid(format!("column {:?} has {length} rows, its batch {rows}", field.name())));
        }
    }
    if walk.nodes.next().is_some() || walk.buffers.next().is_some() || walk.variadic.next().is_some() {
        return Err(invalid("more columns or buffers than the schema has"));
    }
    Ok(())
}

struct Walk<'a, Nodes, Buffers> {
    body: &'a [u8],
    codec: Option<fb::CompressionType>,
    nodes: Nodes,
    buffers: Buffers,
    variadic: std::vec::IntoIter<i64>,
    budget: &'a mut Budget,
}

impl<'a, Nodes, Buffers> Walk<'a, Nodes, Buffers>
where
    Nodes: Iterator<Item = &'a fb::FieldNode>,
    Buffers: Iterator<Item = &'a fb::Buffer>,
{
    /// Checks one column and its children; returns its number of values.
    fn column(&mut self, data_type: &DataType) -> Result<usize, UploadError> {
        let node = self.nodes.next().ok_or_else(|| invalid("fewer columns than the schema has"))?;
        let length = usize::try_from(node.length()).map_err(|_| invalid("a column of negative length"))?;
        let nulls = usize::try_from(node.null_count()).map_err(|_| invalid("a negative number of nulls"))?;
        if nulls > length {
            return Err(invalid("more nulls than values"));
        }
        if length > self.budget.values_per_column_max {
            return Err(UploadError::TooLarge { what: "number of values" });
        }
        if *data_type == DataType::Null {
            return Ok(length);
        }
        self.buffer("validity", if nulls > 0 { length.div_ceil(8) } else { 0 })?;
        match data_type {
            DataType::Boolean => {
                self.buffer("values", length.div_ceil(8))?;
            }
            DataType::Utf8 | DataType::Binary => {
                self.numbers("offsets", offsets(length), 4)?;
                self.buffer("data", 0)?;
            }
            DataType::LargeUtf8 | DataType::LargeBinary => {
                self.numbers("offsets", offsets(length), 8)?;
                self.buffer("data", 0)?;
            }
            DataType::Utf8View | DataType::BinaryView => {
                self.numbers("views", length, 16)?;
                let count = self.variadic.next().ok_or_else(|| invalid("a view column without its buffer count"))?;
                // A count beyond the buffers that are there ends the loop at the first one missing.
                for _ in 0..u64::try_from(count).map_err(|_| invalid("a negative buffer count"))? {
                    self.buffer("data", 0)?;
                }
            }
            DataType::List(item) | DataType::Map(item, _) => {
                self.numbers("offsets", offsets(length), 4)?;
                self.column(item.data_type())?;
            }
            DataType::LargeList(item) => {
                self.numbers("offsets", offsets(length), 8)?;
                self.column(item.data_type())?;
            }
            DataType::FixedSizeList(item, size) => {
                let items = product(length, usize::try_from(*size).map_err(|_| invalid("a negative list size"))?)?;
                if self.column(item.data_type())? < items {
                    return Err(invalid("a fixed-size list with too few items"));
                }
            }
            DataType::Struct(fields) => {
                for field in fields {
                    let child = self.column(field.data_type())?;
                    if child != length {
                        return Err(invalid(format!(
                            "struct of {length} rows with {child} values of {:?}",
                            field.name()
                        )));
                    }
                }
            }
            DataType::FixedSizeBinary(width) => {
                let width = usize::try_from(*width).map_err(|_| invalid("a negative width"))?;
                self.buffer("values", product(length, width)?)?;
            }
            DataType::Dictionary(key, _) => {
                let width = key.primitive_width().ok_or_else(|| invalid("keys that are not integers"))?;
                self.numbers("keys", length, width)?;
            }
            other => {
                let width = other.primitive_width().ok_or_else(|| invalid(format!("a column of type {other}")))?;
                self.buffer("values", product(length, width)?)?;
            }
        }
        Ok(length)
    }

    /// Checks the next buffer as one of `count` or more numbers, all of `width` bytes.
    fn numbers(&mut self, what: &str, count: usize, width: usize) -> Result<(), UploadError> {
        let bytes = self.buffer(what, product(count, width)?)?;
        if bytes % width != 0 {
            return Err(invalid(format!("{what} buffer of {bytes} bytes, which are not whole numbers of {width}")));
        }
        Ok(())
    }

    /// Checks the next buffer: inside the body, and at least `bytes_min` long once decompressed. Returns that length.
    fn buffer(&mut self, what: &str, bytes_min: usize) -> Result<usize, UploadError> {
        let buffer = self.buffers.next().ok_or_else(|| invalid("fewer buffers than the columns have"))?;
        let (offset, length) = (usize::try_from(buffer.offset()), usize::try_from(buffer.length()));
        let (Ok(offset), Ok(length)) = (offset, length) else {
            return Err(invalid(format!("{what} buffer with a negative offset or length")));
        };
        let bytes = offset
            .checked_add(length)
            .and_then(|end| self.body.get(offset..end))
            .ok_or_else(|| invalid(format!("{what} buffer outside the body of its message")))?;
        let decoded = match self.codec {
            Some(codec) if !bytes.is_empty() => decoded_bytes(bytes, codec, self.budget.bytes)?,
            _ => length,
        };
        // A decompressor costs time and scratch space however little comes out of it.
        self.budget.spend(if self.codec.is_some() { decoded.max(COMPRESSED_BUFFER_BYTES_MIN) } else { decoded })?;
        if decoded < bytes_min {
            return Err(invalid(format!("{what} buffer of {decoded} bytes where {bytes_min} are needed")));
        }
        Ok(decoded)
    }
}

fn product(count: usize, width: usize) -> Result<usize, UploadError> {
    count.checked_mul(width).ok_or(UploadError::TooLarge { what: "number of values" })
}

/// Offsets of `length` values: an array without values may leave them out.
fn offsets(length: usize) -> usize {
    if length == 0 { 0 } else { length + 1 }
}

/// Bytes of a compressed buffer after decompression, known to be right for LZ4 and known to be an upper bound for
/// Zstandard, which arrow-ipc decompresses into a buffer of the announced size.
fn decoded_bytes(bytes: &[u8], codec: fb::CompressionType, bytes_max: usize) -> Result<usize, UploadError> {
    let Some((prefix, compressed)) = bytes.split_first_chunk::<8>() else {
        return Err(invalid("a compressed buffer without its length"));
    };
    let announced = match i64::from_le_bytes(*prefix) {
        // Not worth compressing: the bytes follow as they are.
        -1 => return Ok(compressed.len()),
        announced => usize::try_from(announced).map_err(|_| invalid("a compressed buffer of negative length"))?,
    };
    if announced > bytes_max {
        return Err(UploadError::TooLarge { what: "decoded data" });
    }
    if codec == fb::CompressionType::LZ4_FRAME && announced > 0 {
        // arrow-ipc reads LZ4 frames to their end and compares afterwards: a frame that holds more than it announces
        // must be found out before. Uploads are small and seldom compressed, so decompressing twice is affordable.
        let mut frame = lz4_flex::frame::FrameDecoder::new(compressed).take(announced as u64 + 1);
        let found = std::io::copy(&mut frame, &mut std::io::sink()).map_err(|_| invalid("a broken LZ4 frame"))?;
        if found != announced as u64 {
            return Err(invalid("a compressed buffer of another length than it announces"));
        }
    }
    Ok(announced)
}
