use std::time::{Duration, Instant};

use http::HeaderMap;

/// When the client stops waiting. In the extensions of requests that say so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Deadline(
    /// The moment, counted from when the request's headers were read.
    pub(crate) Instant,
);

/// Reads `grpc-timeout`. A header that is not well-formed counts as none, as other gRPC servers have it.
pub(super) fn deadline(headers: &HeaderMap) -> Option<Deadline> {
    let timeout = parse(headers.get("grpc-timeout")?.as_bytes())?;
    // A moment beyond what the clock can hold is no deadline.
    Instant::now().checked_add(timeout).map(Deadline)
}

/// One to eight digits and a unit.
fn parse(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if !(1..=8).contains(&digits.len()) || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let count: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    match unit {
        b'H' => Some(Duration::from_secs(count * 3600)),
        b'M' => Some(Duration::from_secs(count * 60)),
        b'S' => Some(Duration::from_secs(count)),
        b'm' => Some(Duration::from_millis(count)),
        b'u' => Some(Duration::from_micros(count)),
        b'n' => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_of_the_specification() {
        let cases: [(&[u8], Option<Duration>); 16] = [
            (b"1H", Some(Duration::from_secs(3600))),
            (b"2M", Some(Duration::from_secs(120))),
            (b"3S", Some(Duration::from_secs(3))),
            (b"4m", Some(Duration::from_millis(4))),
            (b"5u", Some(Duration::from_micros(5))),
            (b"6n", Some(Duration::from_nanos(6))),
            (b"0S", Some(Duration::ZERO)),
            (b"99999999H", Some(Duration::from_secs(99_999_999 * 3600))),
            (b"", None),
            (b"S", None),
            (b"1", None),
            (b"1s", None),
            (b"-1S", None),
            (b"1.5S", None),
            (b"123456789S", None),
            (b"\xff\xffS", None),
        ];
        for (value, expected) in cases {
            assert_eq!(parse(value), expected, "{}", String::from_utf8_lossy(value));
        }
    }
}
