//! Bytes as the value of an `authorization` header.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = updraft_auth::parse_authorization(bytes);
});
