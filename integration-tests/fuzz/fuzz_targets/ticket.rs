//! Bytes as the ticket of a DoGet. Nobody without the key makes one that opens.
#![no_main]

use libfuzzer_sys::fuzz_target;
use updraft_auth::Sealer;

fuzz_target!(|bytes: &[u8]| {
    let sealer = Sealer::new(&[7; 32]);
    assert!(!updraft_flight::open_for_fuzzing(&sealer, bytes));
});
