//! Bytes as the messages of an upload of bound parameters: for each, two lengths of two bytes, its header, its body.
#![no_main]

use arrow_flight::FlightData;
use futures::stream;
use libfuzzer_sys::fuzz_target;
use updraft_flight::{UploadLimits, read_upload};

fn messages(mut bytes: &[u8]) -> Vec<FlightData> {
    let mut messages = Vec::new();
    while let [a, b, c, d, rest @ ..] = bytes {
        let header = usize::from(u16::from_le_bytes([*a, *b])).min(rest.len());
        let (header, rest) = rest.split_at(header);
        let body = usize::from(u16::from_le_bytes([*c, *d])).min(rest.len());
        let (body, rest) = rest.split_at(body);
        let (data_header, data_body) = (header.to_vec().into(), body.to_vec().into());
        messages.push(FlightData { data_header, data_body, ..FlightData::default() });
        bytes = rest;
    }
    messages
}

fuzz_target!(|bytes: &[u8]| {
    let mut messages = messages(bytes).into_iter();
    let first = messages.next().unwrap_or_default();
    let limits = UploadLimits { bytes: 1 << 20, ..UploadLimits::default() };
    let _ = futures::executor::block_on(read_upload(first, stream::iter(messages.map(Ok)), &limits, |_| Ok(())));
});
