//! A Flight message as it goes into the body of a gRPC response.
//!
//! tonic's codec would copy the body of every message once more, and arrow-flight's encoder copies it before that. Here a
//! message is a few pieces of bytes: what is small is written once into one allocation (the prefix of gRPC, the tags of
//! protobuf, the header, small buffers and padding), and what is large is the Arrow buffer itself.

use std::sync::Arc;

use arrow_ipc::root_as_message;
use bytes::{BufMut, Bytes, BytesMut};
use datafusion::arrow::buffer::Buffer;
use datafusion::arrow::error::ArrowError;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};
use updraft_engine::{Charge, Weight};

/// Pieces up to here are copied into one. Each piece is a frame of HTTP/2 at least, with a write to the socket of its own,
/// which costs more than copying this much.
pub(crate) const COPIED_MAX: usize = 4 << 10;
/// A buffer that uses less than a quarter of an allocation above this size is copied, for it would keep all of that while
/// its client reads. Columns in memory, of which many slices are sent, are smaller.
const KEPT_MAX: usize = 32 << 20;
/// Fields of `FlightData`.
const DATA_HEADER: u32 = 2;
const DATA_BODY: u32 = 1000;
/// One byte that says "not compressed", four of length.
const PREFIX_BYTES: usize = 5;

/// A message with its prefix, in pieces to be sent one after the other.
#[derive(Debug, Clone, Default)]
pub(crate) struct Message {
    pieces: Vec<Bytes>,
    bytes: usize,
    /// Counts it as not sent.
    charge: Option<Arc<Charge>>,
}

impl Message {
    /// The message of an IPC header, without its length before it, and an IPC body.
    ///
    /// Fails when it is longer than the four bytes of gRPC can say.
    pub(crate) fn new(header: &[u8], body: Vec<Buffer>) -> Result<Self, ArrowError> {
        let body_bytes: usize = body.iter().map(Buffer::len).sum();
        let mut bytes = field_bytes(DATA_HEADER, header.len());
        if body_bytes > 0 {
            bytes += field_bytes(DATA_BODY, body_bytes);
        }
        let announced = u32::try_from(bytes)
            .map_err(|_| ArrowError::IpcError(format!("a message of {bytes} bytes is longer than gRPC can carry")))?;
        let small: usize = body.iter().map(Buffer::len).filter(|len| *len <= COPIED_MAX).sum();
        let mut copied = BytesMut::with_capacity(PREFIX_BYTES + bytes - body_bytes + small);
        copied.put_u8(0);
        copied.put_u32(announced);
        put_field(DATA_HEADER, header.len(), &mut copied);
        copied.put_slice(header);
        let mut pieces = Vec::new();
        if body_bytes > 0 {
            put_field(DATA_BODY, body_bytes, &mut copied);
        }
        for buffer in body {
            if buffer.len() <= COPIED_MAX {
                copied.put_slice(&buffer);
                continue;
            }
            if !copied.is_empty() {
                pieces.push(copied.split().freeze());
            }
            pieces.push(shared(buffer));
        }
        if !copied.is_empty() {
            pieces.push(copied.freeze());
        }
        Ok(Self { pieces, bytes: PREFIX_BYTES + bytes, charge: None })
    }

    /// The messages in what an encoder of IPC streams wrote.
    pub(crate) fn of_stream(written: Vec<Buffer>) -> Result<Vec<Self>, ArrowError> {
        let broken = || ArrowError::IpcError("the encoder wrote no IPC stream".to_owned());
        let mut written = written.into_iter().filter(|buffer| !buffer.is_empty());
        let mut messages = Vec::new();
        // A marker and the length of the header, which is padded.
        while let Some(start) = written.next() {
            let length = start.get(4..8).and_then(|length| length.try_into().ok()).ok_or_else(broken)?;
            let header_bytes = u32::from_le_bytes(length) as usize;
            let header = written.next().ok_or_else(broken)?;
            take(&mut written, header_bytes.checked_sub(header.len()).ok_or_else(broken)?).ok_or_else(broken)?;
            let body_bytes = root_as_message(&header).map_err(|_| broken())?.bodyLength();
            let body = take(&mut written, usize::try_from(body_bytes).map_err(|_| broken())?).ok_or_else(broken)?;
            messages.push(Self::new(&header, body)?);
        }
        Ok(messages)
    }

    /// Its bytes, prefix included, one piece after the other. It counts as not sent until the last large one is gone.
    pub(crate) fn into_pieces(self) -> std::vec::IntoIter<Bytes> {
        let Some(charge) = self.charge else { return self.pieces.into_iter() };
        let charged = |piece: Bytes| match piece.len() {
            ..=COPIED_MAX => piece,
            _ => Bytes::from_owner(Charged { piece, _charge: Arc::clone(&charge) }),
        };
        self.pieces.into_iter().map(charged).collect::<Vec<_>>().into_iter()
    }
}

/// A piece that counts as not sent.
struct Charged {
    piece: Bytes,
    _charge: Arc<Charge>,
}

impl AsRef<[u8]> for Charged {
    fn as_ref(&self) -> &[u8] {
        &self.piece
    }
}

impl Weight for Message {
    fn weight(&self) -> usize {
        self.bytes
    }

    fn keep(&mut self, charge: Charge) {
        self.charge = Some(Arc::new(charge));
    }
}

/// Buffers of `bytes` bytes together; `None` if there are none.
fn take(written: &mut impl Iterator<Item = Buffer>, mut bytes: usize) -> Option<Vec<Buffer>> {
    let mut taken = Vec::new();
    while bytes > 0 {
        let buffer = written.next()?;
        bytes = bytes.checked_sub(buffer.len())?;
        taken.push(buffer);
    }
    Some(taken)
}

fn shared(buffer: Buffer) -> Bytes {
    struct Shared(Buffer);
    impl AsRef<[u8]> for Shared {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    if buffer.capacity() > KEPT_MAX && buffer.len() < buffer.capacity() / 4 {
        return Bytes::copy_from_slice(&buffer);
    }
    Bytes::from_owner(Shared(buffer))
}

/// Bytes of a field of `len` bytes with its key and its length.
fn field_bytes(field: u32, len: usize) -> usize {
    key_len(field) + encoded_len_varint(len as u64) + len
}

fn put_field(field: u32, len: usize, into: &mut BytesMut) {
    encode_key(field, WireType::LengthDelimited, into);
    encode_varint(len as u64, into);
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use arrow_flight::FlightData;
    use prost::Message as _;

    /// What a client makes of it.
    pub(crate) fn received(message: &Message) -> FlightData {
        let bytes: Vec<u8> = message.pieces.iter().flatten().copied().collect();
        assert_eq!(bytes.len(), message.weight());
        assert_eq!(bytes[0], 0, "it is not compressed");
        assert_eq!(u32::from_be_bytes(bytes[1..5].try_into().expect("4 bytes")) as usize, bytes.len() - 5);
        FlightData::decode(&bytes[5..]).expect("FlightData")
    }

    #[test]
    fn large_buffers_are_not_copied_and_small_ones_are_one_piece() {
        let large: Vec<u8> = (0..100_000_u32).map(|byte| byte as u8).collect();
        let address = large.as_ptr();
        let buffers = vec![Buffer::from(vec![1_u8; 10]), Buffer::from(large), Buffer::from(vec![2_u8; 20])];
        let message = Message::new(b"header", buffers).expect("it is short");
        assert_eq!(message.pieces.iter().map(Bytes::len).collect::<Vec<_>>(), [5 + 2 + 6 + 5 + 10, 100_000, 20]);
        assert_eq!(message.pieces[1].as_ptr(), address);
        let data = received(&message);
        assert_eq!(data.data_header, &b"header"[..]);
        assert_eq!((data.data_body[9], data.data_body[10], data.data_body[11]), (1, 0, 1));
        assert_eq!(data.data_body.len(), 100_030);
    }

    #[test]
    fn a_little_of_a_huge_allocation_is_copied() {
        let huge = Buffer::from(vec![7_u8; KEPT_MAX + 1]);
        let slice = huge.slice_with_length(3, 100_000);
        let address = slice.as_ptr();
        let message = Message::new(b"", vec![slice]).expect("it is short");
        assert_ne!(message.pieces[1].as_ptr(), address);
        let message = Message::new(b"", vec![huge.clone()]).expect("it is short");
        assert_eq!(message.pieces[1].as_ptr(), huge.as_ptr());
    }

    #[test]
    fn a_message_without_a_body_has_a_header_only() {
        let message = Message::new(b"header", Vec::new()).expect("it is short");
        assert_eq!(received(&message), FlightData::new().with_data_header("header"));
    }

    #[test]
    fn what_is_no_stream_is_refused() {
        for written in [vec![0_u8; 3], vec![0xff; 8], vec![0; 8]] {
            assert!(Message::of_stream(vec![Buffer::from(written)]).is_err());
        }
    }
}
