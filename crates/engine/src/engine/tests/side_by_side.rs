//! Results whose parts are encoded by several tasks.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::stream;

use super::*;
use crate::produce::Unencoded;
use crate::run::QueryStream;

const PARTS: usize = 8;

/// A part of a result, by its place.
#[derive(Debug, PartialEq)]
struct Nth(usize);

impl Weight for Nth {
    fn weight(&self) -> usize {
        1
    }
}

/// How many parts are being encoded, and how many were at the most.
#[derive(Default)]
struct AtWork {
    now: AtomicUsize,
    most: AtomicUsize,
}

impl AtWork {
    /// The first take longest.
    fn encode(&self, nth: usize) -> Nth {
        self.most.fetch_max(self.now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(5 * (PARTS - nth) as u64));
        self.now.fetch_sub(1, Ordering::SeqCst);
        Nth(nth)
    }
}

async fn fixture() -> Fixture {
    let config = Config { cpu_threads: 4, stream_buffer: ByteSize::kib(64), ..Config::default() };
    let fixture = Fixture::new(config).await;
    fixture.numbers("n.parquet", 0..1_000_000);
    fixture
}

/// A heavy query whose result is [`PARTS`] parts of `bytes` bytes, as `encode` makes them.
async fn run(
    fixture: &Fixture,
    bytes: usize,
    encode: impl Fn(usize) -> Result<Nth, Error> + Clone + Send + 'static,
) -> QueryStream<Nth> {
    let session = fixture.session("ann");
    let planned = fixture.plan(&session, "SELECT id FROM n WHERE id >= 0").await;
    let encoded = move |_| {
        Encoded::side_by_side(stream::iter(0..PARTS).map(move |nth| {
            let encode = encode.clone();
            Ok(Unencoded::new(bytes, move || encode(nth)))
        }))
    };
    fixture.engine.run(&session, planned, Part::Whole, None, encoded).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_are_encoded_side_by_side_within_the_room_there_is_and_come_in_order() {
    let fixture = fixture().await;
    for (bytes, most) in [(32 << 10, 2), (64 << 10, 1), (1 << 20, 1)] {
        let at_work = Arc::new(AtWork::default());
        let working = Arc::clone(&at_work);
        let parts = run(&fixture, bytes, move |nth| Ok(working.encode(nth))).await;
        let parts: Vec<Nth> = parts.try_collect().await.unwrap();
        assert_eq!(parts, (0..PARTS).map(Nth).collect::<Vec<_>>());
        assert_eq!(at_work.most.load(Ordering::SeqCst), most, "{bytes} bytes each");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_that_cannot_be_encoded_ends_its_query() {
    let fixture = fixture().await;
    for panics in [false, true] {
        let fails = move |nth| match nth {
            3 if panics => panic!("as a bug would"),
            3 => Err(Error::Invalid("no form".to_owned())),
            _ => Ok(Nth(nth)),
        };
        let error = run(&fixture, 32 << 10, fails).await.try_collect::<Vec<_>>().await.unwrap_err();
        assert_eq!((matches!(error, Error::Panicked { .. }), matches!(error, Error::Invalid(_))), (panics, !panics));
        fixture.engine.idle().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_goes_away_leaves_no_part_at_work() {
    let fixture = fixture().await;
    let at_work = Arc::new(AtWork::default());
    let working = Arc::clone(&at_work);
    let mut parts = run(&fixture, 32 << 10, move |nth| Ok(working.encode(nth))).await;
    parts.next().await.unwrap().unwrap();
    drop(parts);
    fixture.engine.idle().await;
    let ends = async {
        while Arc::strong_count(&at_work) > 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), ends)
        .await
        .expect("what was at work ends, and the rest never begins");
}
