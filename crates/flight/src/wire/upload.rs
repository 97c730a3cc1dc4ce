//! What clients upload, bound parameters above all: a stream of Flight messages into record batches.
//!
//! No message may abort or panic the process. Every message is verified as a flatbuffer, its schema is read by our own
//! code, and its buffers are measured against its body before arrow-ipc decodes and validates it. A panic that is left
//! in arrow is caught and becomes an error of this upload.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use arrow_flight::FlightData;
use arrow_ipc::reader::{read_dictionary, read_record_batch};
use arrow_ipc::{MessageHeader, MetadataVersion, root_as_message};
use datafusion::arrow::array::{ArrayRef, RecordBatch};
use datafusion::arrow::buffer::Buffer;
use datafusion::arrow::datatypes::{DataType, Field, SchemaRef};
use datafusion::arrow::error::ArrowError;
use futures::{Stream, StreamExt};
use tonic::Status;
use updraft_engine::Error;

use super::upload_body::{Budget, check_batch};
use super::upload_schema::read_schema;

/// What arrays take for each byte of the header that describes them: 16 bytes for a column and each of its buffers there,
/// some hundred here.
const ARRAYS_PER_HEADER: usize = 8;

/// Bounds of one upload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadLimits {
    /// Most bytes of all messages together, and again of all data once decompressed.
    pub bytes: usize,
    /// Most bytes of the header of one message.
    pub header_bytes: usize,
    /// Most messages.
    pub messages: usize,
    /// Most rows of all batches together.
    pub rows: usize,
    /// Most fields of the schema, nested ones included.
    pub fields: usize,
    /// Deepest nesting of fields.
    pub depth: usize,
}

impl Default for UploadLimits {
    /// Room for a million bound rows, far from what hurts a server.
    fn default() -> Self {
        Self { bytes: 64 << 20, header_bytes: 1 << 20, messages: 65_536, rows: 4 << 20, fields: 8_192, depth: 16 }
    }
}

/// Why an upload was refused. All but [`UploadError::NoRoom`] and [`UploadError::Transport`] are mistakes of the client.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// A limit was passed.
    #[error("upload refused: {what} beyond the limit of this server")]
    TooLarge {
        /// What there is too much of.
        what: &'static str,
    },
    /// The server has no memory for it now.
    #[error("upload refused: {source}")]
    NoRoom {
        /// How much it needs, and how much there is.
        #[source]
        source: Box<Error>,
    },
    /// A message is not an Arrow IPC message, or comes where it must not.
    #[error("upload refused: {what}")]
    Message {
        /// What is wrong with it.
        what: String,
    },
    /// The schema is broken, or has a type that cannot be uploaded.
    #[error("upload refused: bad schema: {what}")]
    Schema {
        /// What is wrong with it.
        what: String,
    },
    /// A record batch or dictionary does not fit the schema or its own body.
    #[error("upload refused: bad record batch: {what}")]
    Batch {
        /// What is wrong with it.
        what: String,
    },
    /// The values of a record batch are not valid.
    #[error("upload refused: bad record batch: {source}")]
    Values {
        /// What arrow found.
        #[source]
        source: ArrowError,
    },
    /// The client's stream failed.
    #[error("the upload broke off")]
    Transport {
        /// What tonic said.
        #[source]
        source: Box<Status>,
    },
}

/// What a client uploaded.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Upload {
    /// `None` if no message carried one: some clients open a stream with nothing but its descriptor.
    pub schema: Option<SchemaRef>,
    /// All batches in order, those without rows included.
    pub batches: Vec<RecordBatch>,
}

impl Upload {
    /// Rows of all batches.
    pub fn num_rows(&self) -> usize {
        self.batches.iter().map(RecordBatch::num_rows).sum()
    }
}

/// Reads an upload to its end. `first` is the message that carried the descriptor, which may or may not carry the schema
/// too. Each message is read only when `hold` has taken the bytes that it comes to. Fails at the first message that is
/// wrong; nothing is kept then.
pub async fn read_upload(
    first: FlightData,
    rest: impl Stream<Item = Result<FlightData, Status>>,
    limits: &UploadLimits,
    hold: impl FnMut(u64) -> Result<(), Error> + Send,
) -> Result<Upload, UploadError> {
    let mut decoder = Decoder::new(limits, hold);
    decoder.push(first)?;
    let mut rest = std::pin::pin!(rest);
    while let Some(message) = rest.next().await {
        decoder.push(message.map_err(|source| UploadError::Transport { source: Box::new(source) })?)?;
    }
    Ok(decoder.upload)
}

struct Decoder<'l, H> {
    limits: &'l UploadLimits,
    upload: Upload,
    messages: usize,
    rows: usize,
    received: usize,
    budget: Budget,
    /// Takes memory of the server's.
    hold: H,
    /// For each dictionary id of the schema, the type of its values.
    value_types: HashMap<i64, DataType>,
    dictionaries: HashMap<i64, ArrayRef>,
}

fn invalid(what: impl Into<String>) -> UploadError {
    UploadError::Message { what: what.into() }
}

impl<'l, H: FnMut(u64) -> Result<(), Error>> Decoder<'l, H> {
    fn new(limits: &'l UploadLimits, hold: H) -> Self {
        Self {
            limits,
            upload: Upload::default(),
            messages: 0,
            rows: 0,
            received: 0,
            budget: Budget { bytes: limits.bytes, values_per_column_max: limits.rows },
            hold,
            value_types: HashMap::new(),
            dictionaries: HashMap::new(),
        }
    }

    fn push(&mut self, message: FlightData) -> Result<(), UploadError> {
        self.messages += 1;
        self.received = self.received.saturating_add(message.data_header.len()).saturating_add(message.data_body.len());
        if self.messages > self.limits.messages {
            return Err(UploadError::TooLarge { what: "number of messages" });
        }
        if self.received > self.limits.bytes {
            return Err(UploadError::TooLarge { what: "data" });
        }
        if message.data_header.len() > self.limits.header_bytes {
            return Err(UploadError::TooLarge { what: "message header" });
        }
        // A message with a descriptor or application metadata alone carries no data.
        if message.data_header.is_empty() {
            return if message.data_body.is_empty() { Ok(()) } else { Err(invalid("a body without its header")) };
        }
        let arrays = message.data_header.len().saturating_mul(ARRAYS_PER_HEADER);
        self.hold(arrays.saturating_add(message.data_body.len()))?;
        let decoded = catch_unwind(AssertUnwindSafe(|| self.decode(&message)));
        decoded.unwrap_or_else(|_| Err(invalid("a message that could not be decoded")))
    }

    fn decode(&mut self, message: &FlightData) -> Result<(), UploadError> {
        let header = root_as_message(&message.data_header).map_err(|_| invalid("a header that is not Arrow IPC"))?;
        let version = header.version();
        if version != MetadataVersion::V4 && version != MetadataVersion::V5 {
            return Err(invalid("a version of Arrow IPC that is not supported"));
        }
        let body = usize::try_from(header.bodyLength())
            .ok()
            .filter(|length| message.data_body.len().checked_sub(*length).is_some_and(|padding| padding < 64))
            .map(|length| message.data_body.slice(..length))
            .ok_or_else(|| invalid("a body of another length than its header says"))?;
        match header.header_type() {
            MessageHeader::Schema => {
                let schema = header.header_as_schema().ok_or_else(|| invalid("a schema message without schema"))?;
                if self.upload.schema.is_some() {
                    return Err(invalid("a second schema"));
                }
                let schema = read_schema(schema, self.limits)?;
                for field in schema.fields() {
                    dictionary_types(field, &mut self.value_types);
                }
                self.upload.schema = Some(Arc::new(schema));
                Ok(())
            }
            MessageHeader::DictionaryBatch => {
                let schema = self.schema()?;
                let dictionary =
                    header.header_as_dictionary_batch().ok_or_else(|| invalid("a dictionary message without one"))?;
                let id = dictionary.id();
                let value_type = self
                    .value_types
                    .get(&id)
                    .ok_or_else(|| UploadError::Batch { what: format!("dictionary {id} is not in the schema") })?;
                let data = dictionary.data().ok_or_else(|| invalid("a dictionary without values"))?;
                let values = Field::new("", value_type.clone(), true);
                self.check(data, &body, [&values])?;
                if let (true, Some(known)) = (dictionary.isDelta(), self.dictionaries.get(&id)) {
                    // Both are copied into a new one, each time.
                    let bytes = known.get_array_memory_size();
                    self.budget.spend(bytes)?;
                    self.hold(bytes)?;
                }
                read_dictionary(&Buffer::from(body), dictionary, &schema, &mut self.dictionaries, &version)
                    .map_err(|source| UploadError::Values { source })
            }
            MessageHeader::RecordBatch => {
                let schema = self.schema()?;
                let batch = header.header_as_record_batch().ok_or_else(|| invalid("a batch message without batch"))?;
                self.check(batch, &body, schema.fields().iter().map(AsRef::as_ref))?;
                let batch = read_record_batch(&Buffer::from(body), batch, schema, &self.dictionaries, None, &version)
                    .map_err(|source| UploadError::Values { source })?;
                self.rows += batch.num_rows();
                if self.rows > self.limits.rows {
                    return Err(UploadError::TooLarge { what: "number of rows" });
                }
                self.upload.batches.push(batch);
                Ok(())
            }
            _ => Err(invalid("a message that is neither schema, dictionary nor record batch")),
        }
    }

    /// Checks what arrow is about to decode, and holds what that comes to: buffers that are not compressed stay where they
    /// came, in the body.
    fn check<'a>(
        &mut self,
        batch: arrow_ipc::RecordBatch<'_>,
        body: &[u8],
        fields: impl IntoIterator<Item = &'a Field>,
    ) -> Result<(), UploadError> {
        let before = self.budget.bytes;
        check_batch(batch, body, fields, &mut self.budget)?;
        match batch.compression() {
            Some(_) => self.hold(before - self.budget.bytes),
            None => Ok(()),
        }
    }

    fn hold(&mut self, bytes: usize) -> Result<(), UploadError> {
        (self.hold)(bytes as u64).map_err(|source| UploadError::NoRoom { source: Box::new(source) })
    }

    fn schema(&self) -> Result<SchemaRef, UploadError> {
        self.upload.schema.clone().ok_or_else(|| invalid("data before its schema"))
    }
}

/// Collects the ids and value types of all dictionaries under `field`.
fn dictionary_types(field: &Field, types: &mut HashMap<i64, DataType>) {
    match field.data_type() {
        DataType::Dictionary(_, value) => {
            // Deprecated since writers assign ids themselves; readers have no other place for them.
            #[allow(deprecated)]
            if let Some(id) = field.dict_id() {
                types.insert(id, value.as_ref().clone());
            }
            dictionary_types(&Field::new("", value.as_ref().clone(), true), types);
        }
        DataType::List(item)
        | DataType::LargeList(item)
        | DataType::FixedSizeList(item, _)
        | DataType::Map(item, _) => dictionary_types(item, types),
        DataType::Struct(fields) => fields.iter().for_each(|field| dictionary_types(field, types)),
        _ => {}
    }
}

#[cfg(test)]
#[path = "upload_tests.rs"]
mod tests;
