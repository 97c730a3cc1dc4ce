//! Which requests a remote file is read by: ranges that are close to each other are one request, and long ones are several
//! at the same time.

use std::ops::Range;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};

/// Bytes between two ranges that are read along rather than asked for apart: what a connection brings while a store
/// thinks about one more request.
const GAP: u64 = 256 << 10;
/// Bytes of one request: what is asked for in several is faster than one connection, and what is lost is asked for again.
pub(crate) const REQUEST: u64 = 8 << 20;
/// Requests of one file at the same time; those of all files are bounded by their store.
const TOGETHER: usize = 16;

/// What is to be asked for so that each of `ranges` is inside one of the answers: ascending, and apart from each other.
/// Longer than [`REQUEST`] is only what one range makes so, or several that overlap.
pub(crate) fn coalesced(ranges: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut sorted: Vec<Range<u64>> = ranges.iter().filter(|range| range.start < range.end).cloned().collect();
    sorted.sort_unstable_by_key(|range| (range.start, range.end));
    let mut spans: Vec<Range<u64>> = Vec::with_capacity(sorted.len());
    for range in sorted {
        match spans.last_mut() {
            Some(last) if range.start < last.end => last.end = last.end.max(range.end),
            Some(last) if range.start - last.end <= GAP && range.end - last.start <= REQUEST => last.end = range.end,
            _ => spans.push(range),
        }
    }
    spans
}

/// The bytes of each of `ranges`, which `fetch` gets, one request at a time.
///
/// # Errors
/// The first of `fetch`; all other requests are given up.
pub(crate) async fn read<F, E>(ranges: &[Range<u64>], fetch: impl Fn(Range<u64>) -> F) -> Result<Vec<Bytes>, E>
where
    F: Future<Output = Result<Bytes, E>>,
{
    let spans = coalesced(ranges);
    // Collected first: a lazy chain of borrowing futures is more than the compiler can prove to be `Send`.
    let whole: Vec<_> = spans.iter().map(|span| long(span.clone(), &fetch)).collect();
    let got: Vec<Bytes> = futures::stream::iter(whole).buffered(TOGETHER).try_collect().await?;
    let cut = |range: &Range<u64>| match spans.partition_point(|span| span.start <= range.start) {
        _ if range.is_empty() => Bytes::new(),
        after => part(&got[after - 1], spans[after - 1].start, range),
    };
    Ok(ranges.iter().map(cut).collect())
}

/// `range` of a file, of which `bytes` begin at `start`.
pub(crate) fn part(bytes: &Bytes, start: u64, range: &Range<u64>) -> Bytes {
    let at = |place: u64| usize::try_from(place - start).expect("it is inside of what is in memory");
    bytes.slice(at(range.start)..at(range.end))
}

/// The bytes of `span`, by as many requests as it takes.
pub(crate) async fn long<F, E>(span: Range<u64>, fetch: &impl Fn(Range<u64>) -> F) -> Result<Bytes, E>
where
    F: Future<Output = Result<Bytes, E>>,
{
    let bytes = span.end - span.start;
    let requests = bytes.div_ceil(REQUEST);
    if requests <= 1 {
        return fetch(span).await;
    }
    let size = bytes.div_ceil(requests);
    let piece = |number: u64| fetch(span.start + number * size..span.end.min(span.start + (number + 1) * size));
    let pieces: Vec<_> = (0..requests).map(piece).collect();
    let mut pieces = futures::stream::iter(pieces).buffered(TOGETHER);
    let mut all = Vec::with_capacity(usize::try_from(bytes).unwrap_or_default());
    while let Some(piece) = pieces.try_next().await? {
        all.extend_from_slice(&piece);
    }
    Ok(all.into())
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::convert::Infallible;

    use futures::FutureExt;

    use super::*;

    #[test]
    #[expect(clippy::single_range_in_vec_init, reason = "a list of one range is meant")]
    fn what_is_close_is_one_request_and_what_is_long_or_far_is_not() {
        assert_eq!(coalesced(&[]), []);
        assert_eq!(coalesced(&[5..5]), []);
        assert_eq!(coalesced(&[GAP + 10..GAP + 20, 0..10]), [0..GAP + 20]);
        assert_eq!(coalesced(&[0..10, GAP + 11..GAP + 20]), [0..10, GAP + 11..GAP + 20]);
        assert_eq!(coalesced(&[0..REQUEST - 1, REQUEST - 1..REQUEST]), [0..REQUEST]);
        assert_eq!(coalesced(&[0..REQUEST, REQUEST..REQUEST + 1]), [0..REQUEST, REQUEST..REQUEST + 1]);
        assert_eq!(coalesced(&[0..2 * REQUEST, 5..2 * REQUEST + 1]), [0..2 * REQUEST + 1]);
        assert_eq!(coalesced(&[0..100, 5..10, 20..30]), [0..100]);
    }

    /// The byte at a place of a file that is never there.
    fn byte(place: u64) -> u8 {
        (place.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8
    }

    #[test]
    fn any_ranges_give_the_bytes_they_would_give_one_by_one() {
        arbtest::arbtest(|u| {
            // Scaled up, so that some are farther apart than the gap and longer than a request.
            let scale = *u.choose(&[1, 1 << 14, 1 << 19])?;
            let ranges = u.arbitrary_iter::<(u8, u8)>()?.take(6);
            let ranges = ranges.map(|r| {
                r.map(|(start, len)| u64::from(start) * scale..(u64::from(start) + u64::from(len % 32)) * scale)
            });
            let ranges = ranges.collect::<Result<Vec<_>, _>>()?;
            let asked = RefCell::new(Vec::new());
            let fetch = |range: Range<u64>| {
                asked.borrow_mut().push(range.clone());
                futures::future::ready(Ok::<_, Infallible>(range.map(byte).collect::<Bytes>()))
            };
            let got = read(&ranges, fetch).now_or_never().expect("nothing waits").expect("nothing fails");
            assert_eq!(got.len(), ranges.len());
            for (range, got) in ranges.iter().zip(&got) {
                assert!(got.iter().copied().eq(range.clone().map(byte)), "{range:?} of {ranges:?}");
            }
            let mut asked = asked.into_inner();
            asked.sort_unstable_by_key(|range| range.start);
            assert!(asked.iter().all(|range| range.end - range.start <= REQUEST), "{asked:?}");
            assert!(asked.windows(2).all(|pair| pair[0].end <= pair[1].start), "nothing is asked for twice: {asked:?}");
            Ok(())
        })
        .size_max(64)
        .budget_ms(500);
    }

    #[test]
    fn an_error_is_the_answer() {
        let asked = Cell::new(0);
        let fetch = |range: Range<u64>| {
            asked.set(asked.get() + 1);
            futures::future::ready(if range.start > 0 { Err("gone") } else { Ok(Bytes::from_static(b"0123456789")) })
        };
        assert_eq!(read(&[0..10, REQUEST..REQUEST + 1], fetch).now_or_never(), Some(Err("gone")));
        assert_eq!(read(&[2..4, 0..0], fetch).now_or_never(), Some(Err("gone")));
    }
}
